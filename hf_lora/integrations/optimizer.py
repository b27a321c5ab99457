"""What the stock Trainer trains: a model that can, and an optimizer of every parameter that should, by its rates.

Whatever `optim=` says, the optimizer is built by Transformers first; its groups are split before it has a state.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from ..errors import AdapterStateError, ConfigError
from ..model.vocabulary import warn_of_tokens
from ..training.groups import check_optimizer, check_rates, held_by, regroup
from ..training.ready import check_ready, states_of, widen_masters
from .trained_model import lora_model


class OptimizerCheck(TrainerCallback):
    """Checks a Trainer's optimizer before the first step, when a checkpoint is in it, and after adapters were switched.

    By then every optimizer is there, also one that was given, or built by a subclass.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.seen: list[Any] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Check, and note the rates that groups start with: ReduceLROnPlateau moves them and notes nothing."""
        settle(self.trainer)
        for group in getattr(self.trainer.optimizer, "param_groups", ()):
            rate = group.get("lr")
            group.setdefault("initial_lr", rate.clone() if hasattr(rate, "clone") else rate)
        self.seen = self._now()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Check again where what trains is no longer what it was at the last step."""
        if (now := self._now()) != self.seen:
            settle(self.trainer)
        self.seen = now

    def _now(self) -> list[Any]:
        states = states_of(self.trainer.model)
        return [(s.selected, s.is_off, s.merged, len(s.configs), s.rates) for s in states]


def check_start(trainer: Any, model: Any) -> None:
    """Raise AdapterStateError where a model would not train, or FSDP1 would flatten adapters and frozen weights."""
    check_ready(model)
    data = trainer.train_dataset
    first = data[0] if isinstance(data, list) and data else {}
    names = getattr(data, "column_names", None) or (first if isinstance(first, Mapping) else ())
    if "adapter_names" in names and trainer.args.remove_unused_columns:  # all rows would train what is selected
        raise AdapterStateError(
            "the column 'adapter_names' of train_dataset would be left out: set remove_unused_columns=False, and have "
            "a data_collator put the list of them into the batch. train_together trains each adapter on its own data."
        )
    warn_of_tokens(model, trainer.processing_class)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None) if trainer.is_fsdp_enabled else None
    if getattr(plugin, "fsdp_version", 1) == 1 and getattr(plugin, "use_orig_params", None) is False:
        raise AdapterStateError(
            "FSDP1 with use_orig_params=False flattens the weights of a layer into one, which must train as a whole or "
            "not at all; adapters train beside frozen weights. Use FSDP2 (fsdp_config={'version': 2}, or fsdp_version: "
            "2 for accelerate), or use_orig_params=True."
        )
    widen(trainer, model)


def widen(trainer: Any, model: Any) -> None:
    """Make half-precision masters float32 with a warning, except where an engine keeps its own or wants one dtype."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled) and (count := widen_masters(model)):
        warnings.warn(
            f"{count} adapter weights that train were in half precision, where small steps are lost and fp16 "
            "training fails; they are float32 now, as hf_lora makes them. To have only the base in half "
            "precision, load it with dtype= instead of casting the model with half(), bfloat16() or to().",
            stacklevel=3,
        )


def settle(trainer: Any, fresh: bool = False, decays: bool = True) -> None:
    """Group a fresh optimizer by the model's learning rates, and check any.

    Where LoRAModels are inside the trained module, their rates have to be followed; the rest is its owner's.
    decays: whether weight decay goes by what a parameter is. Raises AdapterStateError, ConfigError.
    """
    target, optimizer = lora_model(trainer), trainer.optimizer
    model = trainer.model if target is None else target
    rates = {state.rates for state in states_of(model)}
    if target is None and (not any(rates) or (len(rates) > 1 and not fresh)):
        return  # several that differ: whoever built it grouped for each
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's is around it
    grouped, before = trainer.__dict__.get("_hf_lora_grouped", (None, None))
    if _is_out_of_sight(trainer, model, inner):
        if any(rates) and before != rates:
            raise ConfigError(
                f"{_told(rates)}: with {type(optimizer).__name__} the parameters cannot be told apart, so none would "
                "get a rate of its own. Use another optimizer, or call set_learning_rates()."
            )
        return
    if fresh:
        regroup(model, optimizer, decays)
        grouped, before = trainer._hf_lora_grouped = inner, rates
    (check_rates if target is None else check_optimizer)(model, optimizer)
    if grouped is inner and before != rates:
        raise ConfigError(
            f"the optimizer was built for {_told(before)} and the model was given {_told(rates)} since; "
            "trainer.optimizer = None before train() lets the Trainer build a new one."
        )


def decays_by_name(trainer: Any) -> bool:
    """Return whether Transformers' rule by names decides what decays, and no choice of the user's own."""
    from torch.optim import Optimizer
    from transformers import Trainer

    if type(trainer).get_decay_parameter_names is not Trainer.get_decay_parameter_names:
        return False
    if trainer.optimizer_cls_and_kwargs is None:
        return True
    made_by, options = trainer.optimizer_cls_and_kwargs  # a factory, which is no class, makes groups of its own
    return isinstance(made_by, type) and issubclass(made_by, Optimizer) and "params" not in options


def note_steps(trainer: Any, model: Any) -> None:
    """Tell adapters how many steps were taken, so that one left at zero is found out when it is saved.

    Fused optimizers, the Trainer's default, leave no other trace: they do not count as writing to a parameter.
    """
    held = held_by(trainer.optimizer) if trainer.optimizer is not None else set()
    for each in model._lora.carried(*model._lora.configs):
        if any(id(p) in held for p in each.adapter.parameters()):
            each.adapter.note_steps(trainer.state.global_step)


def _is_out_of_sight(trainer: Any, model: Any, optimizer: Any) -> bool:
    """Return whether the optimizer holds other objects than the model's parameters."""
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    if isinstance(optimizer, LayerWiseDummyOptimizer):
        return True
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return sharded and not held_by(optimizer) & {id(p) for p in model.parameters()}


def _told(rates: Any) -> str:
    return " and ".join(str(each) for each in rates if each) or "one learning rate"
