"""TRL's Trainers with a LoRAModel: what they do to a model past its modules is done for its adapters, or refused.

TRL reads the output head's weight instead of calling it, knows dropout only as a module, and hands the weights to vLLM
by their names. How the Trainers are made is in `trl_making.py`.
"""

import functools
from collections.abc import Iterator
from typing import Any

from ..errors import ModelError
from .trained_model import contains_lora

_READS = ("add_fused_lm_head", "get_output_embeddings", "lm_head.weight")  # in the source of what reads the head


def is_trl(cls: type) -> bool:
    """Return whether a Trainer's class is TRL's, or below one of them."""
    return any(each.__module__.startswith("trl.") for each in cls.__mro__)


def check(cls: type, model: Any, args: Any) -> None:
    """Make a model fit for a Trainer of a class, before its first line.

    Adapters on the output head move into its weight where the Trainer reads that instead of calling the head. Raises
    TargetError where they cannot, and ModelError where vLLM would be given the weights without them.
    """
    if not contains_lora(model):
        return
    if is_trl(cls) and getattr(args, "use_vllm", False):
        raise ModelError(
            "use_vllm=True: TRL gives vLLM the base's weights, without hf_lora's adapters. Set use_vllm=False."
        )
    if getattr(args, "use_liger_kernel", False) or _reads_head(cls):
        _put_head_in_read(model, args)


def disable_dropout(model: Any, args: Any) -> None:
    """Do for adapters what `disable_dropout=True` of TRL's arguments does for modules."""
    from ..variants.adapter import Adapter

    for module in model.modules() if getattr(args, "disable_dropout", False) else ():
        if isinstance(module, Adapter):
            module.drop_nothing()


@functools.cache
def _reads_head(cls: type) -> bool:
    """Return whether a Trainer of TRL's computes with the weight of the output head; true where its source is gone."""
    from ..targets.source import text_of

    texts = [text_of(each.__module__) for each in cls.__mro__ if each.__module__.startswith("trl.")]
    return any(text is None or name in text for text in texts for name in _READS)


def _put_head_in_read(model: Any, args: Any) -> None:
    from ..errors import TargetError
    from ..layers.layer import LoRALayer, put_in_read

    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, LoRALayer) or not head._steps.has_behind:
        return
    for name in head.adapters:
        for why in _obstacles(head, name, args):
            raise TargetError(
                f"this Trainer reads the weight of the output head instead of calling it, and {why} the adapter "
                f"{name!r} cannot act in the weight. Change that, or leave the head out of target_modules (the token "
                "embeddings as well, if they are tied to it)."
            )
    put_in_read(head)


def _obstacles(head: Any, name: str, args: Any) -> Iterator[str]:
    from ..kinds.table import KINDS

    for adapter in head.carried(name).values():
        if getattr(adapter, "dropout", 0.0) and not getattr(args, "disable_dropout", False):
            yield f"with lora_dropout={adapter.dropout}"
        if adapter.changes_bias:
            yield "with lora_bias=True"
        if adapter.low_rank and KINDS[adapter.kind].is_quantised:
            yield "on a quantised head"
