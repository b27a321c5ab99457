"""The formulas of metrics about entities, answers and rankings, as `evaluate`'s modules of these names compute them."""

import contextlib
import io
import itertools
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I"}


def seqeval(
    references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], suffix: bool = False
) -> dict[str, float]:
    """Return F1, precision and recall of whole entities, and accuracy of tags. A list of tags a row ("B-PER", "O").

    An entity counts where its kind, its first and its last tag are right. Ramshaw and Marcus 1995, cmp-lg/9505040; the
    package seqeval computes it as conlleval does: of IOB1, IOB2 and IOBES. BILOU's L and U are IOBES' E and S, and
    BMES' M is I, which it would not know. Raises ValueError for tags without such a letter.
    """
    from seqeval import metrics  # an extra, which no other metric needs

    references, predictions = (
        [[_iobes(tag, suffix) for tag in row] for row in rows] for rows in (references, predictions)
    )
    common = {"suffix": suffix, "zero_division": 0}
    return {
        "overall_precision": float(metrics.precision_score(references, predictions, **common)),
        "overall_recall": float(metrics.recall_score(references, predictions, **common)),
        "overall_accuracy": float(metrics.accuracy_score(references, predictions)),
        "overall_f1": float(metrics.f1_score(references, predictions, **common)),
    }


def _iobes(tag: str, suffix: bool) -> str:
    """Return a tag with a letter that seqeval knows."""
    kind, mark, letter = tag.rpartition("-") if suffix else tag.partition("-")[::-1]
    if tag != "O" and (not mark or letter not in _LETTERS):
        raise ValueError(
            f"{tag!r} says nothing of where an entity begins, as B-{tag} and I-{tag} would; measure accuracy and f1"
        )
    return tag if tag == "O" else f"{kind}-{_LETTERS[letter]}" if suffix else f"{_LETTERS[letter]}-{kind}"


def sacrebleu(
    references: Sequence[str], predictions: Sequence[str], tokenize: str = "13a", lowercase: bool = False
) -> float:
    """Return BLEU of a corpus, from 0 to 100; tokenize: "13a", "zh", "char" or another of the package sacrebleu's.

    Papineni et al. 2002; Post 2018, arXiv:1804.08771.
    """
    from sacrebleu import corpus_bleu  # an extra, which no other metric needs

    return float(corpus_bleu(predictions, [references], tokenize=tokenize, lowercase=lowercase).score)


def chrf(references: Sequence[str], predictions: Sequence[str], word_order: int = 0) -> float:
    """Return the F-score of a corpus's character n-grams, from 0 to 100; word_order=2 is chrF++. Popović 2015."""
    from sacrebleu import corpus_chrf  # an extra, which no other metric needs

    return float(corpus_chrf(predictions, [references], word_order=word_order).score)


def squad(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Return exact match and F1 in percent, each the mean over the questions of the best of their right answers.

    references: the right answers of each question, at least one. F1 is of the words that answer and truth share, after
    case, punctuation and English articles are taken out. Rajpurkar et al. 2016, arXiv:1606.05250.
    """
    if not all(references):
        raise ValueError("there are questions without an answer, which squad_v2 measures")
    pairs = list(zip(references, predictions, strict=True))
    return {"exact_match": _best(_exact, pairs), "f1": _best(_f1, pairs)}


def squad_v2(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Return exact match and F1 in percent, also by questions with an answer and without.

    references: as `squad` takes them, empty where a question has no answer; its right prediction is "". Rajpurkar et
    al. 2018, arXiv:1806.03822.
    """
    pairs = [
        ([truth for truth in truths if _words(truth)] or [""], said)
        for truths, said in zip(references, predictions, strict=True)
    ]
    found: dict[str, float] = {}
    for name, which in (("HasAns", True), ("NoAns", False)):
        if some := [pair for pair in pairs if (pair[0] != [""]) is which]:
            found |= {f"{name}_f1": _best(_f1, some), f"{name}_exact": _best(_exact, some)}
    return {**found, "exact": _best(_exact, pairs), "f1": _best(_f1, pairs)}


def _best(score: Any, pairs: Sequence[tuple[Sequence[str], str]]) -> float:
    return 100.0 * sum(max(score(said, truth) for truth in truths) for truths, said in pairs) / len(pairs)


def _words(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _exact(said: str, truth: str) -> float:
    return float(_words(said) == _words(truth))


def _f1(said: str, truth: str) -> float:
    mine, theirs = _words(said), _words(truth)
    if not mine or not theirs:
        return float(mine == theirs)
    return 2 * (Counter(mine) & Counter(theirs)).total() / (len(mine) + len(theirs))


def roc_auc(references: np.ndarray, scores: np.ndarray) -> float:
    """Return how often a row of a class has a higher score for it than a row that is not; the mean over the classes.

    references: zeros and ones, scores: numbers, both (rows, classes). A class that all the rows have, or none, has no
    curve and is left out; NaN where there is no other.
    """
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score(y, s) for y, s in zip(references.T, scores.T, strict=True) if 0 < y.mean() < 1]
    return float(np.mean(areas)) if areas else float("nan")


def ndcg(references: Sequence[Sequence[float]], scores: Sequence[Sequence[float]], k: int = 10) -> float:
    """Return the mean of NDCG@k over lists of candidates: their gains in the order of the scores, over the best order.

        DCG@k = sum over ranks i = 1 .. k of gain_i / log2(i + 1)

    A list whose gains are all the same has no order, and is left out; NaN where there is no other. Järvelin and
    Kekäläinen 2002. scikit-learn computes it, with ties averaged.
    """
    from sklearn.metrics import ndcg_score

    lists = [(y, s) for y, s in zip(references, scores, strict=True) if min(y) < max(y)]
    found = [ndcg_score([np.subtract(y, min(0.0, *y))], [s], k=k) for y, s in lists]
    return float(np.mean(found)) if found else float("nan")


def mean_average_precision(
    references: Sequence[dict[str, list[Any]]], predictions: Sequence[dict[str, list[Any]]]
) -> dict[str, float]:
    """Return COCO's mean average precision of boxes, over classes and overlaps from 0.50 to 0.95; and at 0.50 alone.

    A dict a picture: labels (numbers), boxes (left, top, right, bottom, as shares of the picture), and of predictions
    scores. NaN where no picture has an object. Lin et al. 2014, arXiv:1405.0312; pycocotools computes it.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    pages = [{"id": number} for number in range(len(references))]
    kinds = [{"id": label} for label in sorted({label for each in references for label in each["labels"]})]
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells how it goes on
        for pictures in (references, predictions):
            held = COCO()
            held.dataset = {"images": pages, "categories": kinds, "annotations": list(_annotations(pictures))}
            held.createIndex()
            sets.append(held)
        measured = COCOeval(*sets, "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    whole, half = (float(value) if value >= 0 else float("nan") for value in measured.stats[:2])
    return {"mean_average_precision": whole, "mean_average_precision_50": half}


def _annotations(pictures: Sequence[dict[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    numbers = itertools.count(1)
    for page, each in enumerate(pictures):
        scores = each.get("scores", each["labels"])
        for label, box, score in zip(each["labels"], each["boxes"], scores, strict=True):
            left, top, right, bottom = (1000 * side for side in box)
            sides = [left, top, right - left, bottom - top]
            about = {"id": next(numbers), "image_id": page, "category_id": label, "score": score, "iscrowd": 0}
            yield {**about, "bbox": sides, "area": sides[2] * sides[3]}
