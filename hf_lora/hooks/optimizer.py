"""The stock Trainer's optimizer: grouped by the model's learning rates, and holding every parameter that should train.

Whatever `optim=` says, the optimizer is built by Transformers first; its groups are split before it has a state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .marks import MARK
from .unwrapped import lora_model

__all__ = ["checks_optimizer", "checks_schedule"]


def checks_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.create_optimizer, which also hands out an optimizer that the user gave: that one is only checked."""

    @functools.wraps(original)
    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        fresh = self.optimizer is None
        optimizer = original(self, *args, **kwargs)
        model = lora_model(self, *args, **kwargs)
        if model is not None:
            _settle(self, model, fresh)
        return optimizer

    setattr(create_optimizer, MARK, original)
    return create_optimizer


def checks_schedule(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.create_scheduler: every optimizer passes here, also one of a subclass's own create_optimizer."""

    @functools.wraps(original)
    def create_scheduler(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = lora_model(self)
        if model is not None and self.optimizer is not None:
            _settle(self, model, fresh=False)
        return original(self, *args, **kwargs)

    setattr(create_scheduler, MARK, original)
    return create_scheduler


def _settle(trainer: Any, model: Any, fresh: bool) -> None:
    """Group a fresh optimizer, check any, and see to it that it is checked again when adapters were switched."""
    from ..groups import regroup  # not above: they import torch, which `import hf_lora` leaves alone
    from ..training import check_optimizer

    watch = trainer.__dict__.get("_hf_lora_watch")
    if _is_out_of_sight(trainer, model):
        if model._lora.rates and (watch is None or watch.rates != model._lora.rates):
            raise ConfigError(
                f"{model._lora.rates}: with {type(trainer.optimizer).__name__} the parameters cannot be told apart, so "
                "none would get a rate of its own. Use another optimizer, or call set_learning_rates()."
            )
        return
    if fresh:
        regroup(model, trainer.optimizer)
    check_optimizer(model, trainer.optimizer)
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate's is around it
    if watch is None or watch.optimizer is not inner:
        watch = trainer._hf_lora_watch = _Watch(trainer, model, inner, grouped=fresh)
        inner.register_step_pre_hook(watch)
    watch.check_same_rates()


def _is_out_of_sight(trainer: Any, model: Any) -> bool:
    """Return whether the optimizer holds other objects than the model's parameters.

    Dummies of the layer-wise optimizers, or flat pieces of several parameters (FSDP1, DeepSpeed).
    """
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    from ..training import held_by

    optimizer = trainer.optimizer
    if isinstance(getattr(optimizer, "optimizer", optimizer), LayerWiseDummyOptimizer):
        return True
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return sharded and not held_by(optimizer) & {id(p) for p in model.parameters()}


class _Watch:
    """Checks an optimizer again before its first step, when a checkpoint's groups are in it, and after each switch."""

    def __init__(self, trainer: Any, model: Any, optimizer: Any, grouped: bool) -> None:
        self.trainer, self.model, self.optimizer = trainer, model, optimizer
        self.rates = model._lora.rates if grouped else None
        self.seen: tuple[object, ...] = ()

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        from ..training import check_optimizer

        state = self.model._lora
        now = (state.selected, state.enabled, state.merged, len(state.configs), state.rates)
        if now != self.seen and not _is_out_of_sight(self.trainer, self.model):
            check_optimizer(self.model, optimizer)
            self.check_same_rates()
        self.seen = now

    def check_same_rates(self) -> None:
        """Raise ConfigError where the model's rates are no longer those that its optimizer was grouped by."""
        if self.rates is not None and self.rates != self.model._lora.rates:
            raise ConfigError(
                f"the optimizer was built for {self.rates or 'one learning rate'} and the model was given "
                f"{self.model._lora.rates or 'one learning rate'} since; trainer.optimizer = None before train() lets "
                "the Trainer build a new one."
            )
