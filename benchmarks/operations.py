"""What happens around training: load an adapter, switch, merge and unmerge, on GPT-2 124M with 48 adapted layers."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable

import peft
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel

from .measure import compare, print_table

TARGETS = ["c_attn", "c_fc", "attn.c_proj", "mlp.c_proj"]


def run(device: torch.device, rounds: int) -> list[dict[str, object]]:
    """Time each operation in PEFT and here and return one row an arm."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config()).to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(r=16, target_modules=TARGETS)).save_pretrained(folder)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder, adapter_name="a")
        ours = LoRAModel.from_pretrained(folder, base_model=copy.deepcopy(base), adapter_name="a")
        theirs.load_adapter(folder, "b")
        ours.load_adapter(folder, "b")
        pairs: dict[str, dict[str, Callable[[], object]]] = {
            "load an adapter": {"PEFT": _load(theirs, folder), "hf_lora": _load(ours, folder)},
            "set_adapter": {"PEFT": lambda: theirs.set_adapter("a"), "hf_lora": lambda: ours.set_adapter("a")},
            "merge and unmerge": {"PEFT": _merge(theirs), "hf_lora": _merge(ours)},
        }
        result: list[dict[str, object]] = []
        for title, arms in pairs.items():
            rows = compare(arms, device, rounds)
            print_table(f"GPT-2 124M, 48 layers, r=16: {title}, against PEFT", rows)
            result += [{"cell": title, "arm": name, **row} for name, row in rows.items()]
    return result


def _load(model: object, folder: str) -> Callable[[], None]:
    """Load one adapter and delete it again, so that every round starts the same (the deletion is timed as well)."""

    def load() -> None:
        model.load_adapter(folder, "again")
        model.delete_adapter("again")

    return load


def _merge(model: object) -> Callable[[], None]:
    def merge() -> None:
        model.merge_adapter()
        model.unmerge_adapter()

    return merge
