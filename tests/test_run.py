"""A run is a record: the same settings give the same bits, an interrupted one goes on, and all of it is written down."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from hf_lora.errors import ConfigError, LoRAError

from .forks import run as run_program
from .hub import Hub
from .peek import (
    BestBy,
    RunSettings,
    TrainedRun,
    chosen_metric,
    cli,
    load_run,
    plan_run,
    read_rows,
    train_plan,
)
from .runs import write_base, write_rows

FLAGS = "--train rows.csv --epochs 3 --learning-rate 0.01 --batch-size 8 --threads 1 --eval-steps 4"
TRAIN = f"train --model base {FLAGS} --output"
Capture = pytest.CaptureFixture[str]


def hf_lora(command: str, *more: str) -> int:
    """Run a command as a shell would, words apart by spaces, and return its status."""
    return int(cli.main([*command.split(), *more]))


def told(command: str, capsys: Capture) -> str:
    """Run a command that is refused with status 2 and return its error."""
    capsys.readouterr()
    assert hf_lora(command) == 2
    return capsys.readouterr().err


def bits(run: str) -> bytes:
    return Path(run, "adapter_model.safetensors").read_bytes()


def curves(run: str) -> list[dict[str, str]]:
    with Path(run, "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def record(run: str) -> dict[str, Any]:
    return json.loads(Path(run, "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `rows.csv` and the finished `run`."""
    folder = tmp_path_factory.mktemp("runs")
    write_base(folder / "base")
    write_rows(folder / "rows.csv")
    before = Path.cwd()
    os.chdir(folder)
    try:
        about = ("--language", "en", "--license", "apache-2.0", "--base-id", "me/tiny-bert")
        assert hf_lora(f"{TRAIN} run", *about) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def _standing_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


class Interrupts(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, does: Callable[[], None]) -> None:
        self.step, self.does = step, does

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.does()


def leave_unfinished(run: str, step: int, scratch: Path, does: Callable[[], None] | None = None) -> None:
    """Begin the run of the fixture in another folder, and break it off after a step."""

    def breaks() -> None:
        raise RuntimeError("the power is gone")

    settings = RunSettings.load(Path("run", "run.yaml"), {"output": run})
    plan = plan_run(settings, scratch)
    with pytest.raises(RuntimeError, match="power"):
        train_plan(plan, callbacks=[Interrupts(step, does or breaks)])


# The same bits again


def test_the_resolved_settings_give_the_same_bits_again_and_flags_win_over_them() -> None:
    assert hf_lora("train --config run/run.yaml --output again") == 0
    assert bits("again") == bits("run")
    assert record("again")["test"] == record("run")["test"]
    mine, again = (yaml.safe_load(Path(run, "run.yaml").read_text()) for run in ("run", "again"))
    assert {**mine, "output": "again"} == again
    assert hf_lora("train --config run/run.yaml --seed 1 --output other") == 0
    assert bits("other") != bits("run")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_same_bits_come_from_another_process(place: Path) -> None:
    done = run_program(
        "from tests.peek import cli; raise SystemExit(cli.main(['train', '--config', 'run/run.yaml', '--output', 'fresh']))",
        place,
    )
    assert done.returncode == 0, done.stderr
    assert bits("fresh") == bits("run")


@pytest.mark.parametrize("step", [3, 6, 18])  # before the first checkpoint, between two, in the midst of the last epoch
def test_an_interrupted_run_goes_on_from_its_folder_alone_and_ends_in_the_same_bits(step: int, tmp_path: Path) -> None:
    run = f"broken{step}"
    leave_unfinished(run, step, tmp_path)
    assert not record(run)["finished"]
    assert hf_lora(f"train --resume --output {run}") == 0
    assert bits(run) == bits("run")
    assert (Path(run, "curves.csv").read_bytes()) == Path("run", "curves.csv").read_bytes()
    assert {**record(run), "seconds": 0, "peak_bytes": 0} == {**record("run"), "seconds": 0, "peak_bytes": 0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_run_goes_on(place: Path) -> None:
    code = """
import os, signal
from pathlib import Path
from tests.test_run import Interrupts, RunSettings, plan_run, train_plan
Path("scratch").mkdir()
plan = plan_run(RunSettings.load(Path("run/run.yaml"), {"output": "killed"}), Path("scratch"))
train_plan(plan, callbacks=[Interrupts(10, lambda: os.kill(os.getpid(), signal.SIGKILL))])
"""
    assert run_program(code, place).returncode == -signal.SIGKILL
    assert hf_lora("train --resume --output killed") == 0
    assert bits("killed") == bits("run")


def test_a_run_goes_on_with_its_own_settings_and_data_only(tmp_path: Path, capsys: Capture) -> None:
    leave_unfinished("halted", 6, tmp_path)
    assert "where epochs is 3.0; leave --epochs out" in told("train --resume --output halted --epochs 5", capsys)
    rows = Path("rows.csv")
    kept = rows.read_bytes()
    rows.write_bytes(kept.replace(b"good", b"fine"))
    try:
        error = told("train --resume --output halted", capsys)
        assert "rows.csv: it is no more what the run in halted was trained on; bring it back" in error
        assert hf_lora("train --config run/run.yaml --max-steps 2 --output changed") == 0
        assert "rows.csv: it is no more what the run in run was trained on" in capsys.readouterr().out
    finally:
        rows.write_bytes(kept)
    assert hf_lora("train --resume --output halted") == 0
    assert "that run is finished" in told("train --resume --output halted", capsys)
    assert "no run.yaml" in told("train --resume --output nowhere", capsys)
    assert "--output DIR" in told("train --resume", capsys)


# The folder


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("when", ["unlink", "rmtree"])
def test_where_replacing_a_run_is_cut_off_the_new_one_goes_on(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_unfinished(f"cut-{when}", 6, tmp_path)
    there = []

    def cut(path: Any, **_: Any) -> None:
        there.extend(each.name for each in Path(f"cut-{when}").iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path if when == "unlink" else shutil, when, cut)
        assert hf_lora(f"{TRAIN} cut-{when} --max-steps 2 --overwrite") == 130
    assert {"run.yaml", "metrics.json"} <= set(there)
    assert hf_lora(f"train --resume --output cut-{when}") == 0


def test_a_folder_that_holds_something_is_refused_and_kept(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine").mkdir()
    for name in ("README.md", "adapter_config.json"):
        Path("mine", name).write_text("mine")
        assert name in told(f"{TRAIN} mine", capsys)
        assert "no run of hf-lora's; name another folder" in told(f"{TRAIN} mine --overwrite", capsys)
        assert Path("mine", name).read_text() == "mine"
    assert "that is a file" in told(f"{TRAIN} rows.csv", capsys)
    assert "finished run; name another folder, or replace that run with --overwrite" in told(f"{TRAIN} run", capsys)
    leave_unfinished("half", 6, tmp_path)
    assert "go on with `hf-lora train --resume --output half`" in told(f"{TRAIN} half", capsys)
    Path("half", "left.txt").write_text("of the old run")
    before = {path: path.read_bytes() for path in Path("half").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert "No space left" in told(f"{TRAIN} half --overwrite", capsys)
    assert {path: path.read_bytes() for path in Path("half").rglob("*") if path.is_file()} == before
    assert hf_lora(f"{TRAIN} half --max-steps 2 --overwrite") == 0
    assert record("half")["steps"] == 2
    assert not Path("half", "left.txt").exists()


def test_a_run_leaves_its_record_and_nothing_else() -> None:
    assert {path.name for path in Path("run").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "curves.csv", "curves.png", "metrics.json",
        "run.yaml", "task.json", "tokenizer.json", "tokenizer_config.json", "train.log",
    }  # fmt: skip
    found = record("run")
    assert found["finished"]
    assert (found["steps"], found["epochs"]) == (24, 3.0)
    assert found["data"]["train"]["source"] == "rows.csv"
    assert len(found["data"]["train"]["sha256"]) == 64
    assert {split: fact["rows"] for split, fact in found["data"].items()} == {"train": 64, "eval": 8, "test": 8}
    assert found["best"]["step"] % 4 == 0
    assert found["best"]["accuracy"] == found["eval"]["accuracy"]
    assert found["parameters"]["trained"] < found["parameters"]["total"]
    rows = curves("run")
    assert [int(row["step"]) for row in rows] == list(range(1, 25))
    assert [row["step"] for row in rows if row["eval_accuracy"]] == ["4", "8", "12", "16", "20", "24"]
    assert Path("run", "curves.png").read_bytes().startswith(b"\x89PNG")
    log = Path("run", "train.log").read_text()
    assert "columns: text = review, label = stars" in log
    assert "step 24 of 24: eval_loss" in log


def test_the_card_tells_the_test_rows_results_apart_and_names_no_path(place: Path) -> None:
    card, found = ModelCard.load("run/README.md"), record("run")
    told = {(each.dataset_split, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert told["test", "accuracy"] == pytest.approx(found["test"]["accuracy"])
    assert told["validation", "loss"] == pytest.approx(found["eval"]["loss"])
    assert found["test"]["loss"] != found["eval"]["loss"]
    assert {each.dataset_name for each in card.data.eval_results} == {"rows.csv"}
    assert (card.data.base_model, card.data.language, card.data.license) == ("me/tiny-bert", "en", "apache-2.0")
    assert str(place) not in card.content


def test_push_uploads_the_adapter_and_nothing_of_the_record(
    hub: Hub, place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)  # the Hub's client stands elsewhere
    hub.add("org/base", place / "base")
    assert hf_lora(f"{TRAIN} pushed --max-steps 2 --push me/adapter --base-id org/base") == 0
    assert "pushed to " in capsys.readouterr().out
    files = hub.files("me/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "task.json", "tokenizer.json"} <= set(
        files
    )
    assert not {"run.yaml", "metrics.json", "train.log", "curves.csv"} & set(files)
    assert files["adapter_model.safetensors"] == bits("pushed")


# Settings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lora rr=3", "there is no setting 'rr'; did you mean 'r'?"),
        ("--lora r=3", "--lora r: that is a flag of its own, --r"),
        ("--lora use_dora", "--lora use_dora: it takes NAME=VALUE"),
        ("--r 0", "r=0"),
        ("--trainer max_grad_nrm=1", "did you mean 'max_grad_norm'?"),
        ("--trainer learning_rate=1", "that is --learning-rate"),
        ("--trainer max_grad_norm=many", "max_grad_norm"),
        ("--scheduler sine", "'cosine'"),
        ("--learning-rate 0", "learning_rate=0.0: it has to be above 0"),
        ("--learning-rate nan", "learning_rate=nan"),
        ("--warmup 1.5", "warmup=1.5"),
        ("--seed -1", "seed=-1"),
        ("--eval-share 0.6 --test-share 0.4", "together below 1"),
        ("--quantize 2bit", "quantize='2bit': it is one of 4bit, 8bit"),
        ("--metric acuracy", "acuracy"),
        ("--push me/a/b", "push='me/a/b'"),
        ("--push me/adapter", "--base-id"),
        ("--model=", "--model is missing"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("--config list.yaml", "it holds no settings"),
        ("--config wrong.yaml", "there is no setting 'epoch'; did you mean 'epochs'?"),
        ("--config twice.yaml", "'r' is there twice"),
        ("--config type.yaml", "epochs='many': it is a text, and has to be a number or nothing"),
        ("--r 999999", "r=999999: it has to be above 0 and at most 65,536"),
        ("--learning-rate 1e9", "learning_rate=1000000000.0: it has to be above 0 and at most 10"),
        ("--lora-alpha 1e300", "lora_alpha=1e+300"),
        ("--batch-size 999999999999", "batch_size=999999999999"),
        ("--weight-decay -1", "weight_decay=-1.0: it has to be at least 0"),
        ("--epochs 0", "epochs=0"),
        ("--trainer max_grad_norm=-1", "max_grad_norm=-1: it has to be at least 0"),
        ("--trainer adam_beta1=7", "--trainer adam_beta1=7: Invalid beta"),  # of what the Trainer makes
        ("--trainer per_device_eval_batch_size=0", "per_device_eval_batch_size=0: batch_size"),
        ("--trainer lr_scheduler_kwargs={a:1}", "lr_scheduler_kwargs"),
        ("--trainer torch_compile_mode=x", "--trainer torch_compile_mode=x: Unrecognized mode=x"),
        ("--trainer log_level=x", "--trainer log_level=x: KeyError: 'x'"),
        ("--trainer accelerator_config=nowhere.json", "--trainer accelerator_config=nowhere.json: FileNotFoundError: "),
        ("--trainer resume_from_checkpoint=x", "that is --resume"),
        ("--lora use_adalora=true --lora tinit=9999", "tinit=9999 and tfinal=0 leave none of total_step="),
        ("--trainer report_to=nonsense", "nonsense is not supported"),
        ("--output rows.csv/run", "rows.csv is no folder"),
    ],
)
def test_a_setting_that_cannot_be_is_named_before_the_data_is_read(flags: str, message: str, capsys: Capture) -> None:
    Path("list.yaml").write_text("- r\n")
    Path("wrong.yaml").write_text("epoch: 3\n")
    Path("twice.yaml").write_text("r: 3\nr: 4\n")
    Path("type.yaml").write_text("epochs: many\n")
    assert message in told(f"train --model base --train rows.csv --output refused {flags}", capsys)
    assert not Path("refused").exists()


def test_what_the_trainer_refuses_when_it_begins_is_named_too(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ImportError("use_liger_kernel needs liger-kernel")

    monkeypatch.setattr("transformers.Trainer.train", refuse)
    flags = "--column text=review --column label=stars --max-steps 1 --threads 1 --overwrite --output begun"
    named = told(f"train --model base --train rows.csv {flags} --trainer use_cpu=true", capsys)
    assert "the Trainer refuses the settings --trainer use_cpu=True: use_liger_kernel needs liger-kernel" in named
    assert hf_lora(f"train --model base --train rows.csv {flags}") == 70  # without --trainer it is a bug


def test_a_switch_that_a_file_of_settings_has_is_taken_back(capsys: Capture) -> None:
    settings = {"model": "base", "train": "rows.csv", "column": {"text": "review", "label": "stars"}, "packing": True}
    Path("packs.yaml").write_text(yaml.safe_dump(settings))
    assert "--packing: text-classification has no such option" in told("train --config packs.yaml --dry-run", capsys)
    assert hf_lora("train --config packs.yaml --dry-run --no-packing") == 0


def test_yaml_takes_numbers_as_people_write_them_and_settings_of_several_sources_join(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 3e-4\ncolumn: {text: a}\nr: 4\n")
    found = RunSettings.load(file, {"column": {"label": "b"}, "r": 8})
    assert (found.learning_rate, found.column, found.r) == (3e-4, {"text": "a", "label": "b"}, 8)
    found.save(file)
    assert RunSettings.load(file, {}) == found


@pytest.mark.parametrize(
    ("metric", "best"),
    [("accuracy", ("accuracy", True)), ("-brier", ("brier", False)), ("wer", ("wer", False)), ("mse", ("mse", False)),
     ("perplexity", ("perplexity", False)), ("loss", ("loss", False)), ("pearsonr", ("pearsonr", True))],
)  # fmt: skip
def test_the_first_metric_chooses_and_errors_are_better_when_lower(metric: str, best: tuple[str, bool]) -> None:
    assert chosen_metric(RunSettings(metric=[metric, "f1"])) == best


def test_the_loss_chooses_among_equal_metrics() -> None:
    assert hf_lora(f"{TRAIN} ties --epochs 8") == 0
    found = record("ties")
    rows = [row for row in curves("ties") if row["eval_loss"]]
    best = max(float(row["eval_accuracy"]) for row in rows)
    ties = [row for row in rows if float(row["eval_accuracy"]) == best]
    assert len(ties) > 1  # or this test says nothing
    assert found["best"]["step"] == int(min(ties, key=lambda row: float(row["eval_loss"]))["step"])


def test_a_metric_without_a_result_is_an_error() -> None:
    class State:
        best_metric = None

    with pytest.raises(ConfigError, match="no such result, but loss"):
        BestBy("wer", {}).on_evaluate(State(), State(), None, metrics={"eval_loss": 1.0})


def test_patience_ends_a_run_that_gets_no_better() -> None:
    assert hf_lora(f"{TRAIN} patient --patience 1 --learning-rate 1e-9 --epochs 9") == 0
    assert record("patient")["steps"] < 24


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        assert "pip install bitsandbytes" in told(f"{TRAIN} quantized --quantize 4bit", capsys)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("width", [16, 64])  # the CPU's packing of 4 bits, which has no backward, takes the second only
def test_a_quantised_base_trains_on_after_an_evaluation_and_is_the_same_when_reloaded(
    bits: str, width: int, tmp_path: Path, capsys: Capture
) -> None:
    run = f"{bits}-{width}"
    write_base(tmp_path / "base", hidden_size=width, intermediate_size=2 * width)
    settings = {"model": str(tmp_path / "base"), "train": "rows.csv", "quantize": bits, "output": run, "threads": 1}
    plan = plan_run(RunSettings(**settings, max_steps=8, eval_steps=4, batch_size=8, learning_rate=0.01), tmp_path)
    assert train_plan(plan)["steps"] == 8
    capsys.readouterr()
    assert hf_lora(f"evaluate {run} --json") == 0
    found = capsys.readouterr()
    measured = json.loads(found.out)["adapter"]
    assert measured == {name: record(run)["test"][name] for name in measured}
    (tmp_path / "scratch").mkdir()
    rows = read_rows("rows.csv", tmp_path / "scratch")
    model = TrainedRun(plan.model.eval().requires_grad_(False), plan.processor, plan.preparation)
    assert list(load_run(run).predict(rows, 16)) == list(model.predict(rows, 16))
    assert hf_lora(f"merge {run} merged-{run} --verify") == 0
    assert f"wrote merged-{run} in float32" in capsys.readouterr().out


def test_a_rank_above_every_layer_s_smaller_side_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert hf_lora(f"{TRAIN} dry --dry-run --r 60") == 0
    assert "--r 60 is above the smaller side of every layer: their updates have 16 directions" in caplog.text
    caplog.clear()
    assert hf_lora(f"{TRAIN} dry --dry-run --r 16") == 0
    assert "smaller side" not in caplog.text


# What is shown


def test_without_a_terminal_there_are_plain_lines_and_the_next_command(capsys: Capture) -> None:
    capsys.readouterr()
    assert hf_lora(f"{TRAIN} shown --max-steps 8") == 0
    found = capsys.readouterr()
    assert "\r" not in found.out + found.err
    assert found.err == ""
    lines = found.out.splitlines()
    assert "rows: 64 to train on, 8 to choose the best checkpoint by, 8 to test on" in lines
    assert any(line.startswith("classes: neg, pos") for line in lines)
    assert any(line.startswith("step 8 of 8, epoch 1: loss ") for line in lines)
    assert lines[-1] == "Next: hf-lora predict shown rows.csv"


def test_json_is_alone_on_stdout(capsys: Capture) -> None:
    capsys.readouterr()
    assert hf_lora(f"{TRAIN} as-json --max-steps 2 --json") == 0
    found = capsys.readouterr()
    assert json.loads(found.out) == {"output": "as-json", **record("as-json")}
    assert "step 2 of 2" in found.err


def test_a_dry_run_tells_what_a_run_is_and_writes_nothing(capsys: Capture) -> None:
    before, state = sorted(Path().rglob("*")), torch.get_rng_state()
    capsys.readouterr()
    assert hf_lora(f"{TRAIN} dry --dry-run --json") == 0
    found, real = json.loads(capsys.readouterr().out), record("run")
    assert sorted(Path().rglob("*")) == before
    assert found["steps"] == real["steps"]
    assert found["parameters"] == real["parameters"]
    assert "query" in found["targets"]
    assert len(found["samples"]) == 3
    assert all(sample["input_ids"].startswith("[CLS] ") for sample in found["samples"])
    assert found["memory"]["optimizer"] == 2 * 4 * real["parameters"]["trained"]
    assert found["memory"]["peak"] == sum(found["memory"][part] for part in ("now", "step", "optimizer"))
    assert hf_lora(f"{TRAIN} dry --dry-run") == 0
    assert "MiB at most, resident in this process" in capsys.readouterr().out
    torch.set_rng_state(state)


def test_settings_without_a_model_or_rows_are_refused(capsys: Capture) -> None:
    assert "--model is missing" in told("train --train rows.csv", capsys)
    assert "--train is missing" in told("train --model base", capsys)
    with pytest.raises(LoRAError, match="eval_share"):
        RunSettings(eval_share=0.0)


def test_a_handful_of_rows_trains_from_the_first_step(capsys: Capture) -> None:
    """A warm-up of one step has a rate of zero there: the first checkpoint would be the base, and the best by a tie."""
    write_rows(Path("few.csv"), 8)
    assert hf_lora("train --model base --train few.csv --threads 1 --output few") == 0
    capsys.readouterr()
    assert all(float(row["learning_rate"]) > 0 for row in curves("few") if row.get("learning_rate"))
