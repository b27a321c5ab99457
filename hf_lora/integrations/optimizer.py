"""The stock Trainer's optimizer: grouped by the model's learning rates, and holding every parameter that should train.

Whatever `optim=` says, the optimizer is built by Transformers first; its groups are split before it has a state.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .trained_model import for_lora, lora_model

__all__ = ["checks_optimizer", "checks_schedule", "notes_steps"]


def checks_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.create_optimizer, which also hands out an optimizer that the user gave: that one is only checked."""

    @functools.wraps(original)
    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        fresh, decays = self.optimizer is None, _decays_by_name(self)
        optimizer = original(self, *args, **kwargs)
        model = lora_model(self, *args, **kwargs)
        if model is not None:
            _settle(self, model, fresh, decays)
        else:
            _settle_around(self, fresh, decays)
        return optimizer

    return create_optimizer


def checks_schedule(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.create_scheduler: every optimizer passes here, also one of a subclass's own create_optimizer."""

    @functools.wraps(original)
    def create_scheduler(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = lora_model(self)
        if self.optimizer is not None and model is not None:
            _settle(self, model, fresh=False)
        elif self.optimizer is not None:
            _settle_around(self, fresh=False)
        _note_start(self)
        return original(self, *args, **kwargs)

    return create_scheduler


def notes_steps(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer.save_model: adapters learn how many steps were taken, so that one left at zero is found out there.

    Fused optimizers, the Trainer's default, leave no other trace: they do not count as writing to a parameter.
    """

    @for_lora(original)
    def save_model(target: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        if self.optimizer is not None:
            from ..training.optimizer import held_by

            held = held_by(self.optimizer)
            for layer in target._lora.layers.values():
                for name in target._lora.configs:
                    for adapter in layer.carried(name).values():
                        if any(id(p) in held for p in adapter.parameters()):
                            adapter.note_steps(self.state.global_step)
        original(self, *args, **kwargs)

    return save_model


def _decays_by_name(trainer: Any) -> bool:
    """Return whether Transformers' rule by names decides what decays, and no choice of the user's own."""
    from torch.optim import Optimizer
    from transformers import Trainer

    given = trainer.optimizer_cls_and_kwargs  # a class with groups, or a factory that makes its own
    made_so = given is None or (isinstance(given[0], type) and issubclass(given[0], Optimizer))
    grouped = not made_so or (given is not None and "params" in given[1])
    return not grouped and type(trainer).get_decay_parameter_names is Trainer.get_decay_parameter_names


def _settle_around(trainer: Any, fresh: bool, decays: bool = True) -> None:
    """Have the rates of LoRAModels inside the trained module followed; its optimizer is its owner's otherwise."""
    rates, model, optimizer = _rates(trainer), trainer.model, trainer.optimizer
    if not any(rates) or (len(rates) > 1 and not fresh):  # several that differ: whoever built it grouped for each
        return
    from ..training.groups import check_rates, regroup

    if _is_out_of_sight(trainer, model):
        raise _cannot_tell_apart(" and ".join(map(str, rates)), optimizer)
    if fresh:
        regroup(model, optimizer, decays)
    check_rates(model, optimizer)


def _note_start(trainer: Any) -> None:
    """Note the rates that groups start with, as schedules do, but for ReduceLROnPlateau, which moves them as well."""
    if any(_rates(trainer)):
        for group in getattr(trainer.optimizer, "param_groups", ()):
            rate = group.get("lr")
            group.setdefault("initial_lr", rate.clone() if hasattr(rate, "clone") else rate)


def _rates(trainer: Any) -> set[Any]:
    """Return the learning rates that were set on the LoRAModels in what is trained."""
    if "hf_lora.layers.layer" not in sys.modules:  # nobody made one
        return set()
    from ..training.ready import states_of

    return {state.rates for state in states_of(trainer.model)}


def _cannot_tell_apart(rates: Any, optimizer: Any) -> ConfigError:
    return ConfigError(
        f"{rates}: with {type(optimizer).__name__} the parameters cannot be told apart, so none would get a rate of "
        "its own. Use another optimizer, or call set_learning_rates()."
    )


def _settle(trainer: Any, model: Any, fresh: bool, decays: bool = True) -> None:
    """Group a fresh optimizer, check any, and see to it that it is checked again when adapters were switched."""
    from ..training.groups import regroup  # not above: they import torch, which `import hf_lora` leaves alone
    from ..training.optimizer import check_optimizer

    watch = trainer.__dict__.get("_hf_lora_watch")
    if _is_out_of_sight(trainer, model):
        if model._lora.rates and (watch is None or watch.rates != model._lora.rates):
            raise _cannot_tell_apart(model._lora.rates, trainer.optimizer)
        return
    if fresh:
        regroup(model, trainer.optimizer, decays)
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

    from ..training.optimizer import held_by

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
        from ..training.optimizer import check_optimizer

        state = self.model._lora
        now = (state.selected, state.is_off, state.merged, len(state.configs), state.rates)
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
