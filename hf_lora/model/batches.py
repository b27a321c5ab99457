"""Running a few batches through a base, before an adapter is added to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, LoRAError

Place = tuple[str, str]  # module, parameter
Shown = dict[Place, tuple[Tensor, ...]]  # what the data shows of each


@contextmanager
def as_a_base(model: Any) -> Iterator[None]:
    """Have a model compute without adapters and in evaluation mode."""
    trains = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with model.adapters_disabled() if getattr(model, "peft_config", None) else nullcontext():
            yield
    finally:
        for module in trains:
            module.training = True


def batches_of(model: Any, data: Any) -> Iterable[Any]:
    """Return the batches that `data` holds, or makes where it is a function of the model. Raises ArgumentError."""
    found = data(model) if callable(data) and not isinstance(data, Tensor | Mapping) else data
    if isinstance(found, Tensor | Mapping | str | bytes) or not (
        hasattr(found, "__iter__") or hasattr(found, "__getitem__")
    ):
        raise ArgumentError(
            f"data= is {_described(found)}: it takes batches, in a list or as a DataLoader gives them; one batch alone "
            "is data=[batch]."
        )
    return found


def run(model: Any, batch: Any) -> Any:
    """Return what a model, or a batch that is a function of it, computes. Raises ArgumentError for what it can't."""
    if callable(batch) and not isinstance(batch, Tensor | Mapping):
        return batch(model)
    if not isinstance(batch, Mapping | Tensor | list | tuple):
        raise ArgumentError(f"data= holds {_described(batch)}, which is no batch: give what the model's forward takes.")
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    moved = _moved(batch, device)
    try:
        if isinstance(moved, Mapping):
            return model(**moved)
        return model(*moved) if isinstance(moved, list | tuple) else model(moved)
    except (LoRAError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise ArgumentError(
            f"data= holds {_described(batch)}, which the model does not compute: {error}. Give batches as its forward "
            "takes them: a DataLoader makes them of rows."
        ) from error


def _described(value: Any) -> str:
    """Return what a value is, in a few words: the shapes of its tensors."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_described(each)}" for key, each in value.items()) + "}"
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in value.items()}
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
