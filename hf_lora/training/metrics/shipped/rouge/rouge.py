"""ROUGE-1, ROUGE-2 and ROUGE-L: how many words, pairs of words, and words in order a text shares with its reference.

    P = shared / count(prediction),  R = shared / count(reference),  F = 2 P R / (P + R)

For ROUGE-N `shared` is the number of n-grams in both, each as often as in the one that has it less often; for ROUGE-L
it is the length of the longest common subsequence of words. Each is the mean of F over the texts.
Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries. The words are those of the package rouge_score
without stemming: lower case, everything but a-z and 0-9 parts them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hf_lora.training.metrics import form


class Rouge(form.OfTexts):
    """ROUGE-1, ROUGE-2 and ROUGE-L: the F-measure of shared words, pairs of words and words in order (Lin 2004)."""

    url = "https://aclanthology.org/W04-1013"
    citation_text = "Lin, C.-Y. 2004. ROUGE: A Package for Automatic Evaluation of Summaries. ACL workshop."
    inputs = """
Args:
    predictions (list of str): the generated texts.
    references (list of str): the texts they should be.
Returns:
    rouge1, rouge2, rougeL (float): the mean F-measure.
"""

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        pairs = [(_words(p), _words(r)) for p, r in zip(predictions, references, strict=True)]
        sums = {
            "rouge1": sum(_of_ngrams(p, r, 1) for p, r in pairs),
            "rouge2": sum(_of_ngrams(p, r, 2) for p, r in pairs),
            "rougeL": sum(_f(_common(p, r), len(p), len(r)) for p, r in pairs),
        }
        return {name: value / len(pairs) for name, value in sums.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _of_ngrams(prediction: list[str], reference: list[str], n: int) -> float:
    mine, theirs = (Counter(zip(*(words[i:] for i in range(n)))) for words in (prediction, reference))  # noqa: B905
    return _f((mine & theirs).total(), mine.total(), theirs.total())


def _f(shared: int, mine: int, theirs: int) -> float:
    return 2 * shared / (mine + theirs) if shared else 0.0


def _common(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for i, candidate in enumerate(other, start=1):
            diagonal, row[i] = row[i], diagonal + 1 if word == candidate else max(row[i], row[i - 1])
    return row[-1]
