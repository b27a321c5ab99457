"""Running a few batches through a base, before an adapter is added to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

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


def run(model: Any, batch: Any) -> Any:
    """Return what a model, or a batch that is a function of it, computes."""
    if callable(batch) and not isinstance(batch, Tensor | Mapping):
        return batch(model)
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    batch = _moved(batch, device)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in value.items()}
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
