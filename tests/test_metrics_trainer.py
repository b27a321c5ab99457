"""The stock Trainers evaluate with `hf_lora.metrics`: exactly, without keeping logits, and the model card tells it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import sklearn.metrics
import torch
from huggingface_hub import ModelCard
from transformers import EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from hf_lora import LoRAConfig, LoRAModel, metrics
from hf_lora.errors import ConfigError

from .peek import Metrics, measured
from .tiny import VOCAB, tiny
from .trainings import Rows, bert, gpt2, t5, tokenizer, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
DECODER_ALONE = {"is_decoder": True, "is_encoder_decoder": False}


def lora(name: str, **settings: Any) -> LoRAModel:
    """Return a tiny model with a fresh adapter."""
    return LoRAModel.from_model(tiny(name, **settings), LoRAConfig(r=2))


def evaluating(model: Any, compute: Metrics | None, rows: list, out: Path, **settings: Any) -> Trainer:
    run = trainer(model, out, per_device_eval_batch_size=settings.pop("per_device_eval_batch_size", 3), **settings)
    run.eval_dataset, run.compute_metrics = rows, compute
    return run


def token_rows(lengths: list[int]) -> list[dict[str, torch.Tensor]]:
    """Rows whose first label does not count, so that every Transformers divides by the same tokens."""
    rows = []
    for length in lengths:
        ids = torch.randint(2, 32, (6,))
        labels = torch.where(torch.arange(6) < length, ids, -100)
        labels[0] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def stacked(rows: list, key: str = "input_ids") -> torch.Tensor:
    return torch.stack([row[key] for row in rows])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {}),
        ("llama", {}),
        ("bert_mlm", {}),
        ("bart", {"cls": "BartForCausalLM", **DECODER_ALONE}),  # whose loss shifts no labels
        ("whisper", {"cls": "WhisperForCausalLM", **DECODER_ALONE}),
    ],
)
def test_perplexity_is_exp_of_the_evaluation_loss(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    found = evaluating(lora(name, **settings), metrics("perplexity"), token_rows([6] * 6), tmp_path).evaluate()
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]), rel=1e-5)


def test_perplexity_counts_every_token_the_same_however_the_rows_are_batched(tmp_path: Path) -> None:
    rows, model = token_rows([6, 3, 6, 2, 4, 6, 5]), gpt2().eval()
    with torch.no_grad():
        loss = model(stacked(rows), labels=stacked(rows, "labels")).loss
    for size in (1, 3, 7):
        run = evaluating(model, metrics("perplexity"), rows, tmp_path, per_device_eval_batch_size=size)
        assert run.evaluate()["eval_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_evaluating_keeps_no_logits_and_predicting_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = Metrics.__call__
    monkeypatch.setattr(
        Metrics,
        "__call__",
        lambda self, given, *rest: (seen.append(given.predictions), original(self, given, *rest))[1],
    )
    run = evaluating(gpt2(), metrics("perplexity"), token_rows([6] * 6), tmp_path)
    found = run.evaluate()
    assert {k: v.shape for k, v in seen[0].items()} == {"ids": (6, 6), "nll": (6, 6)}
    assert run.preprocess_logits_for_metrics is None
    predicted = run.predict(run.eval_dataset)
    assert predicted.predictions.shape == (6, 6, VOCAB)
    assert predicted.metrics["test_perplexity"] == pytest.approx(found["eval_perplexity"], rel=1e-5)


@pytest.mark.filterwarnings("ignore:The number of unique classes:UserWarning")  # scikit-learn 1.7, of 32 words
def test_a_user_s_own_function_for_the_logits_is_left_alone(tmp_path: Path) -> None:
    run = evaluating(gpt2(), metrics("accuracy"), token_rows([6] * 6), tmp_path)
    expected = run.evaluate()["eval_accuracy"]
    run.preprocess_logits_for_metrics = mine = lambda logits, labels: logits.argmax(-1)
    assert run.evaluate()["eval_accuracy"] == expected
    assert run.preprocess_logits_for_metrics is mine


@pytest.mark.parametrize("settings", [{}, {"eval_do_concat_batches": False}, {"eval_accumulation_steps": 1}])
def test_metrics_over_batches_are_those_of_the_whole(settings: dict, tmp_path: Path) -> None:
    rows = [{"input_ids": torch.randint(2, 32, (6,)), "labels": torch.tensor(i % 2)} for i in range(8)]
    model, compute = bert(), metrics("accuracy", "f1", "matthews_correlation")
    with torch.no_grad():
        logits = model.eval()(stacked(rows)).logits
    expected = compute(EvalPrediction(predictions=logits, label_ids=torch.arange(8) % 2))
    for batched in (False, True):
        run = evaluating(model, compute, rows, tmp_path, batch_eval_metrics=batched, **settings)
        for _ in range(2):
            found = run.evaluate()
            assert {name: found[f"eval_{name}"] for name in expected} == expected


def test_batches_of_an_evaluation_that_was_broken_off_do_not_count(tmp_path: Path) -> None:
    run = evaluating(bert(), metrics("accuracy"), list(Rows(8)), tmp_path, batch_eval_metrics=True)
    expected = run.evaluate()["eval_accuracy"]
    wrong = EvalPrediction(predictions=torch.eye(2)[[0, 0, 0]], label_ids=torch.ones(3, dtype=torch.int64))
    assert run.compute_metrics(wrong, compute_result=False) == {}
    assert run.evaluate()["eval_accuracy"] == expected


def test_token_classifiers_are_measured_where_a_label_stands(tmp_path: Path) -> None:
    model = lora("roberta")
    rows = [
        {"input_ids": torch.randint(2, 32, (6,)), "labels": torch.tensor([-100, 0, 1, 2, 1, -100])} for _ in range(7)
    ]
    with torch.no_grad():
        ids = model.eval()(stacked(rows)).logits.argmax(-1)[:, 1:5]
    found = evaluating(model, metrics("accuracy", "f1", average="macro"), rows, tmp_path).evaluate()
    truth = stacked(rows, "labels")[:, 1:5]
    assert found["eval_accuracy"] == (ids == truth).double().mean().item()
    assert found["eval_f1"] == sklearn.metrics.f1_score(truth.flatten(), ids.flatten(), average="macro")


def test_a_model_of_three_classes_is_refused_before_anything_is_computed() -> None:
    model = tiny("bert", num_labels=3)
    with pytest.raises(ConfigError, match="'f1'"):
        metrics("accuracy", "f1").begin(model)
    metrics("accuracy", "f1", average="macro").begin(model)
    metrics("accuracy", "f1").begin(torch.nn.Linear(1, 3))  # which says nothing of itself


def test_generated_texts_are_compared_and_tokens_are_not_since_labels_stand_one_place_apart(tmp_path: Path) -> None:
    words = tokenizer(*(f"w{i}" for i in range(3, VOCAB)))
    model = t5().eval()
    model.generation_config.update(max_length=6, suppress_tokens=[0, 1, 2])  # both are padded to this length
    ids = torch.randint(3, 32, (3, 5))  # one whole batch: a Trainer counts rows of others more often
    with torch.no_grad():
        own = model.generate(ids)[:, 1:]
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, own, strict=True)]

    def run(compute: Metrics, generates: bool) -> Seq2SeqTrainer:
        arguments = Seq2SeqTrainingArguments(
            str(tmp_path), predict_with_generate=generates, report_to=[], disable_tqdm=True, use_cpu=True
        )
        return Seq2SeqTrainer(
            model=model, args=arguments, eval_dataset=rows, compute_metrics=compute, processing_class=words
        )

    texts = metrics("rouge", "exact_match", processing_class=words)
    found = run(texts, True).evaluate()
    assert {found[f"eval_{name}"] for name in ("rouge1", "rouge2", "rougeL", "exact_match")} == {1.0}
    found = run(metrics("perplexity"), False).evaluate()
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]), rel=1e-5), "an encoder-decoder's"
    with pytest.raises(ConfigError, match="predict_with_generate=True"):
        run(texts, False).evaluate()
    of_tokens = run(metrics("accuracy"), True)
    for measure in (of_tokens.evaluate, lambda: of_tokens.predict(rows)):
        with pytest.raises(ConfigError, match="'accuracy'.*'exact_match'"):
            measure()


def test_the_best_model_by_a_metric_is_there_at_the_end(tmp_path: Path) -> None:
    values = iter([0.25, 0.75, 0.5, 0.0])  # of the three evaluations in training; step 4 is the best
    run = evaluating(
        bert(), metrics(lambda predictions, references: {"found": next(values)}), list(Rows(24)), tmp_path,
        eval_strategy="steps", eval_steps=2, learning_rate=0.2, load_best_model_at_end=True,
        metric_for_best_model="found", greater_is_better=True,
    )  # fmt: skip
    run.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_found" in entry}
    assert run.state.best_model_checkpoint.endswith("checkpoint-4")
    assert run.evaluate()["eval_loss"] == losses[4] != losses[6]


def test_a_trainer_with_another_compute_metrics_evaluates_as_before(tmp_path: Path) -> None:
    run = evaluating(bert(), None, list(Rows(8)), tmp_path)
    run.compute_metrics = lambda given: {"rows": len(given.predictions)}
    assert run.evaluate()["eval_rows"] == 8


# --- in the model card ------------------------------------------------------------------------------------------------


def results_of(folder: Path) -> list[dict[str, object]]:
    """Return each metric of a card's model-index but the loss, with its data set's split."""
    index = ModelCard.load(folder / "README.md").data.to_dict()["model-index"]
    return [
        metric | ({"split": result["dataset"]["split"]} if "split" in result["dataset"] else {})
        for result in index[0]["results"]
        for metric in result["metrics"]
        if metric["type"] != "loss"
    ]


def test_the_card_has_every_metric_with_its_type_its_settings_and_its_value(tmp_path: Path) -> None:
    compute = metrics("accuracy", "f1", average="macro")
    run = evaluating(bert(), compute, list(Rows(8)), tmp_path, save_strategy="no")
    run.train_dataset, found = Rows(), run.evaluate()
    run.create_model_card(dataset="Words", dataset_tags="me/words")
    assert results_of(tmp_path) == [
        {"type": "accuracy", "value": found["eval_accuracy"]},
        {"type": "f1", "value": found["eval_f1"], "args": {"average": "macro"}},
    ]
    text = (tmp_path / "README.md").read_text()
    assert f"| f1 (average=macro) | {found['eval_f1']:.4g} |" in text
    run.create_model_card(dataset="Words", dataset_tags="me/words")
    assert (tmp_path / "README.md").read_text() == text
    run.model.save_pretrained(tmp_path)
    assert f"| f1 (average=macro) | {found['eval_f1']:.4g} |" in (tmp_path / "README.md").read_text()


def test_the_card_knows_rouge_perplexity_and_correlations(tmp_path: Path) -> None:
    run = evaluating(bert(), metrics("accuracy"), list(Rows(8)), tmp_path)
    given = {"rouge1": 0.5, "rouge2": 0.25, "rougeL": 0.375, "perplexity": 12.5, "pearsonr": 0.75, "mse": math.nan}
    for values in (dict.fromkeys(given, 1.0), given):  # the second time each gets its new value
        run.log({f"eval_{name}": value for name, value in values.items()})
        run.create_model_card(dataset_tags="me/words")
    assert results_of(tmp_path) == [
        {"type": "rouge", "name": "ROUGE-1", "value": 0.5},
        {"type": "rouge", "name": "ROUGE-2", "value": 0.25},
        {"type": "rouge", "name": "ROUGE-L", "value": 0.375},
        {"type": "perplexity", "value": 12.5},
        {"type": "pearsonr", "value": 0.75},
        {"type": "mse", "value": 1.0},  # what is no number is no result
    ]
    assert "| ROUGE-2 | 0.25 |" in (tmp_path / "README.md").read_text()


def test_several_data_sets_are_told_apart_in_the_card(tmp_path: Path) -> None:
    both = {"seen": list(Rows(8)), "un_seen": list(Rows(24))[8:]}
    run = evaluating(bert(), metrics("accuracy"), both, tmp_path)
    found = run.evaluate()
    run.create_model_card(dataset_tags="me/words")
    assert results_of(tmp_path) == [
        {"type": "accuracy", "value": found["eval_seen_accuracy"], "split": "seen"},
        {"type": "accuracy", "value": found["eval_un_seen_accuracy"], "split": "un_seen"},
    ]
    text = (tmp_path / "README.md").read_text()
    assert f"| accuracy | {found['eval_un_seen_accuracy']:.4g} | me/words un_seen |" in text


def test_the_card_s_results_are_those_of_the_weights_that_are_there(tmp_path: Path) -> None:
    run = trainer(
        bert(), tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, learning_rate=0.2,
        metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    run.train()
    best = next(e for e in run.state.log_history if e.get("step") == run.state.best_global_step and "eval_loss" in e)
    assert best["step"] != 6, "the last step is the best one, so this test proves nothing"
    assert measured(run)["loss"] == best["eval_loss"]
    run.log({"eval_loss": 7.0})  # measured after that
    assert measured(run)["loss"] == 7.0
