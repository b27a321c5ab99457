"""The stock Trainer under FSDP2 and DeepSpeed: a LoRAModel's checkpoint is what one process would write.

Transformers leaves the base out of such checkpoints only for PEFT's own class. Here the adapters are gathered whole,
and nothing else is. Under FSDP2 the optimizer's state is gathered too and written as one process writes it, so that
a training goes on with any number of processes; DeepSpeed writes its own partitions, without what is frozen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .patches import MARK
from .trained_model import for_lora, is_lora

__all__ = ["is_fsdp2", "load_partitions", "loads_optimizer", "prepares", "saves_optimizer", "saves_whole", "stand_in"]


def saves_whole(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer.save_model: under FSDP2 and DeepSpeed every process gathers the adapters, and one writes them."""

    @for_lora(original)
    def save_model(target: Any, self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not (is_fsdp2(self) or self.is_deepspeed_enabled):
            original(self, output_dir, _internal_call=_internal_call)
            return
        from ..model.saved_tensors import gather

        adapters = [gather(target, name) for name in target.peft_config]
        if self.args.should_save:  # older versions of Trainer._save leave that to their caller
            self._save(output_dir, state_dict={key: tensor for each in adapters for key, tensor in each.items()})
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    return save_model


def saves_optimizer(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._save_optimizer_and_scheduler: whole under FSDP2, without the frozen base under DeepSpeed."""

    @for_lora(original)
    def save_optimizer_and_scheduler(target: Any, self: Any, output_dir: str) -> None:
        if is_fsdp2(self):
            _save_whole(self, Path(output_dir))
        elif self.is_deepspeed_enabled:
            with _without_frozen(self.model_wrapped):
                original(self, output_dir)
        else:
            original(self, output_dir)

    return save_optimizer_and_scheduler


def loads_optimizer(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._load_optimizer_and_scheduler: FSDP2's shards are filled from what any number of processes wrote."""

    @for_lora(original)
    def load_optimizer_and_scheduler(target: Any, self: Any, checkpoint: str | None) -> None:
        if checkpoint is None or not is_fsdp2(self):
            original(self, checkpoint)
        else:
            _load_whole(self, Path(checkpoint))

    return load_optimizer_and_scheduler


def prepares(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap accelerate's Accelerator.prepare: under FSDP2 it looks at a LoRAModel's own weights.

    It tells tied embeddings by their weights being one object, which they are not where an adapter lives in the read;
    and an optimizer's parameters by their addresses, which empty ones (a new head, loaded lean) have not.
    """

    @functools.wraps(original)
    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for model in args if getattr(self, "is_fsdp2", False) else ():
                if is_lora(model):
                    stack.enter_context(model._lora.routed(()))
                    _make_distinct(model)
            return original(self, *args, **kwargs)

    return prepare


def stand_in(*args: Any, **kwargs: Any) -> Any:
    """Stand in for transformers' deepspeed_load_checkpoint."""
    from hf_lora.integrations.sharded import load_partitions

    return load_partitions(*args, **kwargs)


def load_partitions(deepspeed_engine: Any, checkpoint_path: str, load_module_strict: bool = True) -> None:
    """Call transformers' deepspeed_load_checkpoint; a LoRAModel's checkpoint need not hold its base."""
    strict = load_module_strict and not is_lora(deepspeed_engine.module)
    getattr(load_partitions, MARK)(deepspeed_engine, checkpoint_path, load_module_strict=strict)


def _make_distinct(model: Any) -> None:
    """Give what trains and is empty (on the meta device) an address each; its values come from the first process."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_meta:
            torch.utils.swap_tensors(parameter, torch.nn.Parameter(torch.zeros_like(parameter, device="cpu")))


@contextmanager
def _without_frozen(engine: Any) -> Iterator[None]:
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


def is_fsdp2(trainer: Any) -> bool:
    """Return whether a Trainer shards its model with FSDP2."""
    return bool(getattr(trainer.accelerator, "is_fsdp2", False))


def _save_whole(trainer: Any, folder: Path) -> None:
    """Write the optimizer's and the scheduler's state under the names, and in the form, of one process."""
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


def _load_whole(trainer: Any, folder: Path) -> None:
    """Read what `_save_whole`, or one process, wrote; nothing where only the model was saved, as was told before.

    Raises AdapterFileError where one half of it is not there.
    """
    import torch
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

    from ..errors import AdapterFileError
    from ..layers.distributed import is_spread, spread_like

    paths = folder / OPTIMIZER_NAME, folder / SCHEDULER_NAME
    missing = [path.name for path in paths if not path.is_file()]
    if len(missing) == 1:
        raise AdapterFileError(
            f"{folder} lacks {missing[0]}, so the training cannot go on from there as it was: another engine saved it. "
            "Start a training from its adapter instead: LoRAModel.from_pretrained(..., is_trainable=True)."
        )
    if missing:
        return
    state, schedule = (torch.load(path, map_location="cpu", weights_only=True) for path in paths)
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        for key, value in values.items():
            like = held[index]
            if isinstance(value, torch.Tensor) and value.shape == like.shape and value.ndim and is_spread(like):
                values[key] = spread_like(value, like)
    trainer.optimizer.load_state_dict(state)
    trainer.lr_scheduler.load_state_dict(schedule)
