"""The hf-lora command: one file a command."""
