"""What the two memory switches save of a training step, and what they cost: small Llamas, LoRA on all linears.

Kept is what lives between forward and backward, peak the most that lives at any time, both beside the model's own
parameters; on a CUDA device the allocator's own figures would say the same with its rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_lora import LoRAConfig, LoRAModel

from .measure import Arm, Findings, Options, Row, compare, print_times
from .saved import Allocated, own_tensors

MIB = 2**20


@dataclass(frozen=True)
class Cell:
    """One Llama, one batch of 4 sequences, one switch."""

    switch: str
    layers: int
    hidden: int
    intermediate: int
    words: int
    tokens: int
    dtype: torch.dtype = torch.float32
    dropout: float = 0.0

    @property
    def title(self) -> str:
        """What the cell is called in tables and files."""
        dtype, dropout = str(self.dtype).removeprefix("torch."), f", dropout {self.dropout:g}" if self.dropout else ""
        size = f"{self.layers} layers of {self.hidden}, {self.tokens} tokens, {self.words} words"
        return f"{self.switch}: {size}, {dtype}{dropout}"

    def build(self, device: torch.device) -> tuple[dict[str, LoRAModel], Tensor]:
        """Return the model without and with the switch, and token ids (4, tokens / 4)."""
        models: dict[str, LoRAModel] = {}
        for name in ("plain", self.switch):
            torch.manual_seed(0)
            config = LlamaConfig(
                num_hidden_layers=self.layers, hidden_size=self.hidden, intermediate_size=self.intermediate,
                vocab_size=self.words, num_attention_heads=max(1, self.hidden // 64), bos_token_id=0, eos_token_id=1,
            )  # fmt: skip
            lora = LoRAConfig(r=16, target_modules="all-linear", lora_dropout=self.dropout)
            base: nn.Module = LlamaForCausalLM(config)
            models[name] = LoRAModel.from_model(base.to(device, self.dtype), lora).train()
        getattr(models[self.switch], self.switch)()
        return models, torch.randint(self.words, (4, self.tokens // 4), device=device)


MLP, LOSS = "enable_mlp_recompute", "enable_linear_cross_entropy"
CELLS = [
    Cell(MLP, 4, 512, 1408, 1000, 512),
    Cell(MLP, 4, 512, 1408, 1000, 512, dropout=0.05),
    Cell(MLP, 4, 512, 1408, 1000, 512, torch.bfloat16),
    Cell(LOSS, 2, 512, 1408, 32_000, 2048),
    Cell(LOSS, 2, 512, 1408, 128_256, 1024),
    Cell(LOSS, 2, 512, 1408, 128_256, 1024, torch.bfloat16),
]
SMOKE = [Cell(MLP, 1, 16, 24, 32, 8), Cell(LOSS, 1, 16, 24, 32, 8)]


def run(options: Options) -> Findings:
    """Measure every cell, print its table and return one row an arm."""
    rows: list[Row] = []
    for cell in SMOKE if options.scale == "smoke" else CELLS:
        models, ids = cell.build(options.device)
        arms = {name: Arm(partial(models.__getitem__, name), partial(_step, ids=ids)) for name in models}
        found = [{**row, **_bytes(models[row["arm"]], ids)} for row in compare(arms, options.device, options.rounds)]
        print_times(cell.title, found)
        for row in found:
            print(f"  {row['arm']:<36}{row['kept_bytes'] / MIB:>10.1f} MiB kept, {row['peak_bytes'] / MIB:.1f} at most")
        rows += [{"cell": cell.title, **row} for row in found]
    return Findings(rows, [])


def _step(model: nn.Module, ids: Tensor) -> None:
    model(ids, labels=ids).loss.backward()
    model.zero_grad()


def _bytes(model: nn.Module, ids: Tensor) -> dict[str, int]:
    with Allocated(own_tensors(model)) as allocated:
        loss = model(ids, labels=ids).loss
        kept = allocated.now
        loss.backward()
    model.zero_grad()
    return {"kept_bytes": kept, "peak_bytes": allocated.peak}
