"""What a base that is quantised when it is loaded keeps in float: heads, which are new and train, and output layers.

Nothing else has to be prepared for training: factors, heads and token rows are float32 whatever the base is, and inputs
take gradients where checkpointing needs them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Heads of Transformers' classes, and outputs over a vocabulary.
HEADS = (
    "bbox_predictor", "class_labels_classifier", "classifier", "embed_out", "lm_head", "pooler", "pre_classifier",
    "projector", "qa_outputs", "score",
)  # fmt: skip
_SETTINGS = ("llm_int8_skip_modules", "modules_to_not_convert")  # bitsandbytes' name, everybody else's


def with_whole_heads(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a base's from_pretrained, its heads left out of the quantisation that they name.

    A list of the caller's own stays as it is. The caller's config is left unchanged.
    """
    given = kwargs.get("quantization_config")
    setting = next((name for name in _SETTINGS if hasattr(given, name)), None)
    if given is None or setting is None or getattr(given, setting) is not None:
        return dict(kwargs)
    given = copy.deepcopy(given)
    setattr(given, setting, list(HEADS))
    return {**kwargs, "quantization_config": given}
