"""What the metrics have to know of the model whose outputs they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...layers.specialising import name_of

__all__ = ["UNKNOWN", "EvaluatedModel"]

# Their losses compare each position with the label at the same one (users shift labels), which no mapping tells.
_ALIGNED = (
    "BartForCausalLM",
    "BigBirdPegasusForCausalLM",
    "BlenderbotForCausalLM",
    "BlenderbotSmallForCausalLM",
    "CpmAntForCausalLM",
    "MBartForCausalLM",
    "MarianForCausalLM",
    "MvpForCausalLM",
    "PLBartForCausalLM",
    "PegasusForCausalLM",
    "ProphetNetForCausalLM",
    "TrOCRForCausalLM",
    "WhisperForCausalLM",
    "XLNetLMHeadModel",
)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model's outputs. shifted: its logits at a position are about the next one; classes: how many it tells apart.

    None where that is not known.
    """

    shifted: bool | None = None
    classes: int | None = None

    @classmethod
    def of(cls, model: Any) -> EvaluatedModel:
        """Return what a model of Transformers says of itself; nothing of another module."""
        config = getattr(model, "config", None)
        if config is None:
            return UNKNOWN
        name = name_of(model)
        shifted = _shifted(name, config)
        classes = getattr(config, "num_labels", None) if "Classification" in name else None
        return cls(shifted, classes)


UNKNOWN = EvaluatedModel()


def _shifted(name: str, config: Any) -> bool | None:
    from transformers.models.auto import modeling_auto

    def stands_in(*mappings: str) -> bool:
        found = [getattr(modeling_auto, f"MODEL_FOR_{each}_MAPPING_NAMES").values() for each in mappings]
        return any(name == each or (isinstance(each, tuple) and name in each) for values in found for each in values)

    if getattr(config, "is_encoder_decoder", False) or name in _ALIGNED:
        return False
    aligned = stands_in("MASKED_LM", "TOKEN_CLASSIFICATION")
    shifted = stands_in("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")
    return None if aligned == shifted else shifted
