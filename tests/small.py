"""Small models of Transformers, the same every time."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def bert(cls: type = BertForMaskedLM, **settings: Any) -> Any:
    """Return a small BERT, the same every time."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return cls(BertConfig(**small, vocab_size=32, **settings)).eval()


def gpt2() -> GPT2LMHeadModel:
    """Return a small GPT-2, the same every time."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()
