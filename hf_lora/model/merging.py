"""Merging: a LoRAModel's adapters put into the weights and taken out again, and what rounding takes of them.

A half-precision weight rounds what is added to it: of an adapter that changes a bfloat16 weight by 1%, 16% is lost, by
0.3%, 46%. That share is measured, told and, on request, limited.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..errors import AdapterStateError, MergeError, full_name
from ..layers import merging as layers
from ..layers.distributed import is_spread
from ..layers.routes import Route
from ..layers.state import BLOCKS, CHANGES, AdapterState
from ..layers.tying import tied_groups, untie
from . import hooks
from .arguments import as_dtype, as_share
from .creating import leave
from .replacing import check_in_place
from .selecting import check_together, names_of

_TOLD_ABOVE = 0.05  # of the effect
logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class MergeReport:
    """What merging loses: shares of the adapters' effect, between 0 (exact) and 1 (all of it), above that noise.

    losses: by full parameter name, |W' as its dtype rounds it - W'| / |W' - W|, Frobenius norms, W' and W computed in a
    wider dtype. total: the same of all weights together.
    """

    losses: dict[str, float]
    total: float

    def __str__(self) -> str:
        worst = max(self.losses, key=self.losses.__getitem__, default="")
        return f"{self.total:.2%} of the effect" + (f", at most {self.losses[worst]:.2%} ({worst})" if worst else "")


def merge(model: Any, given: str | Sequence[str] | None, verify: float | None) -> None:
    """Put adapters into the weights; the base's own tensors are kept aside, so that unmerging restores every bit."""
    state: AdapterState = model._lora
    verify = as_share(verify)
    check_in_place(model, model._lora)
    _refuse_shards(model)
    names = _on_top(state, given)
    _tell_loss(state, names, verify)
    with CHANGES:
        state.refuse_inside("merge_adapter")
        check_together(state, names)
        values = []
        for module, layer in state.layers.items():
            with _merging(module):
                values.append((layer, layers.merged_values(layer, names)))
        with BLOCKS:
            state.refuse_inside("merge_adapter")  # one may have begun meanwhile
            for layer, merged in values:
                layers.swap_in(layer, merged, keep=True)
            state.merged = names


def unmerge(state: AdapterState) -> None:
    """Take the merged adapters out of the weights again: the base's own tensors come back."""
    with CHANGES:
        for layer in state.layers.values():
            layers.check_swap_back(layer)
        for layer in state.layers.values():
            layers.swap_back(layer)
        state.merged = ()


def merge_report(state: AdapterState, given: str | Sequence[str] | None) -> MergeReport:
    """Return how much of the adapters' effect (the selected ones' unless named) merging would lose to rounding."""
    with CHANGES:
        return _loss(state, _named(state, given))


def merge_and_unload(
    model: Any, given: str | Sequence[str] | None, dtype: torch.dtype | str | None, verify: float | None
) -> Any:
    """Put adapters into the weights for good, one layer after the other, and return the plain model.

    Raises MergeError with nothing merged: every layer is looked at before the first is written.
    """
    state: AdapterState = model._lora
    dtype, verify = as_dtype(dtype), as_share(verify)
    if state.merged and given is not None and set(names_of(state, given)) - set(state.merged):
        merge(model, given, verify)
    state.refuse_inside("merge_and_unload")
    check_in_place(model, model._lora)
    if state.merged and (verify is not None or dtype is not None):
        late = "dtype" if verify is None else "verify"
        raise AdapterStateError(f"{late}= comes too late once adapters are merged; call unmerge_adapter() first.")
    with CHANGES:
        names = state.merged or check_mergeable(model, dtype, given, verify)
        if dtype is not None:
            model.to(dtype)
            if getattr(model, "config", None) is not None:
                model.config.dtype = dtype
        tied = tied_groups(model, layers.originals(state.layers.values()))
        if not state.merged:
            for module, layer in state.layers.items():
                with _merging(module):
                    layers.swap_in(layer, layers.merged_values(layer, names), keep=False)
            state.merged = names
        plain = leave(model)
        untie(plain, tied)
        hooks.MERGED.add(plain)
    return plain


def check_mergeable(
    model: Any, dtype: torch.dtype | None, given: str | Sequence[str] | None = None, verify: float | None = None
) -> Route:
    """Return the adapters that can be merged, the selected ones unless named; what rounding takes is told."""
    state: AdapterState = model._lora
    names = _chosen(state, given)
    _refuse_shards(model)
    if dtype is not None:
        _check_widening(model, dtype)
    _check(state, names, dtype)
    _tell_loss(state, names, verify, dtype)
    return names


def unload(model: Any) -> Any:
    """Remove every adapter and return the plain model, the same object, as it was before."""
    unmerge(model._lora)
    return leave(model)


def _named(state: AdapterState, given: str | Sequence[str] | None) -> Route:
    """Return the names that a caller gives, the selected ones where none are given. Raises AdapterStateError."""
    state.refuse_while_merged("merging")
    return state.selected if given is None else names_of(state, given)


def _chosen(state: AdapterState, given: str | Sequence[str] | None) -> Route:
    names = _named(state, given)
    if not names:
        raise AdapterStateError("no adapter is active, so there is nothing to merge; name one, or call unload().")
    return names


def _on_top(state: AdapterState, given: str | Sequence[str] | None) -> Route:
    """Return what is merged once the adapters that a caller gives are: those that were before, and the new ones."""
    names = state.selected if given is None else names_of(state, given)
    if not set(names) - set(state.merged):
        return _chosen(state, given)
    return tuple(dict.fromkeys((*state.merged, *names)))


def _check(state: AdapterState, names: Route, dtype: torch.dtype | None = None) -> None:
    """Raise MergeError where merging would, AdapterStateError where the adapters cannot act at once."""
    check_together(state, names)
    for module, layer in state.layers.items():
        with _merging(module):
            layers.check_merge(layer, names, dtype)


def _loss(state: AdapterState, names: Route, half_only: bool = False, dtype: torch.dtype | None = None) -> MergeReport:
    """Return what merging would lose. half_only: leave out weights of float32 and wider, which lose next to nothing."""
    shares, all_lost, all_effect = {}, 0.0, 0.0
    for module, layer in state.layers.items():
        with _merging(module):
            for parameter, lost, effect in layers.merge_losses(layer, names, half_only, dtype):
                shares[full_name(module, parameter)] = math.sqrt(lost / effect) if effect else 0.0
                all_lost, all_effect = all_lost + lost, all_effect + effect
    return MergeReport(shares, math.sqrt(all_lost / all_effect) if all_effect else 0.0)


def _tell_loss(state: AdapterState, names: Route, verify: float | None, dtype: torch.dtype | None = None) -> None:
    """Warn where merging loses much of the effect. Raises MergeError where it loses more than `verify`."""
    report = _loss(state, names, half_only=verify is None, dtype=dtype)
    if verify is not None and not report.total <= verify:
        raise MergeError(
            f"merging {list(names)} would lose {report} to rounding, more than verify={verify}; merge_and_unload with "
            "dtype=torch.float32 loses nothing, and an unmerged adapter is exact."
        )
    if report.total > _TOLD_ABOVE:
        logger.warning(
            "merging %s loses %s to rounding; merge_and_unload(dtype=torch.float32) loses nothing.", list(names), report
        )


def _check_widening(model: nn.Module, dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise MergeError(f"dtype={dtype}, but merging widens only: torch.float32 or torch.float64.")
    if any(p.is_floating_point() and p.itemsize > dtype.itemsize for p in model.parameters()):
        raise MergeError(f"dtype={dtype}, but the model has wider parameters; merging widens only.")


def _refuse_shards(model: nn.Module) -> None:
    """Raise MergeError where a model's weights are spread over processes."""
    # FSDP2 and ZeRO-3 bring their own tensors back before each forward: what is merged would be ignored without a word.
    if any(is_spread(p) for p in model.parameters()):
        raise MergeError(
            "the model's weights are spread over processes (FSDP2 or DeepSpeed ZeRO-3), which would go on computing "
            "with the unmerged ones. Save the adapter (trainer.save_model(folder), or save_pretrained in every "
            "process), load it in one process with LoRAModel.from_pretrained(folder), and merge it there."
        )


@contextmanager
def _merging(module: str) -> Iterator[None]:
    """Name the layer that cannot be merged, in what is raised inside."""
    try:
        yield
    except (MergeError, ValueError) as error:
        raise MergeError(f"{module}: {error}") from None
