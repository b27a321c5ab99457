"""A model or an adapter for others than Transformers and PEFT: the engines' files, and ONNX."""
