"""Which adapters a LoRAModel uses: chosen, switched off, for a block or for good; and whether anything would train."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import AdapterStateError
from ..layers.state import AdapterState
from ..training.ready import why_nothing_trains
from . import adapters

__all__ = ["Switching"]


class Switching(nn.Module):
    """What a LoRAModel does about its active adapters."""

    _lora: AdapterState

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Use these adapters, summed where there are several, and no other."""
        adapters.select(self._lora, [adapter_name] if isinstance(adapter_name, str) else list(adapter_name))

    def active_adapters(self) -> list[str]:
        """Return the names of the adapters in use (while enabled)."""
        return list(self._lora.selected)

    def disable_adapters(self) -> None:
        """Compute as the base alone, bit for bit. Raises AdapterStateError while merged, and inside adapters_active."""
        self._refuse_while_merged("disable_adapters")
        self._lora.refuse_in_own_block("disable_adapters", "use `with model.adapters_disabled()`")
        self._lora.enable(False)

    def enable_adapters(self) -> None:
        """Use the active adapters again."""
        self._lora.enable(True)

    @contextmanager
    def adapters_disabled(self) -> Iterator[None]:
        """Compute as the base alone inside a `with` block."""
        before = self._lora.enabled
        self._refuse_while_merged("adapters_disabled")
        self._lora.enable(False)
        try:
            with self._lora.set_aside():
                yield
        finally:
            self._lora.enable(before)

    @contextmanager
    def adapters_active(self, adapter_names: str | Sequence[str]) -> Iterator[None]:
        """Use these adapters inside a `with` block, in this thread (or asyncio task) only: others never see it.

        For inference; a training step would need the same adapters in its backward pass, which may run in another
        thread: there set_adapter() is the way. Raises AdapterStateError in training mode and while merged.
        """
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
        self._refuse_while_merged("adapters_active")
        adapters.check_known(self._lora, names)
        adapters.check_together(self._lora, names)
        if self.training and torch.is_grad_enabled():
            raise AdapterStateError("adapters_active() is for inference: call eval(), or set_adapter() to train.")
        with self._lora.routed(names):
            yield

    def train(self, mode: bool = True) -> Any:
        """Switch training mode on or off, as on any module.

        Raises AdapterStateError where gradients are on and nothing would get one: what torch says of it, at the first
        backward pass, names neither the cause nor the fix. As a part of another module it only follows that: what
        trains may lie outside (a head on a frozen encoder, a teacher beside its student).
        """
        of_another = sys._getframe(1).f_code is nn.Module.train.__code__
        if mode and not of_another and torch.is_grad_enabled() and self._lora.configs:
            self._refuse_while_merged("train")
            if not any(p.requires_grad for p in self.parameters()):
                raise AdapterStateError(why_nothing_trains(self._lora))
        return super().train(mode)

    def _refuse_while_merged(self, what: str) -> None:
        if self._lora.merged:
            raise AdapterStateError(
                f"{what}: {list(self._lora.merged)} are merged into the weights; call unmerge_adapter() first."
            )
