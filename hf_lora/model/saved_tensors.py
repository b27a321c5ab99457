"""An adapter's tensors for saving: gathered from every process, and checked to be whole, finite and trained."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterStateError, full_name, some
from ..layers.distributed import is_spread, whole
from ..layers.offload import brought_in
from ..maths.low_rank import is_finite
from ..variants.adapter import Adapter
from .first_step import steps_went_by

# An optimizer writes a parameter once or twice a step, and the first step of a warm-up has a learning rate of zero.
_WRITES = 3
_SHARDS = (
    "FSDP and DeepSpeed ZeRO leave shards in the model: pass the gathered state_dict= "
    "(accelerator.get_state_dict(model))."
)


def is_sharded(model: Any, name: str, state_dict: Mapping[str, Tensor] | None = None) -> bool:
    """Return whether what `gather` would take is spread over processes."""
    return any(
        is_spread(tensor if state_dict is None else state_dict.get(f"{prefix}.{attribute}"))
        for prefix, adapter in _held(model, name)
        for attribute, tensor in adapter.tensors().items()
    )


def gather(model: Any, name: str, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return an adapter's tensors by their keys in the model's state dict, detached, each of them whole.

    state_dict: the whole model's, to take them from instead. Where they are spread over processes, all of them must
    call this, and each gets all tensors. Raises KeyError where the state_dict lacks one.
    """
    held: dict[str, Tensor] = {}
    for prefix, adapter in _held(model, name):
        with brought_in(adapter):
            held.update({f"{prefix}.{attribute}": tensor for attribute, tensor in adapter.tensors().items()})
    # Sorted, because every process must ask for the same tensor at a time.
    return {key: whole(held[key] if state_dict is None else state_dict[key]) for key in sorted(held)}


def check(model: Any, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise AdapterStateError, naming every tensor concerned, where an adapter is not fit to be saved.

    tensors: as `gather` returns them.
    """
    problems, shared = [], dict[tuple[str, str], Tensor]()
    for prefix, adapter in _held(model, name):
        for attribute, shape in adapter.sizes().items():
            tensor, of = tensors[f"{prefix}.{attribute}"], (adapter.group, attribute)
            if attribute in adapter.shared() and (first := shared.setdefault(of, tensor)) is not tensor:
                problem = "" if _is_same(first, tensor) else f"is one with that of {adapter.group}, and another by now"
            else:
                problem = _problem(tensor, shape)
            problems += [f"{prefix}.{attribute} {problem}"] if problem else []
    if problems:
        shards = f" {_SHARDS}" if any(" of its " in p for p in problems) else ""
        raise AdapterStateError(
            f"the adapter {name!r} is not saved, because {len(problems)} of its tensors cannot be what was trained: "
            f"{'; '.join(problems)}.{shards}"
        )
    if untrained := _untrained(model, name, tensors):
        raise AdapterStateError(
            f"the adapter {name!r} is not saved, because training steps were taken and it still changes nothing: every "
            f"one of these is all zero: {', '.join(untrained)}. Its layers were not part of the forward (disabled, or "
            "never called), the learning rate was zero, or the optimizer holds other parameters: build it after adding "
            "the adapter."
        )
    if steps_went_by(model) and (unused := _unused(model, name, tensors)):
        warnings.warn(
            f"the adapter {name!r} is saved as it began: {some(unused)} got gradients, and no step of an optimizer "
            "used them. Build the optimizer of this model's parameters, after adding, loading or choosing adapters.",
            stacklevel=2,
        )


def _is_same(first: Tensor, second: Tensor) -> bool:
    return first.data_ptr() == second.data_ptr() or torch.equal(first, second)


def _problem(tensor: Tensor, shape: tuple[int, ...]) -> str:
    if tensor.is_meta:
        return "is on the meta device: its values are offloaded or were never loaded"
    if tuple(tensor.shape) != shape or not tensor.numel():
        return f"has {tensor.numel()} numbers, {tuple(tensor.shape)}, of its {shape}"
    if tensor.is_floating_point() and not is_finite(tensor):
        return "is not finite (NaN or infinity): the training diverged"
    return ""


def _untrained(model: Any, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the zero factors of an adapter whose every product is zero, though it was written to; else nothing."""
    held = list(_held(model, name))
    writes = [_writes(adapter, prefix, tensors) for prefix, adapter in held]
    if max(writes, default=0) < _WRITES:
        return []
    factors = [(count, a) for count, (_, a) in zip(writes, held, strict=True) if a.vanishing]
    if not any(count or a.get_parameter(a.vanishing[0]).requires_grad for count, a in factors):
        return []  # frozen on purpose, while a head or token rows train
    zero = []
    for prefix, adapter in held:
        if adapter.vanishing:
            keys = [f"{prefix}.{factor}" for factor in adapter.vanishing]
            found = next((key for key in keys if not tensors[key].any()), None)
            if found is None or adapter.moves_base:
                return []
            zero.append(found)
    return zero


def _unused(model: Any, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return where gradients wait in an adapter that changes nothing and was never written to."""
    held = [(prefix, adapter) for prefix, adapter in _held(model, name) if adapter.vanishing]
    if any(tensors[f"{prefix}.{adapter.vanishing[0]}"].any() or adapter.writes() for prefix, adapter in held):
        return []
    firsts = ((prefix, adapter.get_parameter(adapter.vanishing[0]).grad) for prefix, adapter in held)
    return [prefix for prefix, gradient in firsts if gradient is not None and gradient.any()]


def _writes(adapter: Adapter, prefix: str, tensors: Mapping[str, Tensor]) -> int:
    """Return how often an adapter was written; where what training writes first is zero, how often that was."""
    first = adapter.vanishing[:1]
    return adapter.writes(first if first and not tensors[f"{prefix}.{first[0]}"].any() else None)


def _held(model: Any, name: str) -> Iterator[tuple[str, Adapter]]:
    """Yield every adapter of a name with its path in the model; one that two layers share (tied) comes twice."""
    for module, _, key, adapter in model._lora.carried(name):
        yield full_name(module, "adapters", name, key), adapter
