"""What the metrics need of a batch's logits for each token, computed where they lie, so that no Trainer keeps them.

    ids[i, t] = argmax over v of logits[i, t', v],   nll[i, t] = -log softmax(logits[i, t'])[labels[i, t]]

with t' = t - 1 where the logits at a position are about the next one (causal language models), else t. So both stand
at the label that they are about: 12 bytes a token instead of 2 or 4 for each word of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError

__all__ = ["IGNORED", "first", "reduced"]

IGNORED = -100  # Transformers' label of what does not count, and what its Trainer pads with


def first(outputs: Any) -> Any:
    """Return the logits of what a Trainer hands over: the first of several outputs (hidden states, caches)."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return first(outputs[0]) if isinstance(outputs, tuple) and outputs else outputs


def reduced(logits: Tensor, labels: Tensor, shifted: bool, with_nll: bool) -> dict[str, Tensor]:
    """Return "ids" (int64) and, where asked for, "nll" (float32), of the labels' shape; IGNORED where nothing counts.

    logits: (rows, tokens, vocabulary), labels: (rows, tokens); left unchanged. Raises ConfigError for other shapes, and
    for labels that are no word of the vocabulary.
    """
    if logits.shape[:-1] != labels.shape:
        raise ConfigError(
            f"the logits are of shape {tuple(logits.shape)} and the labels of {tuple(labels.shape)}: there has to be a "
            "label for each token."
        )
    _check_words(labels, logits.shape[-1])
    start = int(shifted)
    ids = torch.full(labels.shape, IGNORED, dtype=torch.int64, device=logits.device)
    nll = torch.full(labels.shape, float(IGNORED), dtype=torch.float32, device=logits.device)
    for row in range(len(labels)):  # one at a time: a float32 copy of all logits would be a second one of them
        about = logits[row, : labels.shape[1] - start]
        ids[row, start:] = about.argmax(-1)
        if with_nll:
            nll[row, start:] = F.cross_entropy(
                about.float(), labels[row, start:].long(), reduction="none", ignore_index=IGNORED
            )
    return {"ids": ids, "nll": nll} if with_nll else {"ids": ids}


def _check_words(labels: Tensor, words: int) -> None:
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= words))]
    if len(wrong):
        raise ConfigError(
            f"label {int(wrong[0])} is none of the {words} classes of the logits (nor {IGNORED}, ignored)."
        )
