"""The main job on real input: a pretrained BERT learns the sentiment of words from human ratings, by LoRA."""
