"""A Trainer's predictions and labels as two columns that a metric compares: classes, numbers, texts, token losses.

Logits for each token are reduced to two numbers a token, where they lie, so that no Trainer keeps them:

    ids[i, t] = argmax over v of logits[i, t', v],   nll[i, t] = -log softmax(logits[i, t'])[labels[i, t]]

with t' = t - 1 where the logits at a position are about the next token (causal language models), else t. So both stand
at the label that they are about: 12 bytes a token instead of 2 or 4 for each word of the vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..config.tasks import classes_of
from ..errors import ConfigError
from ..layers.specialising import name_of

_REDUCED = {"ids", "nll"}
IGNORED = -100  # Transformers' label of what does not count, and what its Trainer pads with
# Their losses compare each position with the label at the same one (users shift labels), which no mapping tells.
_ALIGNED = {
    "BartForCausalLM", "BigBirdPegasusForCausalLM", "BlenderbotForCausalLM", "BlenderbotSmallForCausalLM",
    "CpmAntForCausalLM", "MBartForCausalLM", "MarianForCausalLM", "MvpForCausalLM", "PLBartForCausalLM",
    "PegasusForCausalLM", "ProphetNetForCausalLM", "TrOCRForCausalLM", "WhisperForCausalLM", "XLNetLMHeadModel",
}  # fmt: skip


@dataclass(frozen=True)
class EvaluatedModel:
    """What the metrics have to know of the model whose outputs they see; None where that is not known.

    shifted: its logits at a position are about the next token. classes: how many it tells apart. labels: their names,
    by number. blank: of connectionist temporal classification (CTC), the class of no letter.
    """

    shifted: bool | None = None
    classes: int | None = None
    labels: Mapping[int, str] | None = None
    blank: int | None = None

    @classmethod
    def of(cls, model: Any) -> EvaluatedModel:
        """Return what a model of Transformers says of itself; nothing of another module, or of None."""
        config = getattr(model, "config", None)
        if config is None:
            return cls()
        name = name_of(model)
        if name in classes_of("MODEL_FOR_CTC_MAPPING_NAMES"):
            return cls(blank=config.pad_token_id)
        if "Classification" not in name:
            return cls(_shifted(name, config))
        return cls(_shifted(name, config), getattr(config, "num_labels", None), getattr(config, "id2label", None))


def _shifted(name: str, config: Any) -> bool | None:
    def stands_in(*mappings: str) -> bool:
        return any(name in classes_of(f"MODEL_FOR_{mapping}_MAPPING_NAMES") for mapping in mappings)

    if getattr(config, "is_encoder_decoder", False) or name in _ALIGNED:
        return False
    aligned, shifted = stands_in("MASKED_LM", "TOKEN_CLASSIFICATION"), stands_in("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")
    return None if aligned == shifted else shifted


def first(outputs: Any) -> Any:
    """Return the logits of what a Trainer hands over: the first of several outputs (hidden states, caches).

    Of a dictionary its "logits", or else the first; what `reduced` made is left as it is.
    """
    if isinstance(outputs, Mapping) and outputs and outputs.keys() != _REDUCED:
        return first(outputs["logits"] if "logits" in outputs else next(iter(outputs.values())))
    return first(outputs[0]) if isinstance(outputs, tuple) and outputs else outputs


def logits_and_boxes(outputs: Any) -> Any:
    """Return the two of a detector's outputs that say what is where: (rows, queries, classes) and (rows, queries, 4).

    Others stand beside them (losses, hidden states), which nobody is to keep.
    """
    for logits, boxes in itertools.pairwise(outputs):
        if isinstance(boxes, Tensor) and boxes.ndim == 3 and boxes.shape[-1] == 4:
            return logits, boxes
    return outputs


def are_logits_of_tokens(scores: Any, labels: Any) -> bool:
    """Return whether scores are (rows, tokens, vocabulary) and labels (rows, tokens); both are tensors or arrays."""
    if getattr(scores, "ndim", 0) != 3 or getattr(labels, "ndim", 0) != 2:
        return False
    return is_float(scores) and not is_float(labels)


def reduced(logits: Tensor, labels: Tensor, shifted: bool) -> dict[str, Tensor]:
    """Return "ids" (int64) and "nll" (float32), of the labels' shape; IGNORED where nothing counts.

    logits: (rows, tokens, vocabulary), labels: (rows, tokens); left unchanged. Raises ConfigError for other shapes, and
    for labels that are no word of the vocabulary.
    """
    if logits.shape[:-1] != labels.shape:
        raise ConfigError(
            f"the logits are of shape {tuple(logits.shape)} and the labels of {tuple(labels.shape)}: there has to be a "
            "label for each token."
        )
    check_labels(labels, logits.shape[-1])
    start = int(shifted)
    ids = torch.full(labels.shape, IGNORED, dtype=torch.int64, device=logits.device)
    nll = torch.full(labels.shape, float(IGNORED), dtype=torch.float32, device=logits.device)
    for row in range(len(labels)):  # one at a time: a float32 copy of all logits would be a second one of them
        about = logits[row, : labels.shape[1] - start]
        ids[row, start:] = about.argmax(-1)
        nll[row, start:] = F.cross_entropy(
            about.float(), labels[row, start:].long(), reduction="none", ignore_index=IGNORED
        )
    return {"ids": ids, "nll": nll}


def heard(frames: np.ndarray, blank: int) -> np.ndarray:
    """Return the letters that the frames of CTC stand for, IGNORED in the place of repeated ones and of blanks.

    frames: ids, or logits with a last dimension for the letters. Graves et al. 2006, Connectionist temporal
    classification.

    >>> heard(np.array([[7, 7, 0, 7, 5, 5]]), blank=0).tolist()
    [[7, -100, -100, 7, 5, -100]]
    """
    ids = frames.argmax(-1) if frames.ndim == 3 else frames
    again = np.zeros(ids.shape, dtype=bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return np.where(again | (ids == blank), IGNORED, ids)


class Columns(NamedTuple):
    """What is compared with what, row by row: arrays of (rows,), or of (rows, labels) where a row has several.

    classes: how many there are, where that is known.
    """

    predictions: np.ndarray
    references: np.ndarray
    classes: int | None = None


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the columns of all batches, one below the other."""
    predictions, references, classes = zip(*parts, strict=True)
    return Columns(np.concatenate(predictions), np.concatenate(references), classes[0])


class Batch:
    """What a Trainer measured: of all rows at once, or of one batch.

    predictions: logits, what `reduced` makes of them, classes, or generated tokens; labels: their truth. texts: gives
    the texts of rows of tokens.
    """

    def __init__(self, predictions: Any, labels: Any, model: EvaluatedModel, texts: Callable[[Any], np.ndarray] | None):
        if labels is None:
            raise ConfigError("there are no labels to compare with; does the data set have a column 'labels'?")
        if isinstance(labels, tuple):
            raise ConfigError(f"there are {len(labels)} columns of labels; metrics() compares one, 'labels'.")
        found = first(predictions)
        self.model, self.texts = model, texts
        self.labels = _array(labels)
        self.reduced = {key: _array(value) for key, value in found.items()} if isinstance(found, Mapping) else None
        self.predictions = self.reduced["ids"] if self.reduced else _array(found)

    @functools.cached_property
    def tokens(self) -> dict[str, np.ndarray] | None:
        """The predicted "ids" and the "nll" at the labels they are about; None where these are no logits of tokens."""
        if not are_logits_of_tokens(self.predictions, self.labels):
            return self.reduced
        logits, labels = (torch.from_numpy(np.ascontiguousarray(values)) for values in (self.predictions, self.labels))
        return {key: value.numpy() for key, value in reduced(logits, labels, self.shifted()).items()}

    def shifted(self) -> bool:
        """Return whether a position's predictions are about the next token. Raises ConfigError where nobody knows."""
        if self.model.shifted is None:
            raise ConfigError(
                "these are predictions for each token, of a model that does not say whether a position's are about the "
                "next one, as a causal language model's are: pass shift_labels=True to metrics(), or False."
            )
        return self.model.shifted


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """Return an array of (rows,) whose elements are what they are: texts, lists."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _array(values: Any) -> np.ndarray:
    """Return an array of a tensor or of anything like one; bfloat16, which numpy has not, as float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ConfigError("predictions or labels are rows of different lengths; pad them with -100.") from error


def is_float(values: Any) -> bool:
    """Return whether a tensor or an array holds floating-point numbers."""
    return bool(values.is_floating_point() if isinstance(values, Tensor) else np.issubdtype(values.dtype, np.floating))


def are_several(labels: np.ndarray) -> bool:
    """Return whether labels are zeros and ones, several a row, as floats."""
    return is_float(labels) and labels.ndim == 2 and bool(np.isin(labels, (0.0, 1.0)).all())


def check_defined(undefined: np.ndarray) -> None:
    """Raise ConfigError where predictions are NaN, which an argmax would take for the likeliest class."""
    if undefined.any():
        raise ConfigError(
            f"{int(undefined.sum())} of {undefined.size} predictions are NaN, so there is nothing to compare: the "
            "training diverged, or half precision overflowed. Take an earlier checkpoint, or evaluate in float32."
        )


def check_labels(labels: Any, classes: int) -> None:
    """Raise ConfigError for a label that is none of the classes, nor IGNORED."""
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise ConfigError(f"label {int(wrong[0])} is none of the model's {classes} classes (0 to {classes - 1}).")
