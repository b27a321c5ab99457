"""What a card is about: a model with an adapter, its task, and what else can load it."""

from dataclasses import dataclass, replace
from typing import Any

from ...config.lora_config import LoRAConfig
from ...config.tasks import TASK_TYPES, TASKS, Task, classes_of
from ...formats.elsewhere import differs_in_peft, no_peft
from ...formats.engines.rules import VLLM_CLASSES
from ...layers.layer import LoRALayer
from ...layers.specialising import base_of, name_of
from ...variants.initial import INITS
from ...variants.table import formula_of

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM's --max-lora-rank takes
_VLLM = "vLLM"


@dataclass(frozen=True)
class CardSubject:
    """What a card is about. name: the adapter's in the model. base, repo: Hub ids. None where it is not known."""

    model: Any
    config: LoRAConfig
    task: Task | None
    name: str | None = None
    base: str | None = None
    repo: str | None = None

    @property
    def base_class(self) -> str:
        """The name of the base's class."""
        return str(base_of(type(self.model)).__name__)

    @property
    def is_transformers(self) -> bool:
        """Whether the base has a `from_pretrained`."""
        return hasattr(base_of(type(self.model)), "from_pretrained")


def task_of(model: Any, config: LoRAConfig) -> Task | None:
    """Return what an adapted model is for, None where nothing says it.

    The class decides where Transformers knows it, because task types are few: people write SEQ_2_SEQ_LM for Whisper
    and CAUSAL_LM for vision-language models. Else the task type does. A base without a head gives features.
    """
    name = name_of(model)
    for task in TASKS:
        if task.mapping and name in classes_of(f"MODEL_FOR_{task.mapping}_MAPPING_NAMES"):
            hears = task.tags and getattr(getattr(model, "config", None), "audio_config", None) is not None
            return replace(task, tag="audio-text-to-text", tags=()) if hears else task
    features = TASK_TYPES["FEATURE_EXTRACTION"]
    if config.task_type is not None:
        return TASK_TYPES[config.task_type]
    if name not in classes_of("MODEL_MAPPING_NAMES"):
        return None
    tags = {"pixel_values": "image-feature-extraction", "input_ids": features.tag}
    return replace(features, tag=tags.get(getattr(model, "main_input_name", "")), peft_class=None)


def peft_class(subject: CardSubject) -> str | None:
    """Return PEFT's Auto class that loads an adapter on the same base as here, None where there is none.

    PEFT chooses by the task type, Transformers by the model: for Whisper as SEQ_2_SEQ_LM they differ.
    """
    task, named = subject.task, TASK_TYPES.get(subject.config.task_type or "")
    if not (subject.is_transformers and subject.base and task and named):
        return None
    return task.peft_class if named.tag != "text-generation" or named.peft_class == task.peft_class else None


def peft_refusal(subject: CardSubject) -> str:
    """Return why PEFT does not load the adapter as it is meant, "" where it does."""
    if subject.name is None:
        return ""
    if not (row := formula_of(subject.config)).in_peft:
        return f"PEFT cannot open this adapter: it has no {row.title}."
    if reason := no_peft(subject.model, subject.name, subject.config):
        return f"PEFT cannot open this adapter: {reason}."
    reason = differs_in_peft(subject.model, subject.name)
    return f"PEFT computes something else with this adapter: {reason}." if reason else ""


def vllm_rank(subject: CardSubject) -> int | None:
    """Return the --max-lora-rank with which vLLM serves the adapter as it is meant, None where it does not.

    It serves the language models of `VLLM_CLASSES`, one rank and scaling an adapter, the formulas whose rows name it,
    and neither biases, saved modules, factors on token tables and heads (many of its models refuse them), nor factors
    that belong to another base.
    """
    c = subject.config
    other = (
        *(_VLLM not in formula_of(c).engines, INITS[c.init_lora_weights].computed_again, c.lora_bias, c.bias != "none"),
        *(c.modules_to_save, c.target_parameters, c.trainable_token_indices, c.rank_pattern, c.alpha_pattern),
    )
    if name_of(subject.model) not in VLLM_CLASSES or not subject.base or any(other) or _adapts_tables(subject.model):
        return None
    on_disk = c.r * (2 if INITS[c.init_lora_weights].held else 1)
    return next((rank for rank in _RANKS if rank >= on_disk), None)


def _adapts_tables(model: Any) -> bool:
    """Return whether the table of tokens or the output head has an adapter."""
    return any(isinstance(each, LoRALayer) for each in (model.get_input_embeddings(), model.get_output_embeddings()))


def labels_of(model: Any) -> int | None:
    """Return the number of labels of a model's head where its base has another number."""
    count = getattr(getattr(model, "config", None), "num_labels", 2)
    return count if "Classification" in type(model).__name__ and count != 2 else None
