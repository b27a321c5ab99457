"""The model card that is written beside an adapter: what it is, what it was trained on, how to load it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor

from .config import LoRAConfig

__all__ = ["CARD_NAME", "write_card"]

CARD_NAME = "README.md"
_PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_TEXT = """\
# LoRA adapter{of_base}

A low-rank adapter (LoRA, Hu et al. 2021, arXiv:2106.09685): rank {r}, alpha {alpha:g}, dropout {dropout:g},
on {targets}. Its {tensors} tensors hold {count:,d} numbers ({size:.2f} MB).

With hf_lora:

```python
from hf_lora import LoRAModel

model = LoRAModel.from_pretrained("path/or/repo-of-this-adapter")
```

With PEFT:

```python
from peft import {peft_class}

model = {peft_class}.from_pretrained("path/or/repo-of-this-adapter")
```
"""


def write_card(path: Path, model: Any, config: LoRAConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write the card of an adapter; one that is there already is left as its owner wrote it."""
    if path.exists():
        return
    base = config.base_model_name_or_path
    public = base if base and not os.path.isabs(base) and not os.path.exists(base) else None
    data = ModelCardData(
        base_model=public,
        library_name="peft",
        pipeline_tag=_PIPELINES.get(config.task_type or ""),
        tags=["lora", "hf_lora", "transformers"],
    )
    text = _TEXT.format(
        of_base=f" for {public}" if public else "",
        r=config.r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=_targets(config),
        tensors=len(tensors),
        count=sum(t.numel() for t in tensors.values()),
        size=sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6,
        peft_class=_peft_class(config),
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=True).save(path)


def _targets(config: LoRAConfig) -> str:
    spec = config.target_modules
    names = [spec] if isinstance(spec, str) else [*(spec or ()), *(config.target_parameters or ())]
    saved = f", with {', '.join(config.modules_to_save)} trained in full" if config.modules_to_save else ""
    return ", ".join(f"`{n}`" for n in names) + saved


def _peft_class(config: LoRAConfig) -> str:
    names = {
        "SEQ_CLS": "AutoPeftModelForSequenceClassification",
        "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
        "CAUSAL_LM": "AutoPeftModelForCausalLM",
        "TOKEN_CLS": "AutoPeftModelForTokenClassification",
        "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
        "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
    }
    return names.get(config.task_type or "", "AutoPeftModel")
