"""The only folder that reaches into Transformers (and TRL): `loading.py`, `pipelines.py`, the Trainer in `trainer.py`.

Each patch waits until its module is imported, is applied once, touches only calls that concern LoRA (a `lora_config`
argument, the name of an adapter where PEFT is not installed, a LoRAModel instance), and is taken back by `uninstall`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

from . import sharded, trainer
from .checkpoints import saves_whole
from .loading import finds_adapters, takes_lora_config
from .measuring import prepares_metrics
from .mistakes import checks_start, refuses_lora_models
from .optimizer import checks_optimizer, checks_schedule
from .patches import Function, Method
from .pipelines import call_pipeline, stand_in
from .preferences import refers_to_base, trains_adapters
from .resizing import notes_new_rows
from .resuming import resumes_whole
from .scalars import reports_scalars
from .searching import checks_drawn
from .steps import notes_steps

__all__ = ["install", "uninstall"]

# module -> what is patched in it; a missing class, method or function is an error that says so.
_PATCHES: dict[str, list[Method | Function]] = {
    "peft.tuners.tuners_utils": [Method("BaseTuner", "inject_adapter", refuses_lora_models)],
    "transformers.modeling_utils": [
        Method("PreTrainedModel", "from_pretrained", takes_lora_config),
        Method("PreTrainedModel", "resize_token_embeddings", notes_new_rows),
    ],
    "transformers.models.auto.modeling_auto": [
        Method("_BaseAutoModelClass", "from_pretrained", finds_adapters, below=True)
    ],
    "accelerate.accelerator": [Method("Accelerator", "prepare", sharded.prepares)],
    "transformers.integrations.deepspeed": [
        Function("deepspeed_load_checkpoint", sharded.stand_in, sharded.load_partitions)
    ],
    "transformers.pipelines": [Function("pipeline", stand_in, call_pipeline)],
    "transformers.trainer": [
        Method("Trainer", "_load_from_checkpoint", trainer.resumes),
        Method("Trainer", "_load_best_model", trainer.loads_best),
        Method("Trainer", "train", resumes_whole),
        Method("Trainer", "_save_checkpoint", saves_whole),
        Method("Trainer", "create_optimizer", checks_optimizer),
        Method("Trainer", "evaluation_loop", prepares_metrics),
        Method("Trainer", "create_scheduler", checks_schedule),
        Method("Trainer", "_inner_training_loop", checks_start),
        Method("Trainer", "_save", notes_steps),
        Method("Trainer", "save_model", sharded.saves_whole),
        Method("Trainer", "_save_optimizer_and_scheduler", sharded.saves_optimizer),
        Method("Trainer", "_load_optimizer_and_scheduler", sharded.loads_optimizer),
        Method("Trainer", "log", reports_scalars),
        Method("Trainer", "_hp_search_setup", checks_drawn),
        Method("Trainer", "init_hf_repo", trainer.checks_base),
        Method("Trainer", "create_model_card", trainer.writes_card),
        Method("Trainer", "push_to_hub", trainer.pushes),
        Method("Trainer", "_push_from_checkpoint", trainer.pushes_checkpoint),
        Method("Trainer", "_finish_current_push", trainer.finishes_pushes),
    ],
    "trl.trainer.sft_trainer": [Method("SFTTrainer", "__init__", trains_adapters)],
    "trl.trainer.dpo_trainer": [Method("DPOTrainer", "__init__", refers_to_base)],
}


def install() -> None:
    """Apply every patch, now where its module is imported already, and otherwise when it will be."""
    for name in _PATCHES:
        if name in sys.modules:
            _patch(sys.modules[name])
    if not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def uninstall() -> None:
    """Take every patch back."""
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _Finder)]
    for name, patches in _PATCHES.items():
        for patch in patches if name in sys.modules else ():
            patch.undo(sys.modules[name])


def _patch(module: ModuleType) -> None:
    for patch in _PATCHES[module.__name__]:
        patch.apply(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the patched modules where they are, and patches each right after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_patch(module: ModuleType) -> None:
            run(module)
            _patch(module)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec
