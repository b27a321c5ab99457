"""What LoRA costs a Llama on one GPU: a step of four layers, tokens per second of a 1B model, a step's kernels.

The weights are random. Arms as in step.py: frozen (a gradient flows to the input only), full fine-tuning, PEFT with and
without its float32 copies of the adapters, hf_lora. PEFT's arms are left out where it is not installed.
"""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_lora import LoRAConfig, LoRAModel

from .measure import Arm, Options, Row, compare, installed, watch
from .saved import own_tensors, peak_bytes, saved_bytes

MIB = 2**20
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEQUENCE = 2048  # tokens in one, at most
TOP = 15  # kernels
# Llama-3.1-8B's layers, four of them; Llama-3.2-1B; and what stands for both in tests.
LAYERS: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 4, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 8, "max_position_embeddings": 8192,
}  # fmt: skip
ONE_B: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


@dataclass(frozen=True)
class Step:
    """One setting of a step: tokens (in sequences of up to 2,048), rank, the adapter's dropout."""

    tokens: int
    r: int
    dropout: float

    @property
    def title(self) -> str:
        """What the setting is called in tables and files."""
        return f"{self.tokens} tokens, r={self.r}, dropout {self.dropout:g}"


STEPS = [Step(tokens, r, dropout) for tokens in (2048, 8192) for r in (16, 64) for dropout in (0.0, 0.05)]
SMALL_STEPS = [Step(16, 4, 0.0), Step(16, 4, 0.05)]


def steps(options: Options) -> Iterator[Row]:
    """Time forward and backward of four Llama layers in bfloat16, all linear layers adapted; yield one row an arm."""
    base = _layers(options)
    for cell in SMALL_STEPS if _is_small(options) else STEPS:
        if options.budget.over():
            return
        models = {"frozen": _training(base, False), "full fine-tuning": _training(base, True), **_adapted(base, cell)}
        x, cotangent = _batch(options, cell.tokens)
        arms = {name: Arm(partial(_cleared, model), partial(_step, x=x, g=cotangent)) for name, model in models.items()}
        print(f"\n{cell.title}", flush=True)
        for row in compare(arms, options.device, options.rounds, options.budget):
            found = {"cell": cell.title, **row, **_bytes(models[row["arm"]], x, cotangent)}
            _tell(found)
            yield found
        del models, arms
        gc.collect()


def kernels(options: Options) -> Iterator[Row]:
    """Yield the operations that take the most time in a step, of the frozen model and of hf_lora's."""
    from torch.profiler import ProfilerActivity, profile

    base, cell = _layers(options), SMALL_STEPS[1] if _is_small(options) else Step(8192, 16, 0.05)
    x, cotangent = _batch(options, cell.tokens)
    is_cuda = options.device.type == "cuda"
    for name, model in {"frozen": _training(base, False), "hf_lora": _adapted(base, cell)["hf_lora"]}.items():
        _step(_cleared(model), x, cotangent)
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if is_cuda else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiled:
            _step(_cleared(model), x, cotangent)
        took = (lambda e: e.self_device_time_total) if is_cuda else (lambda e: e.self_cpu_time_total)
        found = sorted((e for e in profiled.key_averages() if took(e) > 0), key=took, reverse=True)
        if is_cuda:  # the kernels themselves, and not the operations that start them
            found = [e for e in found if "cuda" in str(e.device_type).lower()]
        total = sum(took(e) for e in found)
        print(f"\n{name}, {cell.title}: {total / 1000:.2f} ms in {sum(e.count for e in found)} kernels", flush=True)
        for event in found[:TOP]:
            row = {"arm": name, "kernel": event.key[:100], "calls": event.count, "us": round(took(event), 1)}
            row["share"] = round(took(event) / total, 4)
            print(f"  {row['us']:>10.1f} us{row['share']:>8.1%}{row['calls']:>5} x  {row['kernel']}", flush=True)
            yield row


def tokens(options: Options) -> Iterator[Row]:
    """Yield the tokens per second of a 1B Llama in the stock Trainer: PEFT, and hf_lora with its switches."""
    small, is_cuda = _is_small(options), options.device.type == "cuda"
    torch.manual_seed(0)
    with options.device:
        config = LlamaConfig(**(TINY if small else ONE_B), **SPECIAL)
        base = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    rows, length, count = (2, 8, 4) if small else (4, 1024, 12)
    ids = torch.randint(config.vocab_size, (rows * count, length), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    arms = _trained(base)
    reference = 0.0
    for name in [*arms, *reversed(arms)] if not small else arms:  # there and back: what drifts meets all alike
        if options.budget.over():
            return
        model, clock = arms[name](), _Clock(options.device)
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder, max_steps=count, per_device_train_batch_size=rows, learning_rate=1e-4, bf16=is_cuda,
                use_cpu=not is_cuda, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
            )  # fmt: skip
            trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        speed = rows * length / clock.median()
        reference = reference or speed
        row: Row = {"arm": name, "tokens_per_second": round(speed, 1), "over_first": round(speed / reference, 4)}
        row["peak_bytes"] = torch.cuda.max_memory_allocated() if is_cuda else None
        peak = f"{row['peak_bytes'] / MIB:>9.0f} MiB at most" if is_cuda else ""
        print(f"  {name:<44}{speed:>10.0f} tokens/s{row['over_first']:>8.3f}{peak}", flush=True)
        yield row
        del model
        gc.collect()


class _Clock(TrainerCallback):
    """Takes the time of each step of a training."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.stop = watch(self.device)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(self.stop())

    def median(self) -> float:
        """Return the median of the second half of the steps: the first ones allocate and compile."""
        late = sorted(self.seconds[len(self.seconds) // 2 :])
        return late[len(late) // 2]


def _trained(base: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """Return what makes each arm of the trainings, from a copy of the base."""
    cell = Step(0, 16, 0.05)
    arms = {name: partial(make, base, cell) for name, make in installed(_LIBRARIES).items()}

    def switched(*switches: str) -> nn.Module:
        model = _hf_lora(base, cell)
        for switch in switches:
            getattr(model, switch)()
        return model

    loss, mlp = "enable_linear_cross_entropy", "enable_mlp_recompute"
    return {
        **arms,
        f"hf_lora, {loss}": partial(switched, loss),
        f"hf_lora, {mlp}": partial(switched, mlp),
        "hf_lora, both": partial(switched, loss, mlp),
    }


def _peft(base: nn.Module, cell: Step, **how: Any) -> nn.Module:
    import peft

    config = peft.LoraConfig(r=cell.r, lora_alpha=2 * cell.r, lora_dropout=cell.dropout, target_modules=ALL_LINEAR)
    return peft.get_peft_model(copy.deepcopy(base), config, **how).train()


def _hf_lora(base: nn.Module, cell: Step) -> nn.Module:
    config = LoRAConfig(r=cell.r, lora_alpha=2 * cell.r, lora_dropout=cell.dropout, target_modules=ALL_LINEAR)
    return LoRAModel.from_model(copy.deepcopy(base), config).train()


_LIBRARIES: dict[str, Callable[[nn.Module, Step], nn.Module]] = {
    "PEFT": _peft,
    "PEFT, base dtype": partial(_peft, autocast_adapter_dtype=False),
    "hf_lora": _hf_lora,
}


def _adapted(base: nn.Module, cell: Step) -> dict[str, nn.Module]:
    return {name: make(base, cell) for name, make in installed(_LIBRARIES).items()}


def _is_small(options: Options) -> bool:
    return options.scale == "smoke"


def _layers(options: Options) -> nn.Module:
    """Return Llama's layers in bfloat16 with random weights, to be called with `inputs_embeds`."""
    torch.manual_seed(0)
    with options.device:
        config = LlamaConfig(**(TINY if _is_small(options) else LAYERS), **SPECIAL)
        model: nn.Module = LlamaModel._from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False)


def _training(base: nn.Module, full: bool) -> nn.Module:
    return copy.deepcopy(base).requires_grad_(full).train()


def _batch(options: Options, count: int) -> tuple[Tensor, Tensor]:
    """Return inputs and the gradient of the output, (sequences, tokens, hidden)."""
    hidden = (TINY if _is_small(options) else LAYERS)["hidden_size"]
    length = min(count, SEQUENCE)
    shape = (2, count // length, length, hidden)
    x, g = torch.randn(shape, device=options.device, dtype=torch.bfloat16)
    return x, g


def _cleared(model: nn.Module) -> nn.Module:
    model.zero_grad(set_to_none=True)
    return model


def _step(model: nn.Module, x: Tensor, g: Tensor) -> None:
    model(inputs_embeds=x.detach().requires_grad_(), use_cache=False).last_hidden_state.backward(g)


def _bytes(model: nn.Module, x: Tensor, g: Tensor) -> Mapping[str, int | None]:
    """Return the bytes that a forward keeps for its backward, and a step's peak above what is there anyway."""
    leaf = x.detach().requires_grad_()
    _cleared(model)

    def forward() -> Tensor:
        return model(inputs_embeds=leaf, use_cache=False).last_hidden_state

    kept = saved_bytes(forward, chain((leaf,), own_tensors(model)))
    peak = peak_bytes(partial(_step, model, x, g), x.device) if x.is_cuda else None
    _cleared(model)
    return {"saved_bytes": kept, "peak_bytes": peak}


def _tell(row: Row) -> None:
    peak = f"{row['peak_bytes'] / MIB:>9.0f} MiB at most" if row["peak_bytes"] is not None else ""
    print(
        f"  {row['arm']:<20}{1000 * row['seconds']:>10.2f} ms{row['ratio']:>8.3f} ({row['ratio_low']:.3f} to "
        f"{row['ratio_high']:.3f}){row['saved_bytes'] / MIB:>9.1f} MiB kept{peak}",
        flush=True,
    )
