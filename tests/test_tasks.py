"""Every task by the command: from a file of raw rows to a saved adapter that predicts the same when it is reloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_lora import LoRAModel

from . import jobs, jobs_generation, jobs_media, jobs_text
from .jobs import Job
from .peek import TRAINING_TASKS, TrainedRun, cli, read_rows, running, train_plan

JOBS = jobs.JOBS + jobs_generation.JOBS + jobs_media.JOBS + jobs_text.JOBS
IDS = [job.task for job in JOBS]
# Tasks that a model tells by its class and labels; of the others, rows said how numbers, boxes or prompts are meant.
TOLD = {
    "text-classification", "image-classification", "audio-classification", "multi-label", "multiple-choice",
    "object-detection", "summarization",
}  # fmt: skip


@pytest.fixture(scope="module", params=JOBS, ids=IDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path, Path, Any]:
    """Return a job, its rows, the folder that the command made of them, and the trained model as it is in memory."""
    job: Job = request.param
    place = tmp_path_factory.mktemp(job.task)
    base, rows = job.base(place / "base"), job.rows(place)
    command = ["train", "--model", str(base), "--task", job.task, "--train", str(rows), "--output", str(place / "run")]
    plans: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "train_plan", lambda plan, **how: (plans.append(plan), train_plan(plan, **how))[1])
        assert cli.main([*command, *job.flags]) == 0
    plan = plans[0]
    plan.model.eval().requires_grad_(False)  # as a loaded one: torch.matmul takes another way for weights that train
    return job, rows, place / "run", TrainedRun(plan.model, plan.processor, plan.preparation)


def test_a_run_leaves_an_adapter_its_card_and_its_record(trained: tuple[Job, Path, Path, Any]) -> None:
    job, _, run, _ = trained
    files = ("adapter_config.json", "adapter_model.safetensors", "README.md", "run.yaml", "task.json", "metrics.json")
    assert [name for name in files if not (run / name).is_file()] == []
    assert not (run / "model.safetensors").exists()
    measured = json.loads((run / "metrics.json").read_text())
    if job.learns:
        name, least = job.learns
        reached = measured["test"][name.lstrip("-").removeprefix("eval_")]
        assert reached <= least if name.startswith("-") else reached >= least


def test_a_dry_run_tells_the_steps_and_shows_rows_as_the_model_sees_them(
    trained: tuple[Job, Path, Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, run, _ = trained
    capsys.readouterr()
    assert cli.main(["train", "--config", str(run / "run.yaml"), "--output", f"{run}-dry", "--dry-run", "--json"]) == 0
    found, real = json.loads(capsys.readouterr().out), json.loads((run / "metrics.json").read_text())
    assert (found["steps"], found["parameters"]) == (real["steps"], real["parameters"])
    assert len(found["samples"]) == 3
    assert all(found["samples"])
    assert found["memory"]["peak"] > 0
    assert not Path(f"{run}-dry").exists()


def test_predictions_of_the_reloaded_adapter_are_those_of_the_trained_model(
    trained: tuple[Job, Path, Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, rows, run, model = trained
    rows = job.asks(tmp_path) if job.asks else rows
    assert cli.main(["predict", str(run), str(rows), "--output", str(tmp_path / "said.jsonl")]) == 0
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text(encoding="utf-8").splitlines()]
    (tmp_path / "scratch").mkdir()
    assert said == list(model.predict(read_rows(str(rows), tmp_path / "scratch"), 16))


def test_evaluate_gives_the_digits_of_the_record(
    trained: tuple[Job, Path, Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, run, _ = trained
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    recorded = json.loads((run / "metrics.json").read_text())["test"]
    assert found["adapter"] == pytest.approx(recorded, rel=1e-5)  # sums of float32, of tensors that lie elsewhere
    assert "differs" not in found


def test_an_adapter_without_its_record_predicts_the_same_where_its_model_tells_the_task(
    trained: tuple[Job, Path, Path, Any], tmp_path: Path
) -> None:
    job, rows, run, model = trained
    if job.task not in TOLD:
        pytest.skip("only its rows told what it learnt")
    (tmp_path / "bare").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, tmp_path / "bare")
    assert cli.main(["predict", str(tmp_path / "bare"), str(rows), "--output", str(tmp_path / "said.jsonl")]) == 0
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text(encoding="utf-8").splitlines()]
    (tmp_path / "scratch").mkdir()
    assert said == list(model.predict(read_rows(str(rows), tmp_path / "scratch"), 16))


def test_the_card_has_the_task_and_what_was_measured(trained: tuple[Job, Path, Path, Any]) -> None:
    job, _, run, _ = trained
    card = ModelCard.load(run / "README.md")
    measured = json.loads((run / "metrics.json").read_text())["test"]
    assert job.tag in (None, card.data.pipeline_tag)
    told = {result.metric_value for result in card.data.eval_results}
    assert {value for name, value in measured.items() if name != "loss"} <= told


def test_the_kind_of_loss_is_saved(trained: tuple[Job, Path, Path, Any]) -> None:
    _, _, run, model = trained
    kind = model.preparation.model_arguments().get("problem_type")
    assert kind is None or LoRAModel.from_pretrained(run).config.problem_type == kind


def test_every_task_of_the_table_is_tried() -> None:
    assert set(IDS) == set(TRAINING_TASKS)
