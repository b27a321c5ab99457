"""What adapters on fused experts cost in a training step: Mixtral's layers, 8 experts, 2 of them a token.

The adapters are on both expert parameters. PEFT (`target_parameters`) and hf_lora compute with the same factors: PEFT
loads hf_lora's file, and the arms' outputs and gradients are compared before they are timed. Peak is the most that
lives at any time beside the model's own parameters, as the dispatcher sees it.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralModel

from hf_lora import LoRAConfig, LoRAModel

from .arms import FROZEN, FULL, OURS, PEFT_ARMS, references
from .measure import Arm, Findings, Options, Row, compare, print_times
from .saved import Allocated, own_tensors

MIB = 2**20
# Of the largest number: seen 2e-6 in float32 and 2e-2 in bfloat16, where PEFT's merged weights are rounded.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Cell:
    """Some layers, a batch of 4 sequences, and one of Transformers' ways to compute experts."""

    way: str
    layers: int
    hidden: int
    intermediate: int
    tokens: int
    r: int
    dtype: torch.dtype = torch.float32

    @property
    def title(self) -> str:
        """What the cell is called in tables and files."""
        size = f"{self.layers} x 8 experts of {self.hidden} x {self.intermediate}, {self.tokens} tokens, r={self.r}"
        return f"{self.way}: {size}, {str(self.dtype).removeprefix('torch.')}"

    def base(self, device: torch.device) -> nn.Module:
        """Return the layers with random weights, the same ones every time."""
        torch.manual_seed(0)
        config = MixtralConfig(
            num_hidden_layers=self.layers, hidden_size=self.hidden, intermediate_size=self.intermediate, vocab_size=8,
            num_attention_heads=max(1, self.hidden // 64), num_key_value_heads=1, num_local_experts=8,
            num_experts_per_tok=2,
        )  # fmt: skip
        model = MixtralModel(config)
        model.set_experts_implementation(self.way)
        return model.to(device=device, dtype=self.dtype)  # type: ignore[call-arg]


CELLS = [
    Cell("eager", 2, 512, 1024, 512, 8),
    Cell("grouped_mm", 2, 512, 1024, 512, 8),
    Cell("grouped_mm", 1, 1024, 3584, 512, 16),
    Cell("grouped_mm", 1, 1024, 3584, 512, 16, torch.bfloat16),
]
SMOKE = [Cell("eager", 1, 16, 32, 8, 4), Cell("grouped_mm", 1, 16, 32, 8, 4)]


def run(options: Options) -> Findings:
    """Measure every cell, print its table and return one row an arm."""
    rows: list[Row] = []
    summary: list[str] = []
    for cell in SMOKE if options.scale == "smoke" else CELLS:
        models, x = _contestants(cell, options.device)
        _check(models, x)
        arms = {name: Arm(partial(models.__getitem__, name), partial(_step, x=x)) for name in models}
        found = [
            {"cell": cell.title, **row, "peak_bytes": _peak(models[row["arm"]], x)}
            for row in compare(arms, options.device, options.rounds)
        ]
        print_times(cell.title, found)
        for row in found:
            print(f"  {row['arm']:<36}{row['peak_bytes'] / MIB:>10.1f} MiB at most")
        rows += found
        summary.append(_summary(cell.title, {row["arm"]: row for row in found}))
    return Findings(rows, summary)


def _contestants(cell: Cell, device: torch.device) -> tuple[dict[str, nn.Module], Tensor]:
    """Return the models by arm, in training mode, and an input (4, tokens / 4, hidden)."""
    base = cell.base(device)
    config = LoRAConfig(
        r=cell.r, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        init_lora_weights=False,
    )  # fmt: skip
    ours = LoRAModel.from_model(copy.deepcopy(base), config)
    models: dict[str, nn.Module] = {**references(base), OURS: ours}
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        for name, autocast in zip(PEFT_ARMS, (True, False), strict=True):
            models[name] = PeftModel.from_pretrained(
                copy.deepcopy(base), folder, is_trainable=True, autocast_adapter_dtype=autocast
            )
    x = torch.randn(4, cell.tokens // 4, cell.hidden, device=device, dtype=cell.dtype)
    return {name: model.train() for name, model in models.items()}, x


def _step(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run forward and backward; return the output, and the gradient of the input."""
    leaf = x.detach().requires_grad_()
    y: Tensor = model(inputs_embeds=leaf, use_cache=False).last_hidden_state
    y.backward(torch.linspace(-1, 1, y.shape[-1], device=y.device, dtype=y.dtype).expand_as(y))
    model.zero_grad()
    assert leaf.grad is not None
    return y.detach(), leaf.grad


def _check(models: dict[str, nn.Module], x: Tensor) -> None:
    """Raise AssertionError where an adapted model computes something else than the first one."""
    first, *others = (_step(models[name], x) for name in models if name not in (FROZEN, FULL))
    wrong = [float((a - b).abs().max() / b.abs().max()) for other in others for a, b in zip(other, first, strict=True)]
    if max(wrong) > TOLERANCE[x.dtype]:
        raise AssertionError(f"outputs and gradients of {list(models)} differ by {wrong}")


def _peak(model: nn.Module, x: Tensor) -> int:
    with Allocated(own_tensors(model)) as allocated:
        _step(model, x)
    return allocated.peak


def _summary(title: str, rows: dict[str, Row]) -> str:
    time, peak = (min(rows[name][what] for name in PEFT_ARMS) for what in ("ratio", "peak_bytes"))
    ours = rows[OURS]
    return (
        f"{title}: hf_lora takes {ours['ratio'] / time:.2f} of the time of PEFT's better arm, and "
        f"{ours['peak_bytes'] / peak:.2f} of its peak."
    )
