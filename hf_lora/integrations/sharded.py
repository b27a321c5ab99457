"""The stock Trainer under FSDP2 and DeepSpeed: a LoRAModel's checkpoint is what one process would write.

Transformers leaves the base out of such checkpoints only for PEFT's own class. Here the adapters are gathered whole,
and nothing else is. Under FSDP2 the optimizer's state is gathered too and written as one process writes it, so that
a training goes on with any number of processes; DeepSpeed writes its own partitions, without what is frozen.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import AdapterStateError
from ..model.hooks import around
from .trained_model import is_lora


def is_fsdp2(trainer: Any) -> bool:
    """Return whether a Trainer shards its model with FSDP2."""
    return bool(getattr(trainer.accelerator, "is_fsdp2", False))


def is_sharded(trainer: Any) -> bool:
    """Return whether a Trainer's processes hold pieces of the adapters, which have to be gathered."""
    return is_fsdp2(trainer) or bool(trainer.is_deepspeed_enabled)


def gathered(model: Any) -> dict[str, Any]:
    """Return the tensors of all adapters, whole; every process has to ask."""
    from ..model.saved_tensors import gather

    return {key: tensor for name in model.peft_config for key, tensor in gather(model, name).items()}


@around
def prepares(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap accelerate's Accelerator.prepare: under FSDP2 it looks at a LoRAModel's own weights.

    It tells tied embeddings by their weights being one object, which they are not where an adapter lives in the read;
    and an optimizer's parameters by their addresses, which empty ones (a new head, loaded lean) have not.
    """
    with ExitStack() as stack:
        for model in args if getattr(self, "is_fsdp2", False) else ():
            if is_lora(model):
                _refuse_shared(model)
                stack.enter_context(model._lora.routed(()))
                _make_distinct(model)
        return original(self, *args, **kwargs)


def _refuse_shared(model: Any) -> None:
    """Raise AdapterStateError where layers share tensors: FSDP2 cuts each layer by itself."""
    for module, _, _, adapter in model._lora.carried(*model._lora.configs):
        if adapter.shared():
            raise AdapterStateError(
                f"{module} shares {' and '.join(adapter.shared())} with other layers ({adapter.row.title}), and FSDP2 "
                "gives each layer pieces of its own. Train it on one device or with DistributedDataParallel, or train "
                "an adapter that shares nothing."
            )


def _make_distinct(model: Any) -> None:
    """Give what trains and is empty (on the meta device) an address each; its values come from the first process."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_meta:
            torch.utils.swap_tensors(parameter, torch.nn.Parameter(torch.zeros_like(parameter, device="cpu")))


@around
def loads_partitions(
    original: Callable[..., Any], deepspeed_engine: Any, checkpoint_path: str, load_module_strict: bool = True
) -> None:
    """Wrap Transformers' deepspeed_load_checkpoint: a LoRAModel's checkpoint need not hold its base."""
    strict = load_module_strict and not is_lora(deepspeed_engine.module)
    original(deepspeed_engine, checkpoint_path, load_module_strict=strict)


@contextmanager
def unfrozen(engine: Any) -> Iterator[None]:
    """Let DeepSpeed's engine leave frozen weights out of what it saves, tied ones under each of their names."""
    frozen = {name for name, p in engine.module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    own = engine.module_state_dict

    def module_state_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: tensor for name, tensor in own(*args, **kwargs).items() if name not in frozen}

    engine.module_state_dict = module_state_dict
    engine.save_checkpoint = functools.partial(engine.save_checkpoint, exclude_frozen_parameters=True)
    try:
        yield
    finally:
        del engine.module_state_dict, engine.save_checkpoint


def save_whole(trainer: Any, folder: Path) -> None:
    """Write FSDP2's optimizer and schedule under the names, and in the form, of one process."""
    import torch
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

    from ..layers.distributed import whole

    state = trainer.optimizer.state_dict()
    state["state"] = {
        index: {key: whole(value) if isinstance(value, torch.Tensor) else value for key, value in values.items()}
        for index, values in state["state"].items()
    }
    if trainer.args.should_save:
        torch.save(state, folder / OPTIMIZER_NAME)
        torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)


def load_whole(trainer: Any, folder: Path) -> None:
    """Fill FSDP2's shards from what `save_whole`, or one process, wrote; where nothing is, they start anew.

    Half of it is no whole checkpoint, which `resuming` refuses.
    """
    import torch
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

    from ..layers.distributed import is_spread, spread_like

    if not (folder / OPTIMIZER_NAME).is_file():
        return
    read = functools.partial(torch.load, map_location="cpu", weights_only=True)
    state = read(folder / OPTIMIZER_NAME)
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        for key, value in values.items():
            like = held[index]
            if isinstance(value, torch.Tensor) and value.shape == like.shape and value.ndim and is_spread(like):
                values[key] = spread_like(value, like)
    trainer.optimizer.load_state_dict(state)
    trainer.lr_scheduler.load_state_dict(read(folder / SCHEDULER_NAME))
