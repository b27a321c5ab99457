"""Several adapters trained in one pass over their base: each run ends where it would have ended alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, Run, train_together
from hf_lora.errors import AdapterFileError, AdapterNameError, AdapterStateError, ArgumentError, ConfigError, ModelError

from .tiny import tiny
from .trainings import CHECKPOINTING, DEFAULTS

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
Batch = list[dict[str, Any]]


def texts(count: int, seed: int, least: int = 3, most: int = 10) -> Batch:
    """Return token rows of several lengths, each with the parity of its first token."""
    draws = torch.Generator().manual_seed(seed)
    lengths = torch.randint(least, most, (count,), generator=draws).tolist()
    rows = [torch.randint(4, 48, (length,), generator=draws) for length in lengths]
    return [{"ids": row, "label": int(row[0]) % 2} for row in rows]


def padded(rows: Batch, left: bool = False) -> dict[str, Tensor]:
    """Return rows as wide as the longest of them, with their mask."""
    width = max(len(row["ids"]) for row in rows)

    def wide(x: Tensor) -> Tensor:
        rest = width - len(x)
        return nn.functional.pad(x, (rest, 0) if left else (0, rest))

    mask = torch.stack([wide(torch.ones(len(row["ids"]), dtype=torch.long)) for row in rows])
    return {"input_ids": torch.stack([wide(row["ids"]) for row in rows]), "attention_mask": mask}


def classified(rows: Batch) -> dict[str, Tensor]:
    return {**padded(rows), "labels": torch.tensor([row["label"] for row in rows])}


def with_types(rows: Batch) -> dict[str, Tensor]:
    found = classified(rows)
    return {**found, "token_type_ids": torch.zeros_like(found["input_ids"])}


def continued(rows: Batch) -> dict[str, Tensor]:
    found = padded(rows)
    return {**found, "labels": found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)}


def continued_left(rows: Batch) -> dict[str, Tensor]:
    found = padded(rows, left=True)
    return {**found, "labels": found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)}


def translated(rows: Batch) -> dict[str, Tensor]:
    ends = padded([{"ids": row["ids"][: 1 + len(row["ids"]) // 2]} for row in rows])
    return {**padded(rows), "labels": ends["input_ids"].masked_fill(ends["attention_mask"] == 0, -100)}


def seen(rows: Batch) -> dict[str, Tensor]:
    pixels = [
        torch.randn(3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(r["ids"]).item()))
        for r in rows
    ]
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor([row["label"] for row in rows])}


P = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
# name -> family, what changes of it, collator, what all runs are trained with
CASES: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "classifier": ("bert", {"num_labels": 2, **P}, classified, {"max_steps": 50}),
    "eager attention": ("bert", {"num_labels": 2, **P, "attn_implementation": "eager"}, classified, {}),
    "smoothed labels": ("bert", {"num_labels": 2}, classified, {"label_smoothing_factor": 0.2}),
    "causal LM": ("gpt2", {}, continued, {"gradient_accumulation_steps": 2}),
    "padded left": ("llama", {}, continued_left, {"average_tokens_across_devices": False}),
    "encoder-decoder": ("t5", {"dropout_rate": 0.1}, translated, {}),
    "images": ("vit", {"num_labels": 2, **P}, seen, {"remove_unused_columns": False}),
    "checkpointing": ("llama", {}, continued, {CHECKPOINTING: True}),
}


def arguments(out: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(**{
        **DEFAULTS, "output_dir": str(out), "save_strategy": "no", "remove_unused_columns": False,
        "dataloader_pin_memory": False, "max_steps": 4, "label_names": ["labels"], **changes,
    })  # fmt: skip


def of(case: str) -> Any:
    family, changes, *_ = CASES[case]
    changes = dict(changes)
    attention = changes.pop("attn_implementation", None)
    model = tiny(family, noisy=True, **changes).double()
    if attention:
        model.set_attn_implementation(attention)
    return model


def runs_of(case: str) -> dict[str, Run]:
    """Return three runs that differ in all that a run has of its own."""
    p = 0.1 if case != "checkpointing" else 0.0
    return {
        "a": Run(LoRAConfig(r=2, lora_dropout=p), train_dataset=texts(12, 0), learning_rate=1e-2, seed=1),
        "b": Run(
            LoRAConfig(r=4), train_dataset=texts(9, 1), max_steps=50 if case == "classifier" else 3, warmup_steps=2, max_grad_norm=0.05,
            weight_decay=0.1, seed=2,
        ),
        "c": Run(
            LoRAConfig(r=3, target_modules="attention", lora_dropout=p, use_dora=True), seed=3,
            train_dataset=texts(8, 2, 5, 8), per_device_train_batch_size=3, lr_scheduler_type="cosine", max_steps=4,
        ),
    }  # fmt: skip


def alone(model: Any, name: str, run: Run, args: TrainingArguments, **given: Any) -> tuple[LoRAModel, Trainer]:
    """Train a run by the stock Trainer."""
    settings = {**run.settings}
    given |= {key: settings.pop(key) for key in ("train_dataset", "callbacks", "data_collator") if key in settings}
    changes = {**args.to_dict(), **settings, "output_dir": f"{args.output_dir}/{name}"}
    own = TrainingArguments(**{key: value for key, value in changes.items() if key in args.__dataclass_fields__})
    set_seed(own.seed)
    adapted = LoRAModel.from_model(model, run.config, name)
    trainer = Trainer(adapted, own, **given)
    trainer.train()
    return adapted, trainer


def furthest(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> float:
    assert got.keys() == want.keys()
    return max(float((got[key] - want[key]).abs().max()) for key in want)


@pytest.mark.parametrize("case", CASES)
def test_each_run_ends_where_it_would_have_ended_alone(case: str, tmp_path: Path) -> None:
    collate, changes = CASES[case][2:]
    model, runs = of(case), runs_of(case)
    results = train_together(model, runs, arguments(tmp_path / "all", **changes), data_collator=collate)
    assert [row["name"] for row in results] == ["a", "b", "c"]
    for name, run in runs.items():
        want, trainer = alone(of(case), name, run, arguments(tmp_path, **changes), data_collator=collate)
        tensors = want.get_adapter_state_dict(name)
        assert furthest(model.get_adapter_state_dict(name), tensors) < 1e-10, name
        row = next(row for row in results if row["name"] == name)
        assert row["steps"] == trainer.state.global_step
        assert row["train_loss"] == pytest.approx(trainer.state.log_history[-1]["train_loss"], rel=1e-9)
        assert max(float(value.abs().max()) for value in tensors.values()) > 0.01


class Raises(TrainerCallback):
    """Ends a process in the middle of a step, as far as a test can."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt("killed")


EVERY = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def trained(out: Path, callbacks: Any = (), resume: bool = False, steps: int = 6) -> tuple[Any, Any]:
    runs, model = runs_of("eager attention"), of("classifier")
    runs["a"].settings.update(max_steps=steps, callbacks=list(callbacks))
    given = {"data_collator": classified, "eval_dataset": texts(6, 7)}
    return model, train_together(model, runs, arguments(out, **EVERY), resume_from_checkpoint=resume, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("step", [1, 3, 5])  # before any checkpoint, between two, after others were over
def test_killed_at_a_step_all_of_them_resume_and_end_as_if_nothing_had_been(
    step: int, whole: Any, tmp_path: Path
) -> None:
    want, rows = whole
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, [Raises(step)])
    got, again = trained(tmp_path, resume=True)
    with pytest.raises(AdapterFileError, match="a: the run is over, and had max_steps=6, not 11"):
        trained(tmp_path, resume=True, steps=11)
    for row, other in zip(rows, again, strict=True):
        assert furthest(got.get_adapter_state_dict(row["name"]), want.get_adapter_state_dict(row["name"])) < 1e-12
        changing = ("path", "train_loss")  # the loss is that of the steps since
        assert {k: v for k, v in row.items() if k not in changing} == {
            k: pytest.approx(v) if isinstance(v, float) else v for k, v in other.items() if k not in changing
        }


def test_each_has_its_own_best_checkpoint_and_its_own_end(tmp_path: Path) -> None:
    sizes: list[int] = []
    model, held = of("smoothed labels"), texts(6, 7)

    def noted(module: Any, args: Any, kwargs: Any) -> None:
        if module is model.bert and module.training:
            sizes.append(len(kwargs["input_ids"]))

    model.bert.register_forward_pre_hook(noted, with_kwargs=True)
    stops = {**EVERY, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    config = LoRAConfig(r=2, task_type="SEQ_CLS", target_modules="attention")
    runs = {
        "patient": Run(config, train_dataset=texts(12, 0), learning_rate=1e-2, max_steps=8),
        "hasty": Run(
            config, train_dataset=texts(12, 1), learning_rate=5e-2, max_steps=8, seed=4,
            callbacks=[EarlyStoppingCallback(1)],
        ),
        "third": Run(config, train_dataset=texts(12, 2), learning_rate=1e-3, max_steps=6, eval_dataset=texts(6, 8)),
    }  # fmt: skip
    args = arguments(tmp_path / "all", **stops)
    results = train_together(model, runs, args, data_collator=classified, eval_dataset=held)
    for name, run in runs.items():
        own = Run(run.config, **{"eval_dataset": held, **run.settings})
        given = {"data_collator": classified, "eval_dataset": own.settings.pop("eval_dataset")}
        want, trainer = alone(of("smoothed labels"), name, own, arguments(tmp_path, **stops), **given)
        row = next(row for row in results if row["name"] == name)
        assert (row["steps"], row["best_step"]) == (trainer.state.global_step, trainer.state.best_global_step)
        assert row["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-9)
        assert furthest(model.get_adapter_state_dict(name), want.get_adapter_state_dict(name)) < 1e-10
        saved = LoRAModel.from_pretrained(row["path"], base_model=of("smoothed labels"))
        assert furthest(saved.get_adapter_state_dict(), want.get_adapter_state_dict(name)) < 1e-10
        assert (Path(row["path"]) / "README.md").exists()
    ended = {row["name"]: row["steps"] for row in results}
    assert ended["hasty"] < 8, "the test is to have one that stops early"
    assert sizes.count(12) == min(ended.values())
    assert len(sizes) == sorted(ended.values())[-2]  # from then on one computes on its own
    assert "hasty" in str(results)
    assert model.active_adapters() == []
    assert not any(p.requires_grad for p in model.parameters())


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no runs": (lambda out: ({}, {}, {}), ArgumentError, "mapping of names to runs"),
    "a config for a run": (lambda out: ({"a": LoRAConfig()}, {}, {}), ArgumentError, "mapping of names to runs"),
    "a name with a dot": (lambda out: ({"a.b": Run()}, {}, {}), AdapterNameError, "without dots"),
    "names of one folder": (lambda out: ({"a": Run(), "A": Run()}, {}, {}), AdapterNameError, "capital and small"),
    "an unknown setting": (lambda out: ({"a": Run()}, {}, {"learning_rat": 1}), ConfigError, "learning_rat"),
    "an argument": (lambda out: ({"a": Run()}, {}, {"seed": 1}), ConfigError, r"'seed' \(of the arguments, or of one"),
    "a Trainer's former word": (lambda out: ({"a": Run()}, {}, {"tokenizer": 1}), ConfigError, "processing_class"),
    "nothing to train on": (lambda out: ({"a": Run(train_dataset=None)}, {}, {}), ConfigError, "no train_dataset"),
    "targets that are nowhere": (
        lambda out: ({"a": Run(), "b": Run(LoRAConfig(target_modules=["nowhere"]))}, {}, {}), ValueError, "nowhere",
    ),
    "noise": (lambda out: ({"a": Run()}, {"neftune_noise_alpha": 1.0}, {}), ConfigError, "neftune_noise_alpha"),
    "a push": (lambda out: ({"a": Run(push_to_hub=True)}, {}, {}), ConfigError, "push_to_hub"),
    "an engine's optimizer": (lambda out: ({"a": Run(optim="lomo")}, {}, {}), ConfigError, "optim"),
    "a tracker of one run": (lambda out: ({"a": Run(report_to="wandb")}, {}, {}), ConfigError, "report_to"),
    "nothing to resume": (
        lambda out: ({"a": Run()}, {}, {"resume_from_checkpoint": True}), AdapterFileError, "nothing to resume",
    ),
    "no labels": (
        lambda out: ({"a": Run(), "b": Run()}, {}, {"data_collator": padded}), ValueError, "did not return a loss",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_train_is_refused_and_the_model_left_as_it_was(what: str, tmp_path: Path) -> None:
    make, error, words = WRONG[what]
    runs, changes, given = make(tmp_path)
    model = of("classifier")
    kind, flags = type(model), [p.requires_grad for p in model.parameters()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for run in runs.values():
        if isinstance(run, Run):
            run.settings.setdefault("train_dataset", texts(4, 0))
    with pytest.raises(error, match=words):
        train_together(model, runs, arguments(tmp_path / "out", **changes), **{"data_collator": classified, **given})
    assert type(model) is kind
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_settings_that_no_run_has_are_refused_where_they_are_written() -> None:
    with pytest.raises(ConfigError, match="near: learning_rate"):
        Run(learning_rte=1)
    for given, told in {"lr": "near: learning_rate", "r": r"of the adapter, LoRAConfig\(r="}.items():
        with pytest.raises(ConfigError, match=told):
            Run(**{given: 1})
    with pytest.raises(ConfigError, match="folder of its name"):
        Run(output_dir="x")
    with pytest.raises(ArgumentError, match="LoRAConfig"):
        Run("r=8")


def test_a_folder_that_was_written_by_a_run_is_not_written_by_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").touch()
    with pytest.raises(AdapterFileError, match="resume_from_checkpoint=True"):
        train_together(of("classifier"), {"a": Run(train_dataset=texts(4, 0))}, arguments(tmp_path))


def test_rows_that_have_a_say_in_each_others_results_are_refused(tmp_path: Path) -> None:
    model = of("smoothed labels")
    model.bert.embeddings.register_forward_hook(lambda module, args, output: output - output.mean(0))
    runs = {name: Run(LoRAConfig(r=2), train_dataset=texts(4, i), seed=i) for i, name in enumerate("ab")}
    with pytest.raises(AdapterStateError, match="rows.*have a say"):
        train_together(model, runs, arguments(tmp_path), data_collator=classified)
    with pytest.raises(ModelError, match="no model of Transformers' inside"):
        train_together(nn.Sequential(nn.Linear(2, 2)), runs, arguments(tmp_path / "other"))


def test_adapters_that_the_model_has_stay_as_they_are(tmp_path: Path) -> None:
    model = LoRAModel.from_model(of("smoothed labels"), LoRAConfig(r=2, init_lora_weights=False), "mine")
    before = {key: value.clone() for key, value in model.get_adapter_state_dict("mine").items()}
    runs = {name: Run(LoRAConfig(r=2), train_dataset=texts(8, i), seed=i) for i, name in enumerate("ab")}
    train_together(model, runs, arguments(tmp_path / "all"), data_collator=classified)
    assert furthest(model.get_adapter_state_dict("mine"), before) == 0
    assert model.active_adapters() == ["mine"]
    assert list(model.peft_config) == ["mine", "a", "b"]
    want, _ = alone(of("smoothed labels"), "b", runs["b"], arguments(tmp_path), data_collator=classified)
    assert furthest(model.get_adapter_state_dict("b"), want.get_adapter_state_dict("b")) < 1e-10


def test_draws_that_cannot_be_told_apart_are_told(tmp_path: Path) -> None:
    config = LoRAConfig(r=2, lora_dropout=0.3)
    runs = {name: Run(config, train_dataset=texts(8, i), seed=i) for i, name in enumerate("ab")}
    args = arguments(tmp_path, **{CHECKPOINTING: True})
    with pytest.warns(UserWarning, match="a, b draw other random numbers.*in distribution only"):
        train_together(of("checkpointing"), runs, args, data_collator=continued)


def test_batches_that_do_not_go_together_are_computed_apart_and_told(tmp_path: Path) -> None:
    runs = {"a": Run(train_dataset=texts(8, 0)), "b": Run(train_dataset=texts(8, 1), data_collator=with_types)}
    model = of("smoothed labels")
    with pytest.warns(UserWarning, match="a, b: their batches differ.*on its own"):
        train_together(model, runs, arguments(tmp_path / "all"), data_collator=classified)
    want, _ = alone(of("smoothed labels"), "b", runs["b"], arguments(tmp_path))
    assert furthest(model.get_adapter_state_dict("b"), want.get_adapter_state_dict("b")) < 1e-10
