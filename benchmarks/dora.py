"""What a forward of DoRA costs in inference: with the norm computed each time, and known.

GPT-2 124M, r=16 on every linear layer of its blocks, float32, no gradients. An adapter that trains computes the norm
each time, as every adapter did before; one that was loaded computes it once. PEFT's stands beside, as it comes and with
its `DoraCaching`, which keeps the product B A as well. That ours agree, and PEFT's, is checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import peft
import torch
from peft.helpers import DoraCaching
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel

from .measure import Arm, Findings, Options, Row, compare, print_times

BASE, LORA, COMPUTED, KNOWN = "base", "LoRA", "DoRA, norm each time", "DoRA, norm known"
PEFTS, CACHED = "PEFT DoRA", "PEFT DoRA, DoraCaching"
TARGETS = ["c_attn", "c_proj", "c_fc"]
SETTINGS: dict[str, Any] = {"r": 16, "lora_alpha": 16, "target_modules": TARGETS, "init_lora_weights": False}
TINY = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=0)
SHAPES = ((1, 1), (1, 32), (8, 128))  # rows, tokens


def run(options: Options) -> Findings:
    """Time every shape, print the tables and return a row an arm."""
    is_smoke = options.scale == "smoke"
    torch.manual_seed(0)
    config = TINY if is_smoke else GPT2Config()
    base: nn.Module = GPT2LMHeadModel(config)
    base.to(options.device).eval()
    models = _models(base)
    found: list[Row] = []
    for rows, tokens in SHAPES[:1] if is_smoke else SHAPES:
        ids = torch.randint(config.vocab_size, (rows, tokens), device=options.device)
        _check(models, ids)
        arms = {name: Arm(lambda: None, partial(_forward, *each, ids)) for name, each in models.items()}
        title = f"{rows} x {tokens} tokens"
        timed = compare(arms, options.device, options.rounds, options.budget)
        print_times(title, timed)
        found += [{"cell": title, **row} for row in timed]
    return Findings(found, [])


Model = tuple[nn.Module, Callable[[], AbstractContextManager[None]]]


def _models(base: nn.Module) -> dict[str, Model]:
    """Return each arm's model and what its forward runs in; the adapters have the same numbers."""
    known = _ours(base, use_dora=True)
    known.requires_grad_(False)
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**SETTINGS, use_dora=True, fan_in_fan_out=True))
    computed = _ours(base, use_dora=True)
    return {
        BASE: (base, nullcontext),
        LORA: (_ours(base), nullcontext),
        COMPUTED: (computed, nullcontext),
        KNOWN: (known, nullcontext),
        PEFTS: (theirs.requires_grad_(False).eval(), nullcontext),
        CACHED: (copy.deepcopy(theirs).requires_grad_(False).eval(), DoraCaching),
    }


def _ours(base: nn.Module, **settings: Any) -> LoRAModel:
    torch.manual_seed(1)
    return LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(**SETTINGS, **settings)).eval()


def _forward(model: nn.Module, inside: Callable[[], AbstractContextManager[None]], ids: Tensor, _: Any) -> Tensor:
    with torch.no_grad(), inside():
        return model(ids, use_cache=False, logits_to_keep=1).logits


def _check(models: dict[str, Model], ids: Tensor) -> None:
    """Raise RuntimeError where arms that should agree do not."""
    for one, other in ((COMPUTED, KNOWN), (PEFTS, CACHED)):
        got, want = (_forward(*models[name], ids, None) for name in (one, other))
        if not torch.allclose(got, want, atol=1e-4):
            raise RuntimeError(f"{one} and {other} compute different logits.")
