"""Every place where hf_lora patches another package, and what for. Without a LoRAModel each does as it did before.

Each is patched right after its module has run, never with an error: what is missing is told when it is needed.
What the Trainer of a LoRAModel does otherwise is no patch: it overrides the stock Trainer's methods (`trainer.py`).
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ..model.hooks import LISTENERS
from . import missing, models, pipelines, sharded, specialising, trl, trl_making
from .missing import Seam


def _resumes_deepspeed(trainer: Any, resumes: bool) -> bool:
    return bool(trainer.is_deepspeed_enabled) and (resumes or bool(trainer.args.load_best_model_at_end))


def _is_trl(trainer: Any, resumes: bool) -> bool:
    return trl.is_trl(type(trainer))


_TRAINER = "transformers.trainer"
_MODELS = "transformers.modeling_utils"
_AUTO = "transformers.models.auto.modeling_auto"

# fmt: off
SEAMS: tuple[Seam, ...] = (
    Seam(_MODELS, "PreTrainedModel.from_pretrained",
         "from_pretrained(lora_config=...), and an adapter's name there",
         models.takes_adapters),
    Seam(_AUTO, "_BaseAutoModelClass.from_pretrained",
         "an adapter's name in from_pretrained of the auto classes",
         models.takes_adapters),
    Seam("transformers.pipelines", "pipeline",
         "an adapter's name in pipeline()",
         pipelines.takes_adapters),
    Seam("transformers.pipelines.base", "Pipeline.__call__",
         "to answer each item of a pipeline by an adapter of its own",
         pipelines.answers_by_row),
    Seam("transformers.utils.peft_utils", "find_adapter_config_file",
         "to keep PEFT from an adapter that hf_lora loads, or that lies beside the base",
         models.finds_none),
    Seam(_MODELS, "PreTrainedModel.resize_token_embeddings",
         "to train and save the rows of a vocabulary that was resized before the adapter was added",
         models.notes_new_rows),
    Seam("transformers.integrations.peft", "PeftAdapterMixin.add_adapter",
         "to say how a plain model gets a LoRAConfig",
         models.refuses_our_configs),
    Seam("peft.tuners.tuners_utils", "BaseTuner.inject_adapter",
         "to keep PEFT from wrapping a model that has adapters of hf_lora",
         models.refuses_lora_models),
    Seam(_TRAINER, "Trainer.__init__",
         "to check, save and push a LoRAModel in a Trainer from its first line on",
         specialising.specialises),
    Seam(_TRAINER, "Trainer.train",
         "to check and save a model that was given adapters after its Trainer was made",
         specialising.specialises_late),
    Seam(_TRAINER, "Trainer.push_to_hub",
         "to push only the adapter of a model that was given it after its Trainer was made",
         specialising.specialises_late),
    Seam("accelerate.accelerator", "Accelerator.prepare",
         "to shard a LoRAModel under FSDP2",
         sharded.prepares, required=True, needed=lambda trainer, resumes: sharded.is_fsdp2(trainer)),
    Seam("transformers.integrations.deepspeed", "deepspeed_load_checkpoint",
         "to read a checkpoint without its base under DeepSpeed",
         sharded.loads_partitions, required=True, needed=_resumes_deepspeed),
    Seam("trl.trainer.base_trainer", "_BaseTrainer",
         "to compare with the model as it was where there is no ref_model, and to take a LoRAConfig as peft_config",
         trl_making.prepares_classes, needed=_is_trl),
)
# fmt: on
_MODULES = {seam.module for seam in SEAMS}


def install() -> None:
    """Patch every place, now where its module is imported already, and otherwise when it will be."""
    for name in _MODULES & sys.modules.keys():
        _patch(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    LISTENERS[:] = [missing.tell]


def _patch(module: ModuleType) -> None:
    for seam in SEAMS:
        if seam.module == module.__name__:
            try:
                seam.apply(module)
                seam.is_missing = False
            except Exception:  # of whatever kind the place has become: who imports it need not use LoRA
                seam.is_missing = True


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the seams where they are, and has each patched right after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if fullname in _MODULES else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_patch(module: ModuleType) -> None:
            run(module)
            _patch(module)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec
