"""Merging: a LoRAModel's adapters put into the weights and taken out again, and what rounding takes of them.

A half-precision weight rounds what is added to it: of an adapter that changes a bfloat16 weight by 1%, 16% is lost, by
0.3%, 46%. That share is measured, told and, on request, limited.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import AdapterStateError, MergeError
from ..layers import front
from ..layers.distributed import is_spread
from ..layers.state import AdapterState
from ..layers.tying import shared_memory, tied_groups, untie
from .adapters import check_known, check_together, remove_all

__all__ = ["MergeReport", "Merging", "merge", "merge_for_good", "merge_losses", "unmerge"]

_TOLD_ABOVE = 0.05  # of the effect
logger = logging.getLogger(__name__)


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


def merge(state: AdapterState, names: Sequence[str]) -> None:
    """Put adapters into the weights; the base's own tensors are kept aside, so that unmerging restores every bit.

    Raises MergeError with nothing merged, AdapterStateError where something is merged already.
    """
    check_known(state, names)
    if state.merged:
        raise AdapterStateError(f"{list(state.merged)} are merged already; call unmerge_adapter() first.")
    state.refuse_inside("merge_adapter")
    if not names:
        raise AdapterStateError("no adapter is active, so there is nothing to merge; name one.")
    if len(names) > 1:
        check_together(state, names)
    values = []
    for module, layer in state.layers.items():
        with _merging(module):
            values.append((layer, layer.merged_values(tuple(names))))
    for layer, merged in values:
        layer.swap_in(merged)
    state.note_merged(tuple(names))


def unmerge(state: AdapterState) -> None:
    """Take the merged adapters out of the weights again: the base's own tensors come back."""
    for layer in state.layers.values():
        layer.swap_back()
    state.note_merged(())


def merge_for_good(model: nn.Module, state: AdapterState, names: Sequence[str]) -> None:
    """Put adapters into the weights and forget the base's own values, layer by layer.

    A weight whose memory nothing else of the model lies in may be written in place; at most one layer's is held twice
    at a time. Raises MergeError with nothing merged: every layer is looked at before the first is written.
    """
    if state.merged:
        for layer in state.layers.values():
            layer.forget_originals()
        return
    check_merge(state, names)
    shared = shared_memory(model)
    for module, layer in state.layers.items():
        with _merging(module):
            layer.merge_for_good(tuple(names), shared)
    state.note_merged(tuple(names))


def check_merge(state: AdapterState, names: Sequence[str], dtype: torch.dtype | None = None) -> None:
    """Raise MergeError where `merge_for_good` would, AdapterStateError where the adapters cannot act at once.

    dtype: what the weights will have become by then, their own unless given.
    """
    check_known(state, names)
    if len(names) > 1:
        check_together(state, names)
    for module, layer in state.layers.items():
        with _merging(module):
            layer.check_merge(tuple(names), dtype)


def merge_losses(
    state: AdapterState, names: Sequence[str], half_only: bool = False, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, float, float]]:
    """Yield (parameter, what merging would lose of the adapters' effect, the effect), both as sums of squares.

    half_only: leave out weights of float32 and wider, which lose next to nothing. dtype: what the weights are widened
    to before merging.
    Raises AdapterStateError while merged.
    """
    check_known(state, names)
    if state.merged:
        raise AdapterStateError(f"{list(state.merged)} are merged already; call unmerge_adapter() first.")
    for module, layer in state.layers.items():
        with _merging(module):
            for parameter, lost, effect in layer.merge_losses(tuple(names), half_only, dtype):
                yield f"{module}.{parameter}".lstrip("."), lost, effect


class Merging(nn.Module):
    """What a LoRAModel does about merging."""

    _lora: AdapterState

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, *, verify: float | None = None) -> None:
        """Put adapters (the active ones unless named) into the weights; `unmerge_adapter` restores every bit.

        Keeps the base's own tensors, so that the adapted weights are held twice while merged.
        verify: the largest share of the adapters' effect that may be lost to rounding (`merge_report`). Raises
        MergeError above it, with nothing merged.
        """
        _refuse_shards(self)
        names = list(self._lora.selected if adapter_names is None else adapter_names)
        self._tell_loss(names, verify)
        merge(self._lora, names)

    def unmerge_adapter(self) -> None:
        """Take merged adapters out of the weights."""
        unmerge(self._lora)

    def merge_report(self, adapter_names: Sequence[str] | None = None) -> MergeReport:
        """Return how much of the adapters' effect (the active ones' unless named) merging would lose to rounding.

        Nothing is changed. Takes about as long as two merges, one weight at a time.
        """
        return self._loss(list(self._lora.selected if adapter_names is None else adapter_names))

    def merge_and_unload(
        self,
        adapter_names: Sequence[str] | None = None,
        *,
        dtype: torch.dtype | None = None,
        verify: float | None = None,
    ) -> Any:
        """Put adapters into the weights for good and return the plain model, the same object.

        dtype: torch.float32 (or float64), which the whole model becomes before merging, so that a half-precision one
            loses nothing of the adapter. verify: as for `merge_adapter`.

        Where that parts a weight from one it was tied to, the config's `tie_word_embeddings` is switched off, so
        that a saved and reloaded model is the same. Weights whose memory is theirs alone are written in place, so a
        state dict of the base taken before changes with them. Raises MergeError with the model unchanged.
        """
        state = self._lora
        names = list(state.merged or (state.selected if adapter_names is None else adapter_names))
        if not names:
            raise AdapterStateError("no adapter is active, so there is nothing to merge; name one, or call unload().")
        state.refuse_inside("merge_and_unload")
        _refuse_shards(self)
        if state.merged and verify is not None:
            raise AdapterStateError("verify= comes too late once adapters are merged; call unmerge_adapter() first.")
        if dtype is not None:
            self._check_widening(dtype, names)
        if not state.merged:
            self._tell_loss(names, verify, dtype)
        if dtype is not None:
            self._widen(dtype)
        tied = tied_groups(self)
        merge_for_good(self, state, names)
        plain = self._leave()
        untie(plain, tied)
        return plain

    def unload(self) -> Any:
        """Remove every adapter and return the plain model, the same object, as it was before."""
        unmerge(self._lora)
        return self._leave()

    def _leave(self) -> Any:
        model: Any = self
        model.disable_mlp_recompute()
        model.disable_linear_cross_entropy()
        remove_all(model, self._lora)
        del model.__dict__["_lora"]
        model.__dict__.pop("_hf_peft_config_loaded", None)
        front.leave(model)
        return model

    def _loss(self, names: list[str], half_only: bool = False, dtype: torch.dtype | None = None) -> MergeReport:
        shares, all_lost, all_effect = {}, 0.0, 0.0
        for module, lost, effect in merge_losses(self._lora, names, half_only, dtype):
            shares[module] = math.sqrt(lost / effect) if effect else 0.0
            all_lost, all_effect = all_lost + lost, all_effect + effect
        return MergeReport(shares, math.sqrt(all_lost / all_effect) if all_effect else 0.0)

    def _tell_loss(self, names: list[str], verify: float | None, dtype: torch.dtype | None = None) -> None:
        report = self._loss(names, half_only=verify is None, dtype=dtype)
        if verify is not None and not report.total <= verify:
            raise MergeError(
                f"merging {names} would lose {report} to rounding, more than verify={verify}; merge_and_unload with "
                "dtype=torch.float32 loses nothing, and an unmerged adapter is exact."
            )
        if report.total > _TOLD_ABOVE:
            logger.warning(
                "merging %s loses %s to rounding; merge_and_unload(dtype=torch.float32) loses nothing.", names, report
            )

    def _check_widening(self, dtype: torch.dtype, names: list[str]) -> None:
        if self._lora.merged:
            raise AdapterStateError("dtype= has no use once adapters are merged; call unmerge_adapter() first.")
        if dtype not in (torch.float32, torch.float64):
            raise MergeError(f"dtype={dtype}, but merging widens only: torch.float32 or torch.float64.")
        if any(p.is_floating_point() and p.itemsize > dtype.itemsize for p in self.parameters()):
            raise MergeError(f"dtype={dtype}, but the model has wider parameters; merging widens only.")
        check_merge(self._lora, names, dtype)

    def _widen(self, dtype: torch.dtype) -> None:
        self.to(dtype)
        if getattr(self, "config", None) is not None:
            self.config.dtype = dtype


def _refuse_shards(model: nn.Module) -> None:
    """Raise MergeError where a model's weights are spread over processes.

    FSDP2 and ZeRO-3 bring their own tensors back before each forward: what is merged would be ignored without a word.
    """
    if any(is_spread(p) for p in model.parameters()):
        raise MergeError(
            "the model's weights are spread over processes (FSDP2 or DeepSpeed ZeRO-3), which would go on computing "
            "with the unmerged ones. Save the adapter (trainer.save_model(folder), or save_pretrained in every "
            "process), load it in one process with LoRAModel.from_pretrained(folder), and merge it there."
        )


@contextmanager
def _merging(module: str) -> Iterator[None]:
    try:
        yield
    except (MergeError, ValueError) as error:
        raise MergeError(f"{module}: {error}") from None
