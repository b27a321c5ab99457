"""Masked language modelling: words of a text are hidden, and told from the others.

Of each text's n tokens, max(1, round(0.15 n)) are learnt: 80% of them are replaced by the mask token, 10% by any token,
and 10% stay as they are. Devlin et al. 2018, BERT, arXiv:1810.04805, section 3.1 and the code of its authors.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import DataError, ModelError
from ..columns import IGNORED
from ..data.columns import place_of
from .texts import TEXT
from .windows import Windowed, cut_up, model_inputs

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = (TEXT,)
_SHARE, _REPLACED, _KEPT = 0.15, 0.8, 0.9
_BEST = 5  # words that a prediction names


class Masked(Windowed):
    """A text a row, in windows of max_length tokens. Predictions fill the mask tokens of a row."""

    smooths: ClassVar[bool] = True

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        if processor.mask_token is None:
            raise ModelError(
                f"{type(processor).__name__} has no mask token, so nothing can be hidden: take another base."
            )

    def windows(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[list[dict[str, Any]]]:
        texts = [str(self.value(row, "text")) for row in rows]
        encoded = processor(
            texts, truncation=True, max_length=self.options["max_length"], return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )  # fmt: skip
        inputs = [model_inputs(encoded, window, processor) for window in range(len(encoded["input_ids"]))]
        for feature, special in zip(inputs, encoded["special_tokens_mask"], strict=True) if labelled else ():
            feature["special_tokens_mask"] = special
        return [[inputs[window] for window in windows] for windows in cut_up(encoded, len(rows))]

    def collator(self, processor: Any, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return what hides words and pads.

        Which ones depends on the text, and while the model trains on the others of its batch too: a text is hidden
        otherwise each time it comes again, and a repeated or resumed training has the same bits.
        """
        from transformers import DataCollatorForTokenClassification

        pad = DataCollatorForTokenClassification(processor)
        vocabulary = len(processor)

        def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
            if "special_tokens_mask" not in features[0]:
                return pad([{**feature, "labels": [IGNORED] * len(feature["input_ids"])} for feature in features])
            seed = 0
            for feature in features if model.training else ():
                seed = zlib.crc32(np.array(feature["input_ids"]).tobytes(), seed)
            return pad([_hidden(feature, seed, processor.mask_token_id, vocabulary) for feature in features])

        return collate

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        """Show a feature as evaluation hides its words."""
        seen = _hidden(feature, 0, processor.mask_token_id, len(processor))
        hidden = processor.decode([label for label in seen["labels"] if label != IGNORED])
        return super().shown({"input_ids": seen["input_ids"], "hidden": hidden}, processor)

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return what fills each mask token of a row, the likeliest first. Raises DataError for a row without one."""
        read, found = self.windows(rows, processor, labelled=False), []
        outputs = iter(self.outputs(model, processor, rows))
        for row, windows in zip(rows, read, strict=True):
            masks = []
            for window in windows:
                (logits,) = next(outputs)
                places = [i for i, token in enumerate(window["input_ids"]) if token == processor.mask_token_id]
                masks += [self._words(logits[place], processor) for place in places]
            if not masks:
                raise DataError(f"{place_of(row)}: its text has no {processor.mask_token} to fill.")
            found.append({"masks": masks})
        return found

    @staticmethod
    def _words(logits: Any, processor: Any) -> list[dict[str, Any]]:
        scores, tokens = logits.softmax(-1).topk(min(_BEST, len(logits)))
        return [
            {"word": processor.decode([token]).strip(), "score": score}
            for score, token in zip(scores.tolist(), tokens.tolist(), strict=True)
        ]


def _hidden(feature: Mapping[str, Any], seed: int, mask: int, vocabulary: int) -> dict[str, Any]:
    """Return a feature with hidden tokens, and labels that say what they were."""
    ids, special = np.array(feature["input_ids"]), np.array(feature["special_tokens_mask"], dtype=bool)
    draw = np.random.default_rng([seed, zlib.crc32(ids.tobytes())])
    plain = np.flatnonzero(~special)
    chosen = draw.permutation(plain)[: max(1, round(_SHARE * len(plain)))]
    labels = np.full(len(ids), IGNORED)
    labels[chosen] = ids[chosen]
    how = draw.random(len(chosen))
    ids[chosen[how < _REPLACED]] = mask
    other = chosen[(how >= _REPLACED) & (how < _KEPT)]
    ids[other] = draw.integers(vocabulary, size=len(other))
    kept = {key: value for key, value in feature.items() if key != "special_tokens_mask"}
    return {**kept, "input_ids": ids.tolist(), "labels": labels.tolist()}
