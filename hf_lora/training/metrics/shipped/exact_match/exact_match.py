"""Exact match: the share of texts that equal their reference."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from hf_lora.training.metrics import form


class ExactMatch(form.OfTexts):
    """The share of predicted texts that equal their reference, after what is to be ignored was taken out."""

    url = "https://huggingface.co/spaces/evaluate-metric/exact_match"
    citation_text = ""
    inputs = """
Args:
    predictions (list of str): the predicted texts.
    references (list of str): the true texts.
    regexes_to_ignore (list of str): what matches one of these is taken out first.
    ignore_case, ignore_punctuation, ignore_numbers (bool): what else does not count.
Returns:
    exact_match (float)
"""

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        regexes_to_ignore: Sequence[str] | None = None,
        ignore_case: bool = False,
        ignore_punctuation: bool = False,
        ignore_numbers: bool = False,
    ) -> dict[str, float]:
        drop = (string.punctuation if ignore_punctuation else "") + (string.digits if ignore_numbers else "")

        def plain(text: str) -> str:
            for pattern in regexes_to_ignore or ():
                text = re.sub(pattern, "", text)
            return (text.lower() if ignore_case else text).translate(str.maketrans("", "", drop))

        equal = [plain(p) == plain(r) for p, r in zip(predictions, references, strict=True)]
        return {"exact_match": sum(equal) / len(equal)}
