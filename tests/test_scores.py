"""Metrics of entities, answers, scores and rankings are what their definitions say."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from transformers import BertConfig, EvalPrediction

from hf_lora import metrics
from hf_lora.errors import ConfigError

from .peek import Columns, as_objects, scores

RNG = np.random.default_rng(0)


def tagger(*tags: str) -> Any:
    """Return what says of itself that it is a token classification with these tags."""
    cls = type("BertForTokenClassification", (), {})
    model = cls()
    model.config = BertConfig(id2label=dict(enumerate(tags)))
    return model


def test_entities_count_where_kind_and_both_ends_are_right() -> None:
    tags = ["O", "B-PER", "I-PER", "B-LOC"]
    truth = np.array([[1, 2, 0, 3, -100], [0, 1, -100, -100, -100]])
    said = np.array([[1, 2, 0, 1, 0], [0, 1, 3, 3, 3]])  # PER right, LOC taken for PER; PER right
    compute = metrics("seqeval")
    compute.begin(tagger(*tags))
    found = compute(EvalPrediction(predictions=np.eye(4)[said], label_ids=truth))
    assert found == {
        "overall_f1": pytest.approx(2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)),
        "overall_precision": 2 / 3,
        "overall_recall": 2 / 3,
        "overall_accuracy": 5 / 6,
    }
    assert compute.names["overall_f1"] == "seqeval"
    with pytest.raises(ConfigError, match="token classification"):
        metrics("seqeval")(EvalPrediction(predictions=np.zeros(2), label_ids=np.zeros(2, int)))


SCHEMES = ("IOB1", "IOB2", "IOBES", "BILOU", "BMES")
Span = tuple[int, int, str]


def tagged(spans: list[Span], length: int, scheme: str) -> list[str]:
    """Return the tags of entities (start, end, kind) that do not overlap, in a scheme."""
    found = ["O"] * length
    single, inner, last = {"IOBES": "SIE", "BILOU": "UIL", "BMES": "SME"}.get(scheme, "BII")
    for number, (start, end, kind) in enumerate(spans):
        letters = single if end - start == 1 else "B" + inner * (end - start - 2) + last
        touches = number > 0 and spans[number - 1][1:] == (start, kind)
        if scheme == "IOB1":
            letters = ("B" if touches else "I") + "I" * (end - start - 1)
        found[start:end] = [f"{letter}-{kind}" for letter in letters]
    return found


def some_spans(length: int, rng: np.random.Generator) -> list[Span]:
    spans, place = [], 0
    while (place := place + int(rng.choice([0, 0, 1, 2]))) < length:
        end = min(place + int(rng.integers(1, 4)), length)
        spans.append((place, end, str(rng.choice(["PER", "ORG"]))))
        place = end
    return spans


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_are_counted_right_in_each_scheme_also_next_to_each_other(scheme: str) -> None:
    """Counted as sets of (row, start, end, kind), of which the tags were made, without reading any tag."""
    rng = np.random.default_rng(1)
    truths = [some_spans(9, rng) for _ in range(40)]
    said = [
        [span for span in truth if rng.random() < 0.6] if n % 2 else some_spans(9, rng)
        for n, truth in enumerate(truths)
    ]
    mine, theirs = ({(n, *span) for n, row in enumerate(rows) for span in row} for rows in (said, truths))
    shared = len(mine & theirs)
    rows = [[tagged(spans, 9, scheme) for spans in each] for each in (truths, said)]
    found = scores.seqeval(*rows)
    assert 20 < shared < len(theirs)
    assert found["overall_precision"] == pytest.approx(shared / len(mine))
    assert found["overall_recall"] == pytest.approx(shared / len(theirs))
    assert found["overall_f1"] == pytest.approx(2 * shared / (len(mine) + len(theirs)))
    turned = [[["-".join(tag.split("-")[::-1]) for tag in row] for row in each] for each in rows]
    assert scores.seqeval(*turned, suffix=True) == found


@pytest.mark.parametrize("tag", ["PER", "ORG", "NOUN", "X-PER"])
def test_tags_that_do_not_say_where_an_entity_begins_are_none_for_seqeval(tag: str) -> None:
    with pytest.raises(ValueError, match=f"'{tag}' says nothing of where an entity begins"):
        scores.seqeval([["O", tag]], [["O", "O"]])


def test_answers_are_compared_as_squad_does() -> None:
    truths = [["Denver Broncos", "the Broncos"], ["1976"]]
    assert scores.squad(truths, ["The Denver, broncos!", "in 1976"]) == {
        "f1": pytest.approx(100 * (1 + 2 / 3) / 2),
        "exact_match": 50.0,
    }
    with pytest.raises(ValueError, match="squad_v2"):
        scores.squad([[]], [""])
    found = scores.squad_v2([["1976"], [], [], ["the"]], ["1976", "", "1976", ""])
    assert found == {
        "f1": 75.0, "exact": 75.0, "HasAns_f1": 100.0, "HasAns_exact": 100.0,
        "NoAns_f1": pytest.approx(200 / 3), "NoAns_exact": pytest.approx(200 / 3),
    }  # fmt: skip


def test_the_area_under_the_curve_is_scikit_learn_s() -> None:
    logits, labels = RNG.normal(size=(40, 3)), RNG.integers(0, 3, 40)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    several = np.eye(3)[labels]

    def area(predictions: Any, truth: Any) -> float:
        return metrics("roc_auc")(EvalPrediction(predictions=predictions, label_ids=truth))["roc_auc"]

    assert area(logits, labels) == pytest.approx(sklearn.metrics.roc_auc_score(labels, chances, multi_class="ovr"))
    assert area(logits, several) == pytest.approx(sklearn.metrics.roc_auc_score(several, logits))
    two = sklearn.metrics.roc_auc_score(labels > 0, logits[:, 1] - logits[:, 0])
    assert area(logits[:, :2], (labels > 0).astype(int)) == pytest.approx(two)
    assert area((logits[:, 1] - logits[:, 0])[:, None], (labels > 0).astype(float)[:, None]) == pytest.approx(two)


def test_what_is_not_defined_for_the_rows_is_left_out_with_a_warning() -> None:
    compute = metrics("mse", "pearsonr")
    for count in (1, 3):  # SciPy refuses one row, and gives NaN for equal numbers
        with pytest.warns(UserWarning, match="pearsonr: not defined"):
            found = compute(EvalPrediction(predictions=np.ones(count), label_ids=np.zeros(count)))
        assert found == {"mse": 1.0}
    with pytest.warns(UserWarning, match="roc_auc: not defined"):
        assert metrics("roc_auc")(EvalPrediction(predictions=np.eye(2), label_ids=np.array([1, 1]))) == {}


def test_ndcg_is_the_mean_over_lists_that_have_an_order() -> None:
    gains, said = [[3.0, 1.0, 2.0], [0.0, 0.0], [0.0, 1.0]], [[1.0, 3.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    first = (1 + 2 / math.log2(3) + 3 / 2) / (3 + 2 / math.log2(3) + 1 / 2)
    assert scores.ndcg(gains, said) == pytest.approx((first + 1) / 2)
    assert scores.ndcg(gains, said, k=1) == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(scores.ndcg([[1.0, 1.0]], [[0.0, 1.0]]))


def test_what_a_data_set_says_comes_before_what_predictions_and_labels_tell() -> None:
    def compared(predictions: Any, labels: Any) -> dict[str, Any]:
        return {"answers": Columns(as_objects(["x", "y"]), as_objects([["x"], ["z", "y"]]))}

    compute = metrics("squad", "accuracy")
    given = EvalPrediction(predictions=np.eye(2), label_ids=np.array([0, 0]))
    compute.begin(None, data=SimpleNamespace(compared=compared))
    assert compute(given) == {"f1": 100.0, "exact_match": 100.0, "accuracy": 0.5}
    compute.begin(None)
    with pytest.raises(ConfigError, match="question-answering"):
        compute(given)
