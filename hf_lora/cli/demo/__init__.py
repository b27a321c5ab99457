"""The demo: a pretrained BERT learns the sentiment of words from human ratings, by LoRA."""
