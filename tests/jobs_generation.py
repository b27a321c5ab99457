"""Jobs of the tasks whose models write text: tiny decoders and encoder-decoders, and rows that they can learn."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .jobs import Job, write_csv
from .trainings import tokenizer

__all__ = ["JOBS"]

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "sky": "blue", "corn": "yellow"}
WORDS = (*COLOURS, *COLOURS.values(), "the", "is", "of", "what", "colour", "?", ":", "System", "User", "Assistant")


def llama(folder: Path) -> Path:
    """Save a Llama of one layer with a tokenizer of whole words."""
    words = tokenizer(*WORDS)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 2}
    config = LlamaConfig(
        vocab_size=len(words), max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=True,
        **sizes, **special,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


LEARNS = ("--epochs", "20", "--learning-rate", "0.01", "--max-new-tokens", "4")


def asked() -> list[list[str]]:
    """Return questions after the colours of things, with their answers, in several words each."""
    ways = ("what colour is the {} ?", "what is the {} ?", "the {} ?", "colour of the {} ?", "of what colour is {} ?")
    return [[way.format(thing), colour] for thing, colour in COLOURS.items() for way in ways]


JOBS = [
    Job(
        "causal-lm", llama, lambda at: write_csv(at / "colours.csv", ["prompt", "completion"], asked()),
        LEARNS, ("-eval_perplexity", 2.0),
    ),
    Job(
        "chat", llama, lambda at: write_csv(at / "chats.csv", ["instruction", "output"], asked()),
        (*LEARNS, "--chat-template", "simple"), ("-eval_perplexity", 2.0),
    ),
]  # fmt: skip
