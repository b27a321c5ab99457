"""`hf_lora.metrics` measures what the stock Trainer evaluates, exactly, and refuses what cannot be compared."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from transformers import (
    EvalPrediction,
)

from hf_lora import metrics
from hf_lora.errors import ConfigError, MissingExtraError

from .hub import Hub, hub, status  # noqa: F401
from .peek import SHIPPED, evaluation, load

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
HOME = Path(evaluation.__file__).parent / "shipped"
OPTIONS = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "per_device_eval_batch_size": 3}


def measured(names: str, predictions: object, labels: object, **settings: object) -> dict[str, float]:
    """Return the shipped metrics of one evaluation."""
    compute = metrics(*names.split(), source="shipped", **settings)
    return compute(EvalPrediction(predictions=predictions, label_ids=labels))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- each metric against what it is defined by ------------------------------------------------------------------------


@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize("average", ["binary", "macro", "micro", "weighted", None])
def test_the_shipped_metrics_of_classes_are_scikit_learn_s(average: str | None, by_path: bool) -> None:
    predictions, references = rng().integers(0, 2 if average == "binary" else 4, (2, 50)).tolist()
    get = (lambda name: evaluate.load(str(HOME / name))) if by_path else load
    given = {"predictions": predictions, "references": references}
    for name in ("f1", "precision", "recall"):
        expected = getattr(sklearn.metrics, f"{name}_score")(references, predictions, average=average)
        assert get(name).compute(**given, average=average) == {name: expected.tolist() if average is None else expected}
    assert get("accuracy").compute(**given) == {"accuracy": sklearn.metrics.accuracy_score(references, predictions)}
    assert get("matthews_correlation").compute(**given) == {
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(references, predictions)
    }


def test_the_shipped_metrics_take_weights_and_counts() -> None:
    given = {"predictions": [0, 1, 1], "references": [0, 1, 0]}
    assert load("accuracy").compute(**given, normalize=False) == {"accuracy": 2.0}
    assert load("accuracy").compute(**given, sample_weight=[1, 1, 2]) == {"accuracy": 0.5}
    assert load("f1").compute(**given, pos_label=0) == {"f1": 2 / 3}
    text = {"predictions": ["A b!", "7 c"], "references": ["a b", "c"]}
    assert load("exact_match").compute(**text) == {"exact_match": 0.0}
    assert load("exact_match").compute(**text, ignore_case=True, ignore_punctuation=True) == {"exact_match": 0.5}
    assert load("exact_match").compute(**text, regexes_to_ignore=[r"\d "]) == {"exact_match": 0.5}


def test_every_shipped_metric_loads_and_has_its_name() -> None:
    assert sorted(path.name for path in HOME.iterdir() if path.is_dir() and path.name[0] != "_") == list(SHIPPED)
    assert [load(name).name for name in SHIPPED] == list(SHIPPED)


def test_a_metric_that_is_not_shipped_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"no metric 'acuracy' \(did you mean accuracy\?\), only accuracy, "):
        load("acuracy")


def test_rouge_is_the_formula_s_by_hand() -> None:
    prediction, reference = "The cat sat on the mat.", "the cat lay on a mat - the end"
    # words: the cat sat on the mat (6); the cat lay on a mat the end (8). In both: the twice, cat, on, mat: 5.
    # pairs: 5 and 7; in both: "the cat". In order: the cat on mat, or the cat on the: 4.
    assert load("rouge").compute(predictions=[prediction], references=[reference]) == {
        "rouge1": pytest.approx(2 * (5 / 6) * (5 / 8) / (5 / 6 + 5 / 8)),
        "rouge2": pytest.approx(2 * (1 / 5) * (1 / 7) / (1 / 5 + 1 / 7)),
        "rougeL": pytest.approx(2 * (4 / 6) * (4 / 8) / (4 / 6 + 4 / 8)),
    }
    # Lin 2004, section 3.1: of "police killed the gunman", the two candidates share 3 and 2 words in order.
    lin = {
        "predictions": ["police kill the gunman", "the gunman kill police"],
        "references": 2 * ["police killed the gunman"],
    }
    assert load("rouge").compute(**lin)["rougeL"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert load("rouge").compute(predictions=["", "x"], references=["x", "x"])["rouge1"] == 0.5


# --- what a Trainer hands over ----------------------------------------------------------------------------------------


def test_logits_give_the_likeliest_class_and_only_the_first_output_is_looked_at() -> None:
    logits, labels = rng().normal(size=(20, 2)), rng().integers(0, 2, 20)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, logits.argmax(-1)),
        "f1": sklearn.metrics.f1_score(labels, logits.argmax(-1)),
    }
    hidden = (np.zeros((20, 4)), np.zeros((20, 4)))
    assert measured("accuracy f1", logits, labels) == expected
    assert measured("accuracy f1", (logits, hidden), labels) == expected
    assert measured("accuracy f1", logits.argmax(-1), labels) == expected
    assert measured("accuracy f1", torch.tensor(logits).bfloat16(), torch.tensor(labels)) == expected


def test_labels_of_minus_100_do_not_count() -> None:
    logits = np.eye(3)[[0, 1, 2, 2]]
    assert measured("accuracy", logits, np.array([0, 2, 2, -100])) == {"accuracy": 2 / 3}
    with pytest.raises(ConfigError, match="-100"):
        measured("accuracy", logits, np.full(4, -100))


def test_f1_of_more_than_two_classes_asks_how_to_average() -> None:
    logits, labels = rng().normal(size=(30, 3)), rng().integers(0, 2, 30)  # the third class is predicted, never true
    for settings in ({}, {"average": "binary"}):
        with pytest.raises(ConfigError, match="'f1'.*average='macro'"):
            measured("f1", logits, labels, **settings)
        with pytest.raises(ConfigError, match="'recall'.*average='macro'"):
            measured("recall", logits.argmax(-1), labels, **settings)
    for average in ("macro", "micro", "weighted"):
        expected = sklearn.metrics.f1_score(labels, logits.argmax(-1), average=average)
        assert measured("f1 accuracy", logits, labels, average=average)["f1"] == expected
        assert measured("f1", logits, labels, options={"f1": {"average": average}})["f1"] == expected


def test_regressions_are_measured_as_numbers() -> None:
    outputs, labels = rng().normal(size=(2, 25)).astype(np.float32)
    found = measured("mse mae pearsonr spearmanr", outputs[:, None], labels)
    assert found == {
        "mse": pytest.approx(sklearn.metrics.mean_squared_error(labels, outputs), rel=1e-6),
        "mae": pytest.approx(sklearn.metrics.mean_absolute_error(labels, outputs), rel=1e-6),
        "pearsonr": pytest.approx(scipy.stats.pearsonr(labels, outputs)[0], rel=1e-6),
        "spearmanr": pytest.approx(scipy.stats.spearmanr(labels, outputs)[0], rel=1e-6),
    }
    assert measured("mse", outputs, labels) == measured("mse", outputs, labels[:, None]) == {"mse": found["mse"]}
    several = measured("mse mae", outputs.reshape(5, 5), labels.reshape(5, 5))
    assert several == {name: pytest.approx(found[name], rel=1e-6) for name in ("mse", "mae")}


def test_several_labels_a_row_are_those_above_a_half() -> None:
    logits, labels = rng().normal(size=(20, 4)), rng().integers(0, 2, (20, 4)).astype(np.float32)
    chosen = 1 / (1 + np.exp(-logits)) > 0.5
    found = measured("accuracy f1", logits, labels, average="micro")
    assert found == {
        "accuracy": sklearn.metrics.accuracy_score(labels, chosen),
        "f1": sklearn.metrics.f1_score(labels, chosen, average="micro"),
    }
    with pytest.raises(ConfigError, match="'f1'.*average="):
        measured("f1", logits, labels)
    with pytest.raises(ConfigError, match="'matthews_correlation'.*multilabel"):
        measured("matthews_correlation", logits, labels)


class Words:
    """A tokenizer of ten words; 0 pads."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(f"w{token}" for token in row if token) + " " for row in rows]


def test_generated_tokens_are_compared_as_texts_without_what_only_fills_up() -> None:
    generated = np.array([[1, 2, 3, 0], [4, 5, -100, -100]])
    labels = np.array([[1, 2, 3], [4, -100, 6]])
    found = measured("exact_match rouge", generated, labels, processing_class=Words())
    assert found["exact_match"] == 0.5
    assert found["rouge1"] == pytest.approx((1 + 2 * 1 / 4) / 2)
    with pytest.raises(ConfigError, match="'rouge'.*processing_class"):
        metrics("accuracy", "rouge", source="shipped")
    with pytest.raises(ConfigError, match="batch_decode"):
        metrics("rouge", source="shipped", processing_class="bert")
    with pytest.raises(ConfigError, match="predict_with_generate=True"):
        measured("rouge", np.zeros((2, 3, 10)), labels, processing_class=Words())


@pytest.mark.parametrize("shifted", [True, False])
def test_tokens_are_compared_with_the_label_that_they_are_about(shifted: bool) -> None:
    logits, labels = rng().normal(size=(4, 6, 9)).astype(np.float32), rng().integers(0, 9, (4, 6))
    labels[:, 4:] = -100
    about, truth = (logits[:, :-1], labels[:, 1:]) if shifted else (logits, labels)
    counts = truth != -100
    loss = torch.nn.functional.cross_entropy(torch.tensor(about[counts]), torch.tensor(truth[counts]))
    expected = {"perplexity": math.exp(loss), "accuracy": (about.argmax(-1) == truth)[counts].mean()}
    assert measured("perplexity accuracy", logits, labels, shift_labels=shifted) == pytest.approx(expected, rel=1e-5)
    ids = logits.argmax(-1)
    assert measured("accuracy", ids, labels, shift_labels=shifted) == {"accuracy": expected["accuracy"]}
    for given in (logits, ids):
        with pytest.raises(ConfigError, match="shift_labels=True"):
            measured("accuracy", given, labels)


def test_the_logits_of_a_batch_are_reduced_to_12_bytes_a_token() -> None:
    compute = metrics("perplexity", "accuracy", source="shipped", shift_labels=True)
    logits, labels = torch.randn(4, 6, 50), torch.randint(0, 50, (4, 6))
    kept = compute.preprocess_logits_for_metrics((logits, ()), labels)
    assert sum(t.numel() * t.element_size() for t in kept.values()) == 12 * labels.numel()
    whole, reduced = (EvalPrediction(predictions=p, label_ids=labels) for p in (logits, kept))
    assert compute(whole) == compute(reduced)
    scores = torch.randn(4, 3)
    assert compute.preprocess_logits_for_metrics(scores, torch.zeros(4, dtype=torch.int64)) is scores


@pytest.mark.parametrize(
    ("names", "predictions", "labels", "told"),
    [
        ("accuracy", np.zeros((3, 2)), np.zeros((4,), int), r"\(3, 2\).*\(4,\)"),
        ("accuracy", np.zeros((3, 1)), np.zeros(3, int), "num_labels=2"),
        ("accuracy", np.zeros((3, 1)), np.ones(3) / 3, "float64"),
        ("accuracy", np.zeros((3, 2)), np.array([0, 1, 2]), "label 2 "),
        ("accuracy", np.zeros((3, 2)), np.array([0, 1, -1]), "label -1 "),
        ("mse", np.zeros((3, 2)), np.zeros(3), r"\(3, 2\).*numbers"),
        ("mse", np.zeros(3, int), np.zeros(3), "num_labels=1"),
        ("pearsonr", np.zeros((3, 2)), np.ones((3, 2)), "'pearsonr'.*multilist"),
        ("perplexity", np.zeros((3, 2)), np.zeros(3, int), r"perplexity .*\(3, 2\)"),
        ("perplexity", np.zeros((3, 2), int), np.zeros((3, 2), int), "perplexity .*predict_with_generate=True"),
        ("accuracy", np.zeros((3, 2)), None, "column 'labels'"),
        ("accuracy", np.zeros((3, 2)), (np.zeros(3), np.zeros(3)), "2 columns"),
        ("accuracy", [[1.0], [1.0, 2.0]], [0, 1], "lengths"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_found(names, predictions, labels, told) -> None:
    with pytest.raises(ConfigError, match=told):
        measured(names, predictions, labels)


@pytest.mark.parametrize(
    ("names", "settings", "told"),
    [
        ((), {}, "accuracy"),
        (("f1", "f1"), {}, "'f1'.*twice"),
        (("accuracy",), {"average": "macro"}, "average='macro'.*accuracy"),
        (("f1",), {"average": "mean"}, "average='mean'.*binary"),
        (("f1",), {"options": {"f2": {}}}, "options .*'f2'"),
        (("f1",), {"options": {"f1": {"avarage": "macro"}}}, "'avarage'.*average"),
        (("mse",), {"options": {"mse": {"squared": False}}}, "'squared'.*sample_weight"),
        (("perplexity",), {"options": {"perplexity": {"x": 1}}}, "'perplexity'.*options"),
        (("accuracy",), {"source": "here"}, "source='here'"),
        (("./nowhere",), {}, "nowhere"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_metrics_are_made(names, settings, told) -> None:
    with pytest.raises(ConfigError, match=told):
        metrics(*names, **settings)


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"hf-lora\[metrics\].*scikit-learn"):
        metrics("accuracy", source="shipped")


def test_a_module_of_one_s_own_is_taken_by_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "doubled"
    folder.mkdir()
    source = (HOME / "mae" / "mae.py").read_text().replace('"mae"', '"doubled"')
    source = source.replace("staticmethod(mean", "staticmethod(lambda *a, **k: 2 * mean").replace(
        "_error)", "_error(*a, **k))"
    )
    (folder / "doubled.py").write_text(source)
    compute = metrics(str(folder))
    assert compute(EvalPrediction(predictions=np.ones((2, 1)), label_ids=np.zeros(2))) == {"doubled": 2.0}
    assert compute.sources == {str(folder): "a file of yours"}


def test_a_name_of_the_package_costs_no_import_and_the_wheel_s_place_is_the_package() -> None:
    code = "import hf_lora, sys; assert not {'torch', 'evaluate', 'datasets'} & sys.modules.keys(); assert callable(hf_lora.metrics); assert not {'evaluate', 'datasets'} & sys.modules.keys()"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (HOME / "rouge" / "rouge.py").is_file()
