"""The methods of Transformers' Trainer that a Trainer of a LoRAModel overrides; a plain Trainer has its own.

One row for each thing that ours does there; of several rows with one name, a later one stands around those before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import sharded, trainer
from .checkpoints import saves_whole
from .measuring import prepares_metrics
from .missing import Need
from .optimizer import checks_optimizer, checks_schedule, notes_steps
from .resuming import resumes_whole
from .searching import checks_drawn, search_of
from .starting import checks_start, tells_what_is_missing
from .trackers import reports_scalars
from .trained_model import is_metrics

__all__ = ["METHODS", "Override"]


@dataclass(frozen=True)
class Override(Need):
    """A method of the Trainer. wrap: takes the one it is called instead of, and returns ours."""

    name: str
    wrap: Callable[[Any], Any]

    @property
    def place(self) -> str:
        """The dotted name of the method."""
        return f"transformers.trainer.Trainer.{self.name}"


def _always(trainer: Any, resumes: bool) -> bool:
    return True


def _resumes(trainer: Any, resumes: bool) -> bool:
    return resumes


def _ends_with_the_best(trainer: Any, resumes: bool) -> bool:
    return bool(trainer.args.load_best_model_at_end)


def _is_sharded(trainer: Any, resumes: bool) -> bool:
    return sharded.is_fsdp2(trainer) or bool(trainer.is_deepspeed_enabled)


def _resumes_sharded(trainer: Any, resumes: bool) -> bool:
    return resumes and sharded.is_fsdp2(trainer)


def _pushes(trainer: Any, resumes: bool) -> bool:
    return bool(trainer.args.push_to_hub)


def _measures(trainer: Any, resumes: bool) -> bool:
    return is_metrics(trainer.compute_metrics)


def _searches(trainer: Any, resumes: bool) -> bool:
    return search_of(trainer) is not None


def _row(name: str, wrap: Any, purpose: str, needed: Any = _always, required: bool = False) -> Override:
    return Override(name, wrap, purpose=purpose, required=required, needed=needed)


def _must(name: str, wrap: Any, purpose: str, needed: Any = _always) -> Override:
    return _row(name, wrap, purpose, needed, required=True)


METHODS: tuple[Override, ...] = (
    _must("train", resumes_whole, "to resume from whole checkpoints only"),
    _row("train", trainer.finishes_pushes, "to finish the pushes of a training, and to tell which failed", _pushes),
    _row("_hp_search_setup", checks_drawn, "to check what a trial of a LoRASearch drew", _searches),
    _row("train", tells_what_is_missing, "to say what else is missing"),
    _row("set_initial_training_values", checks_start, "to refuse an adapter that cannot train before it is trained"),
    _must("create_optimizer", checks_optimizer, "to give adapters their learning rates, and to see that all train"),
    _row("create_scheduler", checks_schedule, "to check an optimizer that the Trainer did not build"),
    _must("evaluation_loop", prepares_metrics, "to measure with hf_lora's metrics", _measures),
    _row("log", reports_scalars, "to report the adapters' norms to the trackers"),
    _must("_load_from_checkpoint", trainer.resumes, "to read a checkpoint's adapters", _resumes),
    _must("_load_best_model", trainer.loads_best, "load_best_model_at_end=True", _ends_with_the_best),
    _row("_save_checkpoint", saves_whole, "to have each checkpoint whole, or not at all, also after a kill"),
    _must("save_model", sharded.saves_whole, "to save adapters under FSDP2 and DeepSpeed", _is_sharded),
    _row("save_model", notes_steps, "to find an adapter that training left at zero"),
    _must("_save_optimizer_and_scheduler", sharded.saves_optimizer, "checkpoints under FSDP2, DeepSpeed", _is_sharded),
    _must("_load_optimizer_and_scheduler", sharded.loads_optimizer, "to resume under FSDP2", _resumes_sharded),
    _row("init_hf_repo", trainer.checks_base, "to refuse a base nobody else can load before training", _pushes),
    _row("create_model_card", trainer.writes_card, "to write the adapter's card"),
    _must("push_to_hub", trainer.pushes, "to push the adapter and nothing private beside it", _pushes),
    _must("_push_from_checkpoint", trainer.pushes_checkpoint, "to push no more of a checkpoint than that", _pushes),
)
