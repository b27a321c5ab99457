"""`hf_lora.metrics` measures what the stock Trainer evaluates, exactly, and refuses what cannot be compared."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from transformers import EvalPrediction

from hf_lora import metrics
from hf_lora.errors import ConfigError, HubError, MissingExtraError

MODULE = """
import datasets
import evaluate

class {name}(evaluate.Metric):
    def _info(self):
        column = datasets.Value("{dtype}")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{"predictions": column, "references": column}}),
        )

    def _compute(self, predictions, references, average="binary"):
        {body}
"""
PERFECT = EvalPrediction(predictions=np.eye(2), label_ids=np.array([0, 1]))
RNG = np.random.default_rng(0)
NAN = math.nan


def measured(names: Any, predictions: object, labels: object, **settings: Any) -> dict[str, float]:
    """Return the metrics of one evaluation."""
    compute = metrics(*(names.split() if isinstance(names, str) else names), **settings)
    return compute(EvalPrediction(predictions=predictions, label_ids=labels))


class Words:
    """A tokenizer of ten words; 0 pads."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(f"w{token}" for token in row if token) + " " for row in rows]


class Texts:
    """A tokenizer whose tokens are whole texts."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [self.texts[row[0]] for row in rows]


def of_texts(name: str, predictions: list[str], references: list[str], **options: Any) -> dict[str, float]:
    """Return a metric of generated texts."""
    tokenizer, rows = Texts(*predictions, *references), np.arange(2 * len(predictions))[:, None]
    generated, labels = np.split(rows, 2)
    return measured(name, generated, labels, processing_class=tokenizer, options={name: options})


# --- each metric against what it is defined by ------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["binary", "macro", "micro", "weighted"])
def test_metrics_of_classes_are_scikit_learn_s(average: str) -> None:
    predictions, labels = RNG.integers(0, 2 if average == "binary" else 4, (2, 50))
    logits = np.eye(labels.max() + 1)[predictions]
    scores = {name: getattr(sklearn.metrics, f"{name}_score") for name in ("f1", "precision", "recall")}
    expected = {name: score(labels, predictions, average=average) for name, score in scores.items()}
    expected["accuracy"] = sklearn.metrics.accuracy_score(labels, predictions)
    expected["matthews_correlation"] = sklearn.metrics.matthews_corrcoef(labels, predictions)
    hidden = (np.zeros((50, 4)), np.zeros((50, 4)))
    as_tensors = (torch.tensor(logits).bfloat16(), torch.tensor(labels))
    by_name = [({"hidden": hidden, "logits": logits}, labels), (({"scores": logits}, hidden), labels)]
    for given in ((predictions, labels), (logits, labels), ((logits, hidden), labels), as_tensors, *by_name):
        assert measured(expected, *given, average=average) == expected
    assert measured("f1", predictions, labels, options={"f1": {"average": average}}) == {"f1": expected["f1"]}


def test_options_go_to_the_function_that_computes() -> None:
    given = (np.array([0, 1, 1]), np.array([0, 1, 0]))
    options = {"accuracy": {"normalize": False}, "f1": {"pos_label": 0}}
    compute = metrics("accuracy", "f1", options=options)
    assert compute(EvalPrediction(predictions=given[0], label_ids=given[1])) == {"accuracy": 2.0, "f1": 2 / 3}
    assert compute.settings == options
    assert compute.sources["f1"] == "sklearn.metrics.f1_score"
    text = (["A b!", "7 c"], ["a b", "c"])
    assert of_texts("exact_match", *text) == {"exact_match": 0.0}
    for option in ({"ignore_case": True, "ignore_punctuation": True}, {"regexes_to_ignore": [r"\d "]}):
        assert of_texts("exact_match", *text, **option) == {"exact_match": 0.5}


def test_rouge_is_the_formula_s_by_hand() -> None:
    # words: the cat sat on the mat (6); the cat lay on a mat the end (8). In both: the twice, cat, on, mat: 5.
    # pairs: 5 and 7; in both: "the cat". In order: the cat on mat, or the cat on the: 4.
    assert of_texts("rouge", ["The cat sat on the mat."], ["the cat lay on a mat - the end"]) == {
        "rouge1": pytest.approx(2 * (5 / 6) * (5 / 8) / (5 / 6 + 5 / 8)),
        "rouge2": pytest.approx(2 * (1 / 5) * (1 / 7) / (1 / 5 + 1 / 7)),
        "rougeL": pytest.approx(2 * (4 / 6) * (4 / 8) / (4 / 6 + 4 / 8)),
    }
    # Lin 2004, section 3.1: of "police killed the gunman", the two candidates share 3 and 2 words in order.
    lin = (["police kill the gunman", "the gunman kill police"], 2 * ["police killed the gunman"])
    assert of_texts("rouge", *lin)["rougeL"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert of_texts("rouge", ["", "x"], ["x", "x"])["rouge1"] == 0.5
    with pytest.raises(ConfigError, match="no reference has any; 'chrf'"):
        of_texts("rouge", ["雪"], ["雪は白い"])


def test_translations_are_compared_as_papineni_and_popovic_do() -> None:
    # Of the 1- to 4-grams 5 of 6, 4 of 5, 3 of 4 and 2 of 3 are in the reference, which is as long.
    said, truth = ["the cat sat on the rug"], ["the cat sat on the mat"]
    want = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert of_texts("sacrebleu", said, truth) == {"sacrebleu": pytest.approx(want)}
    assert of_texts("sacrebleu", ["雪は白い"], ["雪は白い"], tokenize="char") == {"sacrebleu": pytest.approx(100)}
    assert of_texts("chrf", ["雪は白い"], ["雪は白い"]) == {"chrf": pytest.approx(100)}
    assert of_texts("chrf", ["abc"], ["xyz"]) == {"chrf": 0.0}


def test_labels_of_minus_100_do_not_count() -> None:
    logits = np.eye(3)[[0, 1, 2, 2]]
    assert measured("accuracy", logits, np.array([0, 2, 2, -100])) == {"accuracy": 2 / 3}
    with pytest.raises(ConfigError, match="-100"):
        measured("accuracy", logits, np.full(4, -100))


def test_f1_of_more_than_two_classes_asks_how_to_average() -> None:
    logits, labels = RNG.normal(size=(30, 3)), RNG.integers(0, 2, 30)  # the third class is predicted, never true
    for settings in ({}, {"average": "binary"}):
        with pytest.raises(ConfigError, match="'f1'.*average='macro'"):
            measured("f1", logits, labels, **settings)
        with pytest.raises(ConfigError, match="'recall'.*average='macro'"):
            measured("recall", logits.argmax(-1), labels, **settings)


def test_regressions_are_measured_as_numbers() -> None:
    outputs, labels = RNG.normal(size=(2, 25)).astype(np.float32)
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
    logits, labels = RNG.normal(size=(20, 4)), RNG.integers(0, 2, (20, 4)).astype(np.float32)
    chosen = 1 / (1 + np.exp(-logits)) > 0.5
    assert measured("accuracy f1", logits, labels, average="micro") == {
        "accuracy": sklearn.metrics.accuracy_score(labels, chosen),
        "f1": sklearn.metrics.f1_score(labels, chosen, average="micro"),
    }
    with pytest.raises(ConfigError, match="'f1'.*average="):
        measured("f1", logits, labels)
    with pytest.raises(ConfigError, match="'matthews_correlation'.*multilabel"):
        measured("matthews_correlation", logits, labels)


def test_generated_tokens_are_compared_as_texts_without_what_only_fills_up() -> None:
    generated = np.array([[1, 2, 3, 0], [4, 5, -100, -100]])
    labels = np.array([[1, 2, 3], [4, -100, 6]])
    found = measured("exact_match rouge", generated, labels, processing_class=Words())
    assert found["exact_match"] == 0.5
    assert found["rouge1"] == pytest.approx((1 + 2 * 1 / 4) / 2)
    same_length = measured([lambda predictions, references: {"equal": float(predictions == references)}], labels, labels, processing_class=Words())  # fmt: skip
    assert same_length == {"equal": 1.0}


@pytest.mark.parametrize("shifted", [True, False])
def test_tokens_are_compared_with_the_label_that_they_are_about(shifted: bool) -> None:
    logits, labels = RNG.normal(size=(4, 6, 9)).astype(np.float32), RNG.integers(0, 9, (4, 6))
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
    compute = metrics("perplexity", "accuracy", shift_labels=True)
    logits, labels = torch.randn(4, 6, 50), torch.randint(0, 50, (4, 6))
    kept = compute.preprocess_logits_for_metrics((logits, ()), labels)
    assert sum(t.numel() * t.element_size() for t in kept.values()) == 12 * labels.numel()
    whole, reduced = (EvalPrediction(predictions=p, label_ids=labels) for p in (logits, kept))
    assert compute(whole) == compute(reduced)
    scores = torch.randn(4, 3)
    assert compute.preprocess_logits_for_metrics(scores, torch.zeros(4, dtype=torch.int64)) is scores
    assert metrics("perplexity").preprocess_logits_for_metrics(logits, labels) is logits
    labels[:, 3:], logits[:, 2:5] = -100, math.nan  # at what counts for nothing
    assert compute(EvalPrediction(predictions={"logits": logits}, label_ids=labels))["perplexity"] > 1


# --- modules of evaluate, and functions -------------------------------------------------------------------------------


def module(folder: Path, name: str, body: str, dtype: str = "int32") -> str:
    """Return the path of a module of `evaluate`."""
    path = folder / name / f"{name}.py"
    path.parent.mkdir(parents=True)
    path.write_text(MODULE.format(name=name, body=body, dtype=dtype))
    return str(path)


@pytest.mark.filterwarnings("ignore:.*what is no number is left out. average='(binary|macro)':UserWarning")
def test_modules_of_evaluate_are_taken_by_path_by_name_and_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (module(tmp_path, name, f'return {{"{name}": 7.0, "average": average}}') for name in ("one", "f1"))
    loaded = evaluate.load(one, keep_in_memory=True)
    assert metrics(one)(PERFECT) == metrics(loaded)(PERFECT) == {"one": 7.0}
    both = evaluate.combine([loaded, evaluate.load(other, keep_in_memory=True)])
    assert metrics(both, "accuracy", average="macro")(PERFECT) == {"one": 7.0, "f1": 7.0, "accuracy": 1.0}
    asked: list[tuple[str, bool]] = []
    load = evaluate.load
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        evaluate, "load", lambda name, keep_in_memory: (asked.append((name, keep_in_memory)), load(other))[1]
    )
    compute = metrics("f1", "bleu_of_somebody", "perplexity", source="hub")
    assert asked == [("f1", True), ("bleu_of_somebody", True)], "in memory, so that processes share no file"
    assert compute.sources["f1"] == "evaluate's f1"
    assert "bleu_of_somebody (evaluate's f1)" in repr(compute)
    assert metrics("f1")(PERFECT) == {"f1": 1.0}, "the names that work offline are asked of nobody"
    assert len(asked) == 2


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE"])
def test_a_name_that_needs_the_hub_is_refused_offline_with_those_that_do_not(variable, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", variable == "HF_HUB_OFFLINE")
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", variable == "HF_EVALUATE_OFFLINE")
    with pytest.raises(HubError, match=r"'acuracy' \(did you mean accuracy\?\).* work accuracy, .*perplexity"):
        metrics("f1", "acuracy")
    with pytest.raises(HubError, match="no metric 'accuracy', or"):
        metrics("accuracy", source="hub")
    with pytest.raises(ConfigError, match="'bleu'.* work accuracy"):
        metrics("bleu", source="shipped")
    assert metrics("accuracy", "f1")(PERFECT) == {"accuracy": 1.0, "f1": 1.0}


def test_functions_get_classes_numbers_or_texts_by_what_there_is() -> None:
    def largest(predictions: Any, references: Any, times: int = 1) -> float:
        return times * max(predictions)

    assert measured([largest], np.eye(3), np.arange(3)) == {"largest": 2.0}
    assert measured([largest], np.array([[0.5], [1.5]]), np.array([0.1, 0.2])) == {"largest": 1.5}
    assert measured([largest], np.eye(3), np.arange(3), options={"largest": {"times": 4}}) == {"largest": 8.0}
    several = measured([lambda predictions, references: {"sum": predictions.sum()}], np.eye(3) - 0.5, np.eye(3))
    assert several == {"sum": 3.0}


def test_numbers_of_every_kind_are_taken_and_what_is_none_is_named() -> None:
    kinds = {"a": np.float32(2.0), "b": np.array(2.0), "c": torch.tensor(2.0), "d": np.bool_(True), "e": np.int64(3)}
    for value in kinds.values():
        assert measured([lambda predictions, references, v=value: v], np.eye(2), np.arange(2)) == {"<lambda>": value}
    with pytest.warns(UserWarning, match=r"no number is left out: x='text', y=\[1\.0\], z=None\."):
        found = measured(
            [lambda predictions, references: {**kinds, "x": "text", "y": [1.0], "z": None}], np.eye(2), np.arange(2)
        )
    assert found == {key: float(value) for key, value in kinds.items()}


@pytest.mark.parametrize(
    ("body", "dtype", "told"),
    [
        ('return {"a": "text"}', "int32", "odd.py'.*number"),
        ('return {"accuracy": 1.0}', "int32", "odd.py'.*accuracy"),
        ("raise ValueError('not so')", "int32", "odd.py'.*not so"),
        ("return {}", "binary", "odd.py'.*Trainer"),
    ],
)
def test_a_module_that_cannot_be_used_says_why(body: str, dtype: str, told: str, tmp_path: Path) -> None:
    path = module(tmp_path, "odd", body, dtype)
    with pytest.raises(ConfigError, match=told):
        metrics("accuracy", path)(PERFECT)


def test_a_missing_package_is_named_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = module(tmp_path, "odd", "import nowhere_to_be_found")
    Path(path).write_text("import nowhere_to_be_found\n" + Path(path).read_text())
    with pytest.raises(MissingExtraError, match="nowhere_to_be_found"):
        metrics(path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(MissingExtraError, match=r'"\.\[metrics\]".*scikit-learn'):
        metrics("accuracy")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "predictions", "labels", "told"),
    [
        ("accuracy", np.zeros((3, 2)), np.zeros((4,), int), r"\(3, 2\).*\(4,\)"),
        ("accuracy", np.zeros((3, 1)), np.zeros(3, int), "num_labels=2"),
        ("accuracy", np.zeros((3, 1)), np.ones(3) / 3, "float64.*'mse'"),
        ("accuracy", np.zeros((3, 2)), np.array([0, 1, 2]), "label 2 "),
        ("accuracy", np.zeros((3, 2)), np.array([0, 1, -1]), "label -1 "),
        ("accuracy", np.zeros((3, 4, 2)), np.zeros((3, 5), int), r"\(3, 4, 2\).*\(3, 5\).*label for each token"),
        ("accuracy", np.zeros((3, 4)), np.eye(3), "several labels"),
        ("mse", np.zeros((3, 2)), np.zeros(3), r"\(3, 2\).*numbers"),
        ("mse", np.zeros(3, int), np.zeros(3), "num_labels=1"),
        ("pearsonr", np.zeros((3, 2)), np.ones((3, 2)), "'pearsonr'.*no number"),
        ("perplexity", np.zeros((3, 2)), np.zeros(3, int), r"\(3, 2\).*perplexity "),
        ("perplexity", np.zeros((3, 2), int), np.zeros((3, 2), int), "perplexity .*predict_with_generate=True"),
        ("rouge", np.zeros((2, 3, 10)), np.zeros((2, 3), int), "predict_with_generate=True"),
        ("accuracy", np.zeros((3, 2)), None, "column 'labels'"),
        ("accuracy", np.zeros((3, 2)), (np.zeros(3), np.zeros(3)), "2 columns"),
        ("accuracy", [[1.0], [1.0, 2.0]], [0, 1], "lengths"),
        ("accuracy", np.array([[NAN, 1.0], [0.0, 1.0]]), np.array([0, 1]), "1 of 2 .* NaN"),
        ("accuracy", np.array([[NAN, 1.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]]), "1 of 2 .* NaN"),
        ("accuracy", np.full((1, 2, 3), NAN), np.array([[0, 1]]), "2 of 2 .* NaN"),
        ("perplexity", np.full((1, 2, 3), NAN), np.array([[0, -100]]), "1 of 2 .* NaN"),
        ("pearsonr", np.array([NAN, 1.0, 2.0]), np.arange(3.0), "1 of 3 .* NaN"),
    ],
)
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_what_does_not_fit_is_refused_with_what_was_found(names, predictions, labels, told) -> None:
    with pytest.raises(ConfigError, match=told):
        measured(names, predictions, labels, processing_class=Words(), shift_labels=False)


@pytest.mark.parametrize(
    ("names", "settings", "told"),
    [
        ((), {}, "accuracy"),
        ((5,), {}, "5 is no metric"),
        (({},), {}, "{} is no metric"),
        (("./nope",), {}, r"no file or folder '\./nope'"),
        (("metrics/nope.py",), {}, r"no file or folder 'metrics/nope\.py'"),
        (("f1", "f1"), {}, "'f1'.*twice"),
        (("accuracy",), {"average": "macro"}, "average='macro'.*accuracy"),
        (("f1",), {"average": "mean"}, "average='mean'.*binary"),
        (("f1",), {"options": {"f2": {}}}, "options .*'f2'"),
        (("f1",), {"options": {"f1": {"avarage": "macro"}}}, "'avarage'.*average"),
        (("mse",), {"options": {"mse": {"squared": False}}}, "'squared'.*sample_weight"),
        (("perplexity",), {"options": {"perplexity": {"x": 1}}}, "'perplexity'.*none"),
        (("accuracy",), {"source": "here"}, "source='here'"),
        (("accuracy", "rouge"), {}, "'rouge'.*processing_class"),
        (("rouge",), {"processing_class": "bert"}, "batch_decode"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_metrics_are_made(names, settings, told) -> None:
    with pytest.raises(ConfigError, match=told):
        metrics(*names, **settings)


@pytest.mark.slow
def test_a_name_of_the_package_costs_no_import_and_neither_evaluate_nor_scikit_learn_comes_unasked() -> None:
    code = "import hf_lora, sys; assert not {'torch', 'evaluate', 'sklearn'} & sys.modules.keys(); hf_lora.metrics('perplexity'); assert 'sklearn.metrics' not in sys.modules and 'evaluate' not in sys.modules"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
