"""Merging: a LoRAModel's adapters put into the weights and taken out again, and what rounding takes of them.

A half-precision weight rounds what is added to it: of an adapter that changes a bfloat16 weight by 1%, 16% is lost, by
0.3%, 46%. That share is measured, told and, on request, limited. What a quantised base adds is in `quantised.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..errors import AdapterStateError, MergeError, full_name
from ..layers import merging as layers
from ..layers.distributed import is_spread
from ..layers.packing import Loss, Packing
from ..layers.routes import Route
from ..layers.state import BLOCKS, CHANGES, AdapterState
from ..layers.tying import tied_groups, untie
from . import hooks
from .arguments import as_dtype, as_share
from .creating import leave
from .quantised import check_form, leave_packed, packing_for
from .replacing import check_in_place
from .selecting import check_together, names_of

_TOLD_ABOVE = 0.05  # of the effect
logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Kept:
    """How much of a wanted change of outputs, (W' - W) X, a packed weight makes: the share along it, 1 for all.

    nearest: where every value is rounded to the nearest; nearest_lost: what `MergeReport.losses` would be then.
    fed_back, lost: the same where the rounding is chosen by the inputs X.
    """

    nearest: float
    fed_back: float
    nearest_lost: float
    lost: float

    @classmethod
    def of(cls, losses: Iterable[Loss]) -> Kept | None:
        """Return it of all losses together, None where none was measured on inputs."""
        found = [(*loss.nearest, loss.lost, loss.along, loss.effect) for loss in losses if loss.nearest is not None]
        nearest_lost, nearest, lost, along, effect = map(sum, zip(*found, strict=True)) if found else (0.0,) * 5
        if not effect:
            return None
        return cls(nearest / effect, along / effect, math.sqrt(nearest_lost / effect), math.sqrt(lost / effect))


@dataclass(frozen=True)
class MergeReport:
    """What merging loses: shares of the adapters' effect, between 0 (exact) and 1 (all of it), above that noise.

    losses: by full parameter name, |W' as its dtype rounds it - W'| / |W' - W|, Frobenius norms, W' and W computed in a
    wider dtype. total: the same of all weights together. Of packed weights that are packed again it may be above 1.
    With calibration inputs X, both are of what a layer makes of them, |(W' as it is packed - W') X| / |(W' - W) X|.
    kept: with them, by parameter, how much of the change is kept; total_kept: of all together.
    """

    losses: dict[str, float]
    total: float
    kept: Mapping[str, Kept] = field(default_factory=dict)
    total_kept: Kept | None = None

    def __str__(self) -> str:
        worst = max(self.losses, key=self.losses.__getitem__, default="")
        told = f"{self.total:.2%} of the effect" + (f", at most {self.losses[worst]:.2%} ({worst})" if worst else "")
        if (kept := self.total_kept) is None:
            return told
        return (
            f"{told}, on the calibration batches, on which {kept.fed_back:.1%} of the wanted change is kept (rounded "
            f"to the nearest, {kept.nearest_lost:.2%} would be lost and {kept.nearest:.1%} kept)"
        )


def merge(model: Any, given: str | Sequence[str] | None, verify: float | None, requantize: bool = False) -> None:
    """Put adapters into the weights; the base's own tensors are kept aside, so that unmerging restores every bit."""
    state: AdapterState = model._lora
    verify = as_share(verify)
    check_in_place(model, model._lora)
    _refuse_shards(model)
    names = _on_top(state, given)
    packing = packing_for(model, names, requantize)
    check_form(state, packing)
    _tell_loss(state, names, verify, packing=packing)
    with CHANGES:
        state.refuse_inside("merge_adapter")
        check_together(state, names)
        values = []
        for module, layer in state.layers.items():
            with _merging(module):
                values.append((layer, layers.merged_values(layer, names, packing=packing)))
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


def merge_report(
    model: Any, given: str | Sequence[str] | None, requantize: bool = False, calibration: Iterable[Any] | None = None
) -> MergeReport:
    """Return how much of the adapters' effect (the selected ones' unless named) merging would lose to rounding."""
    state: AdapterState = model._lora
    with CHANGES:
        names = _named(state, given)
        return _loss(state, names, packing=packing_for(model, names, requantize, calibration=calibration))


def merge_and_unload(
    model: Any,
    given: str | Sequence[str] | None,
    dtype: torch.dtype | str | None,
    verify: float | None,
    requantize: bool = False,
    calibration: Iterable[Any] | None = None,
) -> Any:
    """Put adapters into the weights for good, one layer after the other, and return the plain model.

    Raises MergeError with nothing merged: every layer is looked at before the first is written.
    """
    state: AdapterState = model._lora
    dtype, verify = as_dtype(dtype), as_share(verify)
    if state.merged and given is not None and set(names_of(state, given)) - set(state.merged):
        merge(model, given, verify, requantize)
    state.refuse_inside("merge_and_unload")
    check_in_place(model, model._lora)
    if state.merged and (verify is not None or dtype is not None):
        late = "dtype" if verify is None else "verify"
        raise AdapterStateError(f"{late}= comes too late once adapters are merged; call unmerge_adapter() first.")
    with CHANGES:
        names = state.merged or _chosen(state, given)
        packing = packing_for(model, names, requantize, dtype, calibration)
        if state.merged:
            check_form(state, packing)
        else:
            check_mergeable(model, dtype, names, verify, packing)
        if packing is None and dtype is not None:
            model.to(dtype)
            if getattr(model, "config", None) is not None:
                model.config.dtype = dtype
        tied = tied_groups(model, layers.originals(state.layers.values()))
        if not state.merged:
            for module, layer in state.layers.items():
                with _merging(module):
                    layers.swap_in(layer, layers.merged_values(layer, names, packing=packing), keep=False)
            state.merged = names
        plain = leave(model)
        if packing is not None:
            leave_packed(plain, packing)
        untie(plain, tied)
        hooks.MERGED.add(plain)
    return plain


def check_mergeable(
    model: Any,
    dtype: torch.dtype | None,
    given: str | Sequence[str] | None = None,
    verify: float | None = None,
    packing: Packing | None = None,
) -> Route:
    """Return the adapters that can be merged, the selected ones unless named; what rounding takes is told."""
    state: AdapterState = model._lora
    names = _chosen(state, given)
    _refuse_shards(model)
    if packing is None and dtype is not None:
        _check_widening(model, dtype)
    _check(state, names, dtype, packing)
    _tell_loss(state, names, verify, dtype, packing)
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


def _check(state: AdapterState, names: Route, dtype: torch.dtype | None = None, packing: Packing | None = None) -> None:
    """Raise MergeError where merging would, AdapterStateError where the adapters cannot act at once."""
    check_together(state, names)
    for module, layer in state.layers.items():
        with _merging(module):
            layers.check_merge(layer, names, dtype, packing)


def _loss(
    state: AdapterState,
    names: Route,
    half_only: bool = False,
    dtype: torch.dtype | None = None,
    packing: Packing | None = None,
) -> MergeReport:
    """Return what merging would lose. half_only: leave out weights of float32 and wider, which lose next to nothing."""
    losses: dict[str, Loss] = {}
    for module, layer in state.layers.items():
        with _merging(module):
            for loss in layers.merge_losses(layer, names, half_only, dtype, packing):
                losses[full_name(module, loss.parameter)] = loss
    shares = {name: math.sqrt(loss.lost / loss.effect) if loss.effect else 0.0 for name, loss in losses.items()}
    lost, effect = sum(loss.lost for loss in losses.values()), sum(loss.effect for loss in losses.values())
    kept = {name: share for name, loss in losses.items() if (share := Kept.of([loss])) is not None}
    return MergeReport(shares, math.sqrt(lost / effect) if effect else 0.0, kept, Kept.of(losses.values()))


def _tell_loss(
    state: AdapterState,
    names: Route,
    verify: float | None,
    dtype: torch.dtype | None = None,
    packing: Packing | None = None,
) -> None:
    """Warn where merging loses much of the effect. Raises MergeError where it loses more than `verify`."""
    report = _loss(state, names, half_only=verify is None, dtype=dtype, packing=packing)
    way = "merge_and_unload(dtype=torch.float32) loses nothing"
    if packing is not None and packing.requantize and not packing.made:
        way += ", merge_and_unload(requantize=True, calibration=batches) less"
    if verify is not None and not report.total <= verify:
        raise MergeError(
            f"merging {list(names)} would lose {report} to rounding, more than verify={verify}; {way}, and an unmerged "
            "adapter is exact."
        )
    if report.total > _TOLD_ABOVE:
        logger.warning("merging %s loses %s to rounding; %s.", list(names), report, way)


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
