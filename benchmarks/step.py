"""What a training step costs: forward and backward of BERT-base layers, as a ratio to the frozen model.

Arms: frozen (a gradient flows to the input only), full fine-tuning, PEFT as it comes, PEFT with its adapters in the
base's dtype, and hf_lora. That their gradients agree is the tests' business (tests/test_laws.py, test_peft_parity.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import peft
import torch
from torch import nn
from transformers import BertConfig, BertModel

from hf_lora import LoRAConfig, LoRAModel

from .measure import compare, print_table

ALL = ["query", "key", "value", "dense"]
CELLS = {  # title: (batch, tokens, rank, targets, dropout, dtype)
    "8x128 tokens, r=16, all linear, float32, dropout 0": (8, 128, 16, ALL, 0.0, torch.float32),
    "8x128 tokens, r=16, all linear, float32, dropout 0.05": (8, 128, 16, ALL, 0.05, torch.float32),
    "8x128 tokens, r=8, query+value, float32, dropout 0.1": (8, 128, 8, ["query", "value"], 0.1, torch.float32),
    "8x128 tokens, r=16, all linear, bfloat16, dropout 0.05": (8, 128, 16, ALL, 0.05, torch.bfloat16),
}


def run(device: torch.device, rounds: int) -> list[dict[str, object]]:
    """Time every cell and return one row an arm."""
    result: list[dict[str, object]] = []
    for title, (batch, tokens, r, targets, dropout, dtype) in CELLS.items():
        arms = _arms(device, batch, tokens, r, targets, dropout, dtype)
        rows = compare(arms, device, rounds)
        print_table(f"BERT-base, 4 layers, {title}: a step against the frozen model", rows)
        result += [{"cell": title, "arm": name, **row} for name, row in rows.items()]
    return result


def _arms(
    device: torch.device, batch: int, tokens: int, r: int, targets: list[str], dropout: float, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, vocab_size=8)
    base = BertModel(config, add_pooling_layer=False).to(device, dtype).train()
    x = torch.randn(batch, tokens, config.hidden_size, device=device, dtype=dtype)
    settings = {"r": r, "lora_alpha": 2 * r, "lora_dropout": dropout, "target_modules": targets}
    models = {
        "frozen": copy.deepcopy(base).requires_grad_(False),
        "full fine-tuning": copy.deepcopy(base),
        "PEFT": peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings)),
        "PEFT, base dtype": peft.get_peft_model(
            copy.deepcopy(base), peft.LoraConfig(**settings), autocast_adapter_dtype=False
        ),
        "hf_lora": LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(**settings)),
    }
    return {name: _step(model.train(), x) for name, model in models.items()}


def _step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(inputs_embeds=x.detach().requires_grad_()).last_hidden_state.float().square().mean().backward()

    return step
