"""Every place where hf_lora patches another package, and what for. Without a LoRAModel each does as it did before.

What is particular to the Trainer of a LoRAModel is no patch: it is a method of that Trainer's own class
(`trainer_methods.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import sharded
from .loading import finds_adapters, takes_lora_config
from .missing import Need
from .patches import Function, Method
from .peft_tuners import refuses_lora_models
from .pipelines import call_pipeline, stand_in
from .resizing import notes_new_rows
from .trainer_class import specialises, specialises_late
from .trl import refers_to_base, trains_adapters

__all__ = ["SEAMS", "Seam"]


@dataclass(frozen=True)
class Seam(Need):
    """A patch that is applied right after a module of another package has run."""

    module: str
    patch: Method | Function

    @property
    def place(self) -> str:
        """The dotted name of what is patched."""
        return f"{self.module}.{self.patch.path}"


def _is_fsdp2(trainer: Any, resumes: bool) -> bool:
    return sharded.is_fsdp2(trainer)


def _resumes_deepspeed(trainer: Any, resumes: bool) -> bool:
    return bool(trainer.is_deepspeed_enabled) and (resumes or bool(trainer.args.load_best_model_at_end))


def _is_sft(trainer: Any, resumes: bool) -> bool:
    return any(cls.__name__ == "SFTTrainer" for cls in type(trainer).__mro__)


def _is_dpo(trainer: Any, resumes: bool) -> bool:
    return any(cls.__name__ == "DPOTrainer" for cls in type(trainer).__mro__)


_TRAINER = "transformers.trainer"

SEAMS: tuple[Seam, ...] = (
    Seam(
        "transformers.modeling_utils",
        Method("PreTrainedModel", "from_pretrained", takes_lora_config),
        purpose="from_pretrained(lora_config=...), and where PEFT is not installed an adapter's name there",
    ),
    Seam(
        "transformers.models.auto.modeling_auto",
        Method("_BaseAutoModelClass", "from_pretrained", finds_adapters, below=True),
        purpose="an adapter's name in from_pretrained of the auto classes where PEFT is not installed",
    ),
    Seam(
        "transformers.pipelines",
        Function("pipeline", stand_in, call_pipeline),
        purpose="an adapter's name in pipeline() where PEFT is not installed",
    ),
    Seam(
        "transformers.modeling_utils",
        Method("PreTrainedModel", "resize_token_embeddings", notes_new_rows),
        purpose="to train and save the rows of a vocabulary that was resized before the adapter was added",
    ),
    Seam(
        "peft.tuners.tuners_utils",
        Method("BaseTuner", "inject_adapter", refuses_lora_models),
        purpose="to keep PEFT from wrapping a model that has adapters of hf_lora",
    ),
    Seam(
        _TRAINER,
        Method("Trainer", "__init__", specialises),
        purpose="to check, save and push a LoRAModel in a Trainer from its first line on",
    ),
    Seam(
        _TRAINER,
        Method("Trainer", "train", specialises_late),
        purpose="to check and save a model that was given adapters after its Trainer was made",
    ),
    Seam(
        _TRAINER,
        Method("Trainer", "push_to_hub", specialises_late),
        purpose="to push only the adapter of a model that was given it after its Trainer was made",
    ),
    Seam(
        "accelerate.accelerator",
        Method("Accelerator", "prepare", sharded.prepares),
        purpose="to shard a LoRAModel under FSDP2",
        required=True,
        needed=_is_fsdp2,
    ),
    Seam(
        "transformers.integrations.deepspeed",
        Function("deepspeed_load_checkpoint", sharded.stand_in, sharded.load_partitions),
        purpose="to read a checkpoint without its base under DeepSpeed",
        required=True,
        needed=_resumes_deepspeed,
    ),
    Seam(
        "trl.trainer.sft_trainer",
        Method("SFTTrainer", "__init__", trains_adapters),
        purpose="to refuse what TRL would not train as it is meant",
        needed=_is_sft,
    ),
    Seam(
        "trl.trainer.dpo_trainer",
        Method("DPOTrainer", "__init__", refers_to_base),
        purpose="to compare with the model's own base where there is no ref_model",
        needed=_is_dpo,
    ),
)
