"""How to load an adapter, as code: with hf_lora, with PEFT, as a pipeline, with vLLM; None where a way fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config.lora_config import LoRAConfig
from ...layers.specialising import base_of, name_of
from ...variants.initial import INITS
from ...variants.table import formula_of
from .tasks import Task

__all__ = ["PLACEHOLDER_BASE", "PLACEHOLDER_REPO", "CardSubject", "snippets"]

PLACEHOLDER_REPO = "path/or/repo-of-this-adapter"
PLACEHOLDER_BASE = "path/or/repo-of-its-base"
_VLLM = "vLLM"
# The ranks that its --max-lora-rank takes.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class CardSubject:
    """What a card is about. base: its Hub id, None where the base is known by a local path only. name: as given."""

    model: Any
    config: LoRAConfig
    task: Task | None
    base: str | None
    repo: str | None
    name: str | None

    @property
    def address(self) -> str:
        """The repo, or what stands for it."""
        return self.repo or PLACEHOLDER_REPO

    @property
    def is_transformers(self) -> bool:
        """Whether the base has a `from_pretrained`."""
        return hasattr(base_of(type(self.model)), "from_pretrained")


def snippets(subject: CardSubject) -> dict[str, str | None]:
    """Return the template's values that are code, by name."""
    rank = _vllm_rank(subject)
    name = (subject.repo or "adapter").rpartition("/")[2]
    return {
        "load_hf_lora": _hf_lora(subject),
        "load_peft": _peft(subject),
        "load_pipeline": _pipeline(subject),
        "vllm_name": name if rank else None,
        "serve_vllm": f"vllm serve {subject.base} --enable-lora --max-lora-rank {rank} \\\n"
        f"  --lora-modules {name}={subject.address}"
        if rank
        else None,
    }


def _hf_lora(subject: CardSubject) -> str:
    lines = ["from hf_lora import LoRAModel", ""]
    if not subject.is_transformers:
        lines = [*lines, f"base = ...  # the {_base_class(subject)} that it was trained on"]
        more = ", base_model=base"
    else:
        more = "" if subject.base else f', base_model="{PLACEHOLDER_BASE}"'
    return "\n".join([*lines, f'model = LoRAModel.from_pretrained("{subject.address}"{more})'])


def _peft(subject: CardSubject) -> str:
    """PEFT's Auto class where it takes the same base as here, else PeftModel on the base's own Auto class."""
    labels, task = _labels(subject), subject.task
    if subject.is_transformers and subject.base and task and task.peft_class and subject.config.task_type:
        wanted = {"CAUSAL_LM": "AutoPeftModelForCausalLM", "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM"}
        if wanted.get(subject.config.task_type, task.peft_class) == task.peft_class:
            return (
                f"from peft import {task.peft_class}\n\n"
                f'model = {task.peft_class}.from_pretrained("{subject.address}"{labels})'
            )
    base = f'base = {{}}.from_pretrained("{subject.base or PLACEHOLDER_BASE}"{labels})'
    lines = ["from peft import PeftModel"]
    if subject.is_transformers:
        auto = task.auto_class if task else _base_class(subject)
        lines += [f"from transformers import {auto}", "", base.format(auto)]
    else:
        lines += ["", f"base = ...  # the {_base_class(subject)} that it was trained on"]
    return "\n".join([*lines, f'model = PeftModel.from_pretrained(base, "{subject.address}")'])


def _pipeline(subject: CardSubject) -> str | None:
    task = subject.task
    if not (subject.is_transformers and subject.base and task and task.tag and task.pipeline):
        return None
    return (
        "import hf_lora  # lets Transformers load adapters\nfrom transformers import pipeline\n\n"
        f'pipe = pipeline("{task.tag}", model="{subject.address}")'
    )


def _vllm_rank(subject: CardSubject) -> int | None:
    """Return the --max-lora-rank with which vLLM serves the adapter as it is meant, None where it does not.

    It serves language models, one rank and scaling an adapter, the formulas whose rows name it, and neither biases,
    saved modules nor factors that belong to another base.
    """
    c = subject.config
    from transformers.models.auto import modeling_auto  # not above: importing it takes a quarter of a second

    causal = name_of(subject.model) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    other = (
        *(_VLLM not in formula_of(c).engines, INITS[c.init_lora_weights].moves_base, c.lora_bias, c.bias != "none"),
        *(c.modules_to_save, c.target_parameters, c.trainable_token_indices, c.rank_pattern, c.alpha_pattern),
    )
    if not causal or not subject.base or any(other):
        return None
    return next((rank for rank in _VLLM_RANKS if rank >= c.r), None)


def _labels(subject: CardSubject) -> str:
    """Return the argument that gives the base its number of labels, where a head of another size was trained."""
    count = getattr(getattr(subject.model, "config", None), "num_labels", 2)
    has_head = "Classification" in type(subject.model).__name__
    return f", num_labels={count}" if has_head and count != 2 and subject.is_transformers else ""


def _base_class(subject: CardSubject) -> str:
    return str(base_of(type(subject.model)).__name__)
