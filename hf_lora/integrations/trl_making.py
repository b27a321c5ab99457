"""How TRL's Trainers are made with a LoRAModel: the reference is the policy itself, `peft_config=` takes a LoRAConfig.

Every Trainer of TRL's is made in a constructor of its own, which loads the policy by its name, and loads or copies it
once more for the reference. While one is made with a LoRAModel, the second model is the first one without its adapters,
or with a copy of them (`training/reference.py`). A model that the user names, such as a teacher, is loaded as ever.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelError
from ..layers.specialising import is_a
from ..model.hooks import around
from .trained_model import contains_lora

_MAKERS = ("create_model_from_path", "create_reference_model")  # what TRL's modules get a second model from
_SECOND = ("ref_model", "teacher_model")  # where their Trainers keep it


@dataclass
class _Making:
    """A Trainer that is being made: what its constructors were given by name, and the config of an adapter to add."""

    trainer: Any
    given: dict[str, Any] = field(default_factory=dict)
    config: Any = None

    def add_adapter(self, model: Any) -> None:
        """Add the adapter that `peft_config=` asks for to a model, once."""
        from ..model.lora_model import LoRAModel

        config, self.config = self.config, None
        if config.task_type is None and type(model).__name__.endswith("ForSequenceClassification"):
            config = config.copy(task_type="SEQ_CLS")  # its new head trains, and is saved
        LoRAModel.from_model(model, config)

    def is_named(self, model: Any) -> bool:
        """Return whether the user names a model, other than the one that is trained."""
        named = [value for key, value in self.given.items() if key != "model"]
        return isinstance(model, str) and any(model == each or _holds(each, model) for each in named)


_MAKING: ContextVar[_Making | None] = ContextVar("hf_lora_trl_making", default=None)


def prepares_classes(base: Any) -> Any:
    """Prepare the Trainers of TRL's that are there, and those that are defined later; `base` is the class of all."""

    def __init_subclass__(cls: type, **kwargs: Any) -> None:
        super(base, cls).__init_subclass__(**kwargs)
        _prepare(cls)

    for cls in _below(base):
        _prepare(cls)
    base.__init_subclass__ = classmethod(__init_subclass__)
    return base


def adapted(model: Any) -> Any:
    """Return the model that a Trainer is to train, with the adapter that was asked for by `peft_config=`."""
    making = _MAKING.get()
    if making is not None and making.config is not None and hasattr(model, "modules"):
        making.add_adapter(model)
    return model


def _below(cls: type) -> Iterator[type]:
    subs: list[type] = type.__subclasses__(cls)
    for sub in subs:
        yield sub
        yield from _below(sub)


def _prepare(cls: type) -> None:
    if "__init__" in vars(cls):
        cls.__init__ = _makes(vars(cls)["__init__"])  # type: ignore[misc]
    module = sys.modules.get(cls.__module__)
    for name in _MAKERS if cls.__module__.startswith("trl.") else ():
        maker = getattr(module, name, None)
        if maker is not None and not hasattr(maker, "__wrapped__"):
            setattr(module, name, _refers(maker))


@around
def _makes(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """Wrap the constructor of a Trainer: what makes a second model meanwhile knows what it is for."""
    signature = inspect.signature(original)
    bound = signature.bind(self, *args, **kwargs)
    outer = _MAKING.get()
    making = outer if outer is not None and outer.trainer is self else _Making(self)
    making.given |= {key: value for key, value in bound.arguments.items() if value is not None}
    wants = is_a(bound.arguments.get("peft_config"), "hf_lora.config.lora_config", "LoRAConfig")
    if "weight_transfer" in signature.parameters and (wants or contains_lora(bound.arguments.get("model"))):
        raise ModelError(
            f"{type(self).__name__} generates in a server of vLLM's, which TRL gives the base's weights, without "
            "hf_lora's adapters. Use GRPOTrainer or DistillationTrainer."
        )
    if wants:
        _take_config(making, bound.arguments)
    token = _MAKING.set(making)
    try:
        original(*bound.args, **bound.kwargs)
    finally:
        _MAKING.reset(token)
    if making is not outer:
        _check_made(making)


def _take_config(making: _Making, arguments: dict[str, Any]) -> None:
    """Take over `peft_config=LoRAConfig(...)`: of a model that is there at once, of a name when it is loaded."""
    making.config, arguments["peft_config"] = arguments["peft_config"], None
    model = arguments.get("model")
    if contains_lora(model):
        raise ModelError(
            "the model has adapters already, so peft_config= has no place: leave it out, or add another adapter with "
            "model.add_adapter(config, 'name')."
        )
    adapted_now = not isinstance(model, str) and hasattr(model, "modules")
    if adapted_now:
        making.add_adapter(model)


@around
def _refers(original: Callable[..., Any], given: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap what makes a model of a name or of another model: a second one of a LoRAModel is its reference."""
    making = _MAKING.get()
    if making is None or making.is_named(given):
        return original(given, *args, **kwargs)
    policy = vars(making.trainer).get("model") if isinstance(given, str) else adapted(given)
    if not contains_lora(policy):  # not there yet, or without adapters
        return original(given, *args, **kwargs)
    return _reference(policy, making.given.get("args") or getattr(making.trainer, "args", None))


def _reference(model: Any, args: Any) -> Any:
    """Return the reference of a model that has adapters. Raises ModelError where it would have to be another model."""
    from ..training.reference import Reference

    shards = os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if shards or getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
        raise ModelError(
            "under FSDP and DeepSpeed the reference has to be a model of its own: pass ref_model=, the base without "
            "adapters, where this Trainer takes one, or set beta=0."
        )
    if getattr(args, "sync_ref_model", False):
        raise ModelError(
            "sync_ref_model=True moves the reference, which is the model itself as it was before: pass ref_model=, or "
            "set sync_ref_model=False."
        )
    if getattr(args, "teacher_model_kind", None) == "ema":
        raise ModelError(
            "teacher_model_kind='ema' moves the teacher, which is the model itself as it was before: use 'live' or "
            "'base'."
        )
    return Reference(model)


def _check_made(making: _Making) -> None:
    """Raise ModelError where a Trainer of a LoRAModel holds a second model that nobody gave it."""
    trainer = making.trainer
    if not contains_lora(getattr(trainer, "model", None)):
        return
    for name in _SECOND:
        second = vars(trainer).get(name)
        is_known = second is None or second is trainer.model or name in making.given
        if not is_known and not is_a(second, "hf_lora.training.reference", "Reference") and list(second.parameters()):
            raise ModelError(
                f"this {type(trainer).__name__} made a model of its own as its {name}, which need not be what the "
                f"LoRAModel is to be compared with: pass {name}=, if it takes one."
            )


def _holds(value: Any, model: str) -> bool:
    """Return whether a list of names, or what a Trainer's arguments say of teachers and rewards, holds a name."""
    if isinstance(value, (list, tuple)):
        return model in [each for each in value if isinstance(each, str)]
    fields: Mapping[str, Any] = getattr(value, "__dict__", {}) if hasattr(value, "output_dir") else {}
    return any(each == model for key, each in fields.items() if "teacher" in key or "reward" in key)
