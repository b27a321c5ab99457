"""Jobs of the tasks whose models write text: tiny decoders and encoder-decoders, and rows that they can learn."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from .jobs import Job, write_csv, write_jsonl
from .trainings import tokenizer

__all__ = ["JOBS"]

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "sky": "blue", "corn": "yellow"}
GERMAN = {"grass": "gras", "snow": "schnee", "coal": "kohle", "blood": "blut", "sky": "himmel", "corn": "mais"}
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


def t5(folder: Path) -> Path:
    """Save a T5 of one layer a side with a tokenizer of whole words."""
    words = tokenizer(*WORDS, *GERMAN.values(), "das", "ist", "da", "summarize", "translate", "English", "German", "to")
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "initializer_factor": 1.0}
    special = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = T5Config(vocab_size=len(words), dropout_rate=0.0, **sizes, **special)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


LEARNS = ("--epochs", "20", "--eval-steps", "20", "--learning-rate", "0.01", "--max-new-tokens", "4")


def asked() -> list[list[str]]:
    """Return questions after the colours of things, with their answers, in several words each."""
    ways = ("what colour is the {} ?", "what is the {} ?", "the {} ?", "colour of the {} ?", "of what colour is {} ?")
    return [[way.format(thing), colour] for thing, colour in COLOURS.items() for way in ways]


REWRITES = ("--epochs", "20", "--eval-steps", "20", "--learning-rate", "0.01", "--max-target-length", "6")

JOBS = [
    Job(
        "causal-lm", llama, lambda at: write_csv(at / "colours.csv", ["prompt", "completion"], asked()),
        LEARNS, ("-eval_perplexity", 2.0),
    ),
    Job(
        "chat", llama, lambda at: write_csv(at / "chats.csv", ["instruction", "output"], asked()),
        (*LEARNS, "--chat-template", "simple"), ("-eval_perplexity", 2.0),
    ),
    Job(
        "preference", llama, lambda at: write_csv(
            at / "duels.csv", ["prompt", "chosen", "rejected"],
            [[question, colour, thing] for question, colour in asked() for thing in ("of",)],
        ), ("--epochs", "5", "--eval-steps", "15", "--learning-rate", "0.003", "--chat-template", "simple"),
        ("eval_rewards/accuracies", 1.0),
    ),
    Job(
        "summarization", t5, lambda at: write_csv(
            at / "long.csv", ["summary", "article"],
            [[thing, f"{colour} is the {thing}"] for thing in COLOURS for colour in COLOURS.values()]
        ), REWRITES, ("eval_rougeL", 0.8),
    ),
    Job(
        "translation", t5, lambda at: write_jsonl(
            at / "pairs.jsonl", [
                {"translation": {"de": f"das {german} ist da", "en": f"the {thing} is {end}"}}
                for thing, german in GERMAN.items() for end in ("the", "of", "what", "colour", "?")
            ]
        ), REWRITES, ("eval_sacrebleu", 50.0),
    ),
    Job(
        "translation", llama, lambda at: write_csv(
            at / "pairs.csv", ["source", "target"], [[f"the {a}", f"the {b}"] for a, b in COLOURS.items()] * 6
        ), (*REWRITES, "--metric", "exact_match"), ("eval_exact_match", 1.0),
    ),
]  # fmt: skip
