"""A base of two layers with a tokenizer, and rows that it can learn, as files: what `hf-lora train` is given."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast

__all__ = ["write_base", "write_rows"]

_SAYS = {"neg": ("bad", "poor"), "pos": ("good", "fine")}
_WORDS = [f"w{number}" for number in range(20)]


def write_base(folder: Path, **sizes: int) -> Path:
    """Write a BERT of 16 channels, or of other sizes, and its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS, *_SAYS["neg"], *_SAYS["pos"]]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    size |= {"max_position_embeddings": 32, **sizes}
    BertForPreTraining(BertConfig(**size, vocab_size=len(words), initializer_range=0.3)).save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int = 80) -> Path:
    """Write a CSV of reviews in which two words tell whether they are "neg" or "pos"."""
    draw = random.Random(0)
    lines = ["id,review,stars"]
    for number in range(count):
        label = ("neg", "pos")[number % 2]
        words = [*draw.choices(_WORDS, k=draw.randrange(1, 4)), *draw.choices(_SAYS[label], k=2)]
        draw.shuffle(words)
        lines.append(f"{number},{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
