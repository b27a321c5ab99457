"""What each formula costs in bytes: its file, what a forward keeps for its backward, and the peak of a step.

BERT-base layers, 8x128 tokens, every linear layer adapted, without dropout. A formula stands beside plain LoRA of its
rank and beside plain LoRA of about as many trained numbers; PEFT's own beside ours where it has it. The peak is of all
storages that a step makes: forward, backward, and AdamW's first step with its moments, which stay.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel

from .arms import FROZEN, Settings, references
from .gradients import backward
from .matrix import ALL_LINEAR, Cell
from .measure import Findings, Options, Row
from .saved import Allocated, own_tensors, saved_bytes

MIB = 2**20


@dataclass(frozen=True)
class Arm:
    """One formula at one rank. settings: of the config besides; theirs: PEFT's class, where PEFT makes it."""

    name: str
    r: int
    settings: dict[str, Any]
    theirs: Callable[..., Any] | None = None

    def make(self, base: nn.Module) -> Any:
        """Return a copy of the base with the adapter, in training mode."""
        given = {"r": self.r, "target_modules": list(ALL_LINEAR), **self.settings}
        if self.theirs is not None:
            return peft.get_peft_model(copy.deepcopy(base), self.theirs(**given)).train()
        return LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(**given)).train()


def _lora(r: int) -> Arm:
    return Arm(f"LoRA, r={r}", r, {"lora_alpha": r})


ARMS = [
    _lora(256),
    _lora(16),
    Arm("ShareLoRA, r=16", 16, {"use_sharelora": True, "lora_alpha": 16}),
    Arm("LoRA-FA, r=16", 16, {"use_lora_fa": True, "lora_alpha": 16}),
    Arm("LoRA-XS, r=16", 16, {"use_lora_xs": True, "lora_alpha": 16}),
    _lora(9),
    _lora(1),
    Arm("VeRA, r=256", 256, {"use_vera": True}),
    Arm("VeRA, r=256, matrices in no file", 256, {"use_vera": True, "save_projection": False}),
    Arm("VeRA of PEFT, r=256", 256, {}, peft.VeraConfig),
]
PLACE = Settings(0, ALL_LINEAR, 0.0)
CELLS = [Cell(6, 768, 8, 128, PLACE, dtype) for dtype in (torch.float32, torch.bfloat16)]
SMOKE = [Cell(2, 16, 2, 4, PLACE, torch.float32)]


def run(options: Options) -> Findings:
    """Count every formula in every cell, print the tables and return a row an arm. There is no chance in it."""
    rows: list[Row] = []
    for cell in SMOKE if options.scale == "smoke" else CELLS:
        title = cell.place.replace("r=0, ", "")
        found = [{"cell": title, **row} for row in _measure(cell, options)]
        _print(title, found)
        rows += found
    return Findings(rows, [])


def _measure(cell: Cell, options: Options) -> Iterator[Row]:
    scene = cell.build(options.device)
    frozen = _kept(references(scene.base)[FROZEN], scene.x)
    for arm in ARMS:
        model = arm.make(scene.base)
        trained = [p for p in model.parameters() if p.requires_grad]
        kept = _kept(model, scene.x)
        yield {
            "arm": arm.name,
            "trained": sum(p.numel() for p in trained),
            "file_bytes": _file_bytes(model),
            "saved_bytes": kept,
            "ratio": round(kept / frozen, 4),
            "peak_bytes": _peak(model, trained, scene.x, scene.cotangent),
            "held_bytes": sum(p.nbytes for n, p in model.named_parameters() if _is_adapters(n)) + _buffers(model),
        }


def _kept(model: Any, x: Tensor) -> int:
    leaf = x.detach().requires_grad_()
    return saved_bytes(lambda: model(inputs_embeds=leaf).last_hidden_state, chain([leaf], own_tensors(model)))


def _is_adapters(name: str) -> bool:
    return any(part in name for part in (".adapters.", ".lora_", ".vera_"))


def _buffers(model: nn.Module) -> int:
    """Return the bytes of an adapter's buffers, where PEFT has VeRA's matrices."""
    found = {id(b): b for n, b in model.named_buffers(remove_duplicate=False) if "vera" in n or _is_adapters(n)}
    return sum(b.nbytes for b in found.values())


def _file_bytes(model: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


def _peak(model: nn.Module, trained: list[nn.Parameter], x: Tensor, cotangent: Tensor) -> int:
    optimizer = torch.optim.AdamW(trained, foreach=False)
    with Allocated(own_tensors(model)) as allocated:
        backward(model, x, cotangent)
        optimizer.step()
        return allocated.peak


def _print(title: str, rows: list[Row]) -> None:
    print(f"\nBytes: {title} (trained numbers; MiB of the file, kept for the backward, at a step's peak, held)")
    for row in rows:
        sizes = "".join(f"{row[key] / MIB:>9.2f}" for key in ("file_bytes", "saved_bytes", "peak_bytes", "held_bytes"))
        print(f"  {row['arm']:<36}{row['trained']:>11,d}{sizes}", flush=True)
