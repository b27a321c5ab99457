"""The commands on a finished run: what they measure, predict, merge, compare and show."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .hub import Hub
from .peek import TRAINING_TASKS, cli, load_run, read_rows
from .runs import write_base, write_rows

Capture = pytest.CaptureFixture[str]
DOCS = Path(__file__).parents[1] / "docs" / "commands.md"


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `rows.csv` and the finished `run`, which learnt something."""
    folder = tmp_path_factory.mktemp("commands")
    write_base(folder / "base")
    write_rows(folder / "rows.csv")
    with inside(folder):
        flags = "--epochs 6 --learning-rate 0.01 --test-share 0.25 --threads 1 --batch-size 8"
        assert cli.main(f"train --model base --train rows.csv --output run {flags}".split()) == 0
    return folder


@pytest.fixture(autouse=True)
def _standing_there(place: Path, capsys: Capture) -> Iterator[None]:
    with inside(place):
        capsys.readouterr()
        yield


def run(command: str, capsys: Capture) -> str:
    """Run a command that has to succeed and return what it prints."""
    assert cli.main(command.split()) == 0
    return capsys.readouterr().out


def recorded(part: str) -> dict[str, Any]:
    found = json.loads(Path("run", "metrics.json").read_text(encoding="utf-8"))[part]
    return {key.removeprefix("eval_"): value for key, value in found.items()}


def test_evaluate_gives_the_digits_of_the_run_s_own_record(capsys: Capture) -> None:
    found = json.loads(run("evaluate run --json", capsys))
    record = recorded("test")
    assert found["count"] == 20
    assert set(found["adapter"]) == {"loss", "accuracy", "f1"}
    assert found["adapter"] == {name: record[name] for name in found["adapter"]}
    assert found["adapter"]["accuracy"] > 0.7


def test_evaluate_says_where_the_record_differs(capsys: Capture) -> None:
    path = Path("run", "metrics.json")
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept.replace('"loss": ', '"loss": 9'), encoding="utf-8")
    try:
        assert cli.main(["evaluate", "run"]) == 0
    finally:
        path.write_text(kept, encoding="utf-8")
    told = capsys.readouterr()
    assert "loss is" in told.err
    assert "metrics.json says 9" in told.err


def test_evaluate_measures_other_rows_other_metrics_and_the_base(capsys: Capture) -> None:
    write_rows(Path("new.csv"), 30)
    found = json.loads(run("evaluate run new.csv --metric matthews_correlation --base --json", capsys))
    assert found["count"] == 30
    assert set(found["adapter"]) == set(found["base"]) == {"loss", "matthews_correlation"}
    assert found["adapter"]["matthews_correlation"] > found["base"]["matthews_correlation"]
    assert "classifier" in found["untrained"]
    table = run("evaluate run new.csv --base", capsys)
    assert [line.split()[0] for line in table.splitlines()[-4:-1]] == ["loss", "accuracy", "f1"]


def test_evaluate_says_which_of_two_labels_is_the_positive_one(capsys: Capture) -> None:
    found = json.loads(run("evaluate run --json", capsys))
    record = json.loads(Path("run", "task.json").read_text(encoding="utf-8"))
    assert found["positive"] == record["labels"][1]
    assert "positive" not in json.loads(run("evaluate run --metric accuracy --json", capsys))
    assert cli.main(["evaluate", "run"]) == 0
    assert f"f1, precision and recall are of the label {found['positive']!r}." in capsys.readouterr().err


def test_words_of_a_table_stay_whole(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert {"rewards/accuracies", "mean_average_precision"} - {*run("tasks", capsys).split()} == set()


def test_what_bitsandbytes_says_of_itself_is_not_printed(capsys: Capture) -> None:
    run("tasks", capsys)
    assert any(isinstance(each, logging.NullHandler) for each in logging.getLogger("bitsandbytes").handlers)


def test_evaluate_says_that_rows_were_trained_on(capsys: Capture) -> None:
    assert cli.main(["evaluate", "run", "rows.csv"]) == 0
    rows = json.loads(Path("run", "metrics.json").read_text(encoding="utf-8"))["data"]["train"]["rows"]
    assert f"{rows} of the " in (told := capsys.readouterr().err)
    assert "rows were trained on" in told
    write_rows(Path("new.csv"), 30)
    for rest in (["new.csv"], []):
        assert cli.main(["evaluate", "run", *rest]) == 0
        assert "trained on" not in capsys.readouterr().err


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_predict_says_the_same_as_the_reloaded_run_in_the_rows_order(capsys: Capture, tmp_path: Path) -> None:
    said = lines(run("predict run rows.csv --batch-size 7", capsys))
    expected = list(load_run("run").predict(read_rows("rows.csv", tmp_path), 7))
    assert said == expected
    assert len(said) == 80
    with_rows = lines(
        run("predict run rows.csv --batch-size 7 --keep --output said.jsonl", capsys)
        or Path("said.jsonl").read_text("utf-8")
    )
    assert [row["id"] for row in with_rows] == [str(number) for number in range(80)]
    assert [row["prediction"] for row in with_rows] == expected
    assert set(with_rows[0]) == {"id", "review", "stars", "prediction"}
    assert sum(row["stars"] == row["prediction"]["label"] for row in with_rows) > 60


class Pipe:
    """A stdin that counts the lines that were read of it."""

    def __init__(self, text: Iterable[str]) -> None:
        self.text, self.read = text, 0

    def __iter__(self) -> Iterator[str]:
        for line in self.text:
            self.read += 1
            yield line


def test_predict_takes_options_of_the_task(capsys: Capture) -> None:
    assert lines(run("predict run rows.csv --set max_length=3", capsys)) != lines(run("predict run rows.csv", capsys))


def test_predict_answers_a_pipe_batch_by_batch(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(f"good w{number % 20}\n" for number in range(100_000))
    monkeypatch.setattr("sys.stdin", pipe)
    written: list[int] = []

    class Reader(io.StringIO):
        def write(self, text: str) -> int:
            written.append(pipe.read)
            if len(written) > 40:
                raise BrokenPipeError
            return len(text)

    monkeypatch.setattr("sys.stdout", Reader())
    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr(Reader, "fileno", lambda _: 1, raising=False)
    assert cli.main(["predict", "run", "-", "--batch-size", "4"]) == 1
    assert written[0] == 4
    assert pipe.read <= 44


def test_predict_reads_texts_and_objects_of_a_pipe(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", ["fine good w1\n", "poor bad w1\n"])
    texts = lines(run("predict run -", capsys))
    monkeypatch.setattr(
        "sys.stdin", ['\ufeff{"id": 7, "Comment": "fine good w1"}\n', "\n", '{"Comment": "poor bad w1"}\n']
    )
    objects = lines(run("predict run - --keep", capsys))
    assert [row["prediction"] for row in objects] == texts
    assert objects[0]["id"] == 7
    assert [row["label"] for row in texts] == ["pos", "neg"]


def test_predict_takes_no_table_for_texts(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Path("rows.csv").read_text(encoding="utf-8").splitlines(keepends=True))
    assert cli.main(["predict", "run", "-"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "line 1: it reads as the header of a table" in told.err


def test_predict_takes_an_adapter_that_nobody_recorded_a_task_of_also_from_the_hub(
    place: Path, capsys: Capture, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    names = ("adapter_config.json", "adapter_model.safetensors")
    config = json.loads(Path("run", names[0]).read_text("utf-8")) | {"base_model_name_or_path": "org/base"}
    hub.add("org/base", Path("base"))
    hub.add("me/bare", {names[0]: json.dumps(config).encode(), names[1]: Path("run", names[1]).read_bytes()})
    expected = lines(run("predict run rows.csv", capsys))
    assert lines(run("predict me/bare rows.csv", capsys)) == expected
    measured = json.loads(run("evaluate me/bare rows.csv --batch-size 8 --json", capsys))  # the run's: the same bits
    assert measured["adapter"] == json.loads(run("evaluate run rows.csv --json", capsys))["adapter"]
    assert cli.main("predict me/bare rows.csv --task nonsense".split()) == 2


def test_rows_in_another_encoding_are_read_where_it_is_said(capsys: Capture) -> None:
    write_rows(Path("new.csv"), 30)
    text = Path("new.csv").read_text("utf-8").replace("w1", "tr\u00e8s")
    Path("new.csv").write_text(text, encoding="utf-8")
    Path("latin.csv").write_text(text, encoding="cp1252")
    for command in ("predict run", "evaluate run --json"):
        assert cli.main([*command.split(), "latin.csv"]) == 2
        assert "--encoding" in capsys.readouterr().err
        name, *flags = command.split()
        read = run(f"{name} run latin.csv --encoding cp1252 {' '.join(flags[1:])}", capsys)
        assert read.replace("latin.csv", "new.csv") == run(f"{command} new.csv", capsys)


def test_predict_writes_its_file_whole_or_not_at_all(capsys: Capture) -> None:
    Path("some.csv").write_text("review\n" + "good w1\n" * 20 + '" "\n', encoding="utf-8")
    assert cli.main("predict run some.csv --output part.jsonl --batch-size 4".split()) == 2
    assert "some.csv, line 22" in capsys.readouterr().err
    assert not list(Path().glob("*part.jsonl*"))
    run("predict run some.csv --output part.jsonl --skip-bad-rows", capsys)
    assert len(Path("part.jsonl").read_text("utf-8").splitlines()) == 20
    before = Path("some.csv").read_bytes()
    assert cli.main("predict run some.csv --output ./some.csv --skip-bad-rows".split()) == 2
    assert "is the file of the rows" in capsys.readouterr().err
    assert Path("some.csv").read_bytes() == before


def test_two_runs_are_compared_by_settings_results_and_what_one_seed_can_tell(place: Path, capsys: Capture) -> None:
    shutil.copytree("run", "other", dirs_exist_ok=True)
    record = json.loads(Path("other", "metrics.json").read_text("utf-8"))
    text = Path("other", "run.yaml").read_text("utf-8")
    Path("other", "run.yaml").write_text(text.replace("\nr: 16\n", "\nr: 4\n"), encoding="utf-8")
    right = record["test"]["accuracy"]

    def told(accuracy: float, **facts: Any) -> dict[str, Any]:
        changed = {**record, "test": {**record["test"], "accuracy": accuracy}, **facts}
        Path("other", "metrics.json").write_text(json.dumps(changed), encoding="utf-8")
        return json.loads(run("compare run other --json", capsys))

    near, far = told(right - 0.05), told(right - 0.6)
    assert near["settings"] == {"r": [16, 4]}
    assert near["results"]["test"]["accuracy"] == [right, right - 0.05]
    assert (near["metric"], near["split"], near["better"]) == ("accuracy", "test", "run")
    assert near["difference"] == pytest.approx(0.05)
    assert near["chance"].startswith("One seed cannot tell")
    assert far["chance"].startswith("That is more than")
    assert told(right)["better"] is None
    whole = {**record, "test": {**record["test"], "accuracy": 1.0}}
    Path("run", "metrics.json").write_text(json.dumps(whole), encoding="utf-8")
    assert "up to 0.12 (" in told(1.0)["chance"]  # 20 rows without a mistake
    Path("run", "metrics.json").write_text(json.dumps(record), encoding="utf-8")
    data = {**record["data"], "train": {**record["data"]["train"], "sha256": "0"}}
    assert told(right, data=data)["chance"].startswith("They were measured on other rows")
    told(right - 0.05)
    table = run("compare run other", capsys)
    assert "run is better by 0.05 of test accuracy" in " ".join(table.split())
    assert "best step" in table
    Path("other", "metrics.json").write_text(json.dumps({**record, "finished": False}), encoding="utf-8")
    assert cli.main(["compare", "run", "other"]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_says_its_dtype_and_clears_what_a_killed_one_left(dtype: str, capsys: Capture) -> None:
    left, mine = Path(f".in-{dtype}.0123abcd.tmp"), Path(f".in-{dtype}")
    for folder in (left, mine):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    said = run(f"merge run in-{dtype} --verify" + (f" --dtype {dtype}" if dtype != "float32" else ""), capsys)
    assert f"wrote in-{dtype} in {dtype}; its outputs differ" in said
    assert json.loads(Path(f"in-{dtype}", "config.json").read_text())["dtype"] == dtype
    assert {value.dtype for value in load_file(Path(f"in-{dtype}", "model.safetensors")).values()} == {
        getattr(torch, dtype)
    }
    assert not left.exists()
    assert mine.exists()
    assert cli.main(["merge", "run", "rows.csv/merged"]) == 2
    assert "rows.csv is no folder" in capsys.readouterr().err


def test_two_adapters_are_compared_layer_by_layer(capsys: Capture) -> None:
    found = json.loads(run("compare run run --weights --json", capsys))
    assert found["cosine"] == pytest.approx(1, abs=1e-5)
    assert len(found["layers"]) == 12
    assert "cosine" in run("compare run run --weights", capsys)


def test_targets_tells_by_the_config_alone_what_training_would_make(capsys: Capture) -> None:
    trained = recorded("parameters")["trained"]
    Path("config").mkdir()
    shutil.copy("base/config.json", "config")
    found = json.loads(run("targets config --task text-classification --json", capsys))
    assert found["trained"] == trained
    assert sum(row["parameters"] for row in found["targets"]) == trained
    query = next(row for row in found["targets"] if row["target"].endswith("query"))
    assert query == {
        "target": "bert.encoder.layer.*.attention.self.query", "kind": "linear, r=16", "shape": "16 x 16", "layers": 2,
        "of": 2, "parameters": 1024,
    }  # fmt: skip
    smaller = json.loads(run("targets base --target-modules query,value --r 2 --lora use_dora=true --json", capsys))
    assert [row["layers"] for row in smaller["targets"]] == [2, 2]
    assert [row["parameters"] for row in smaller["targets"]] == [2 * (2 * 2 * 16 + 16)] * 2  # DoRA's lengths, too
    assert "An adapter of 2" in run("targets base --target-modules query --r 4", capsys)


def test_tasks_lists_every_task_with_its_columns_and_metrics(capsys: Capture) -> None:
    found = {row["task"]: row for row in json.loads(run("tasks --json", capsys))}
    assert found.keys() == TRAINING_TASKS.keys()
    assert found["text-classification"]["columns"] == ["text", "label"]
    assert found["text-classification"]["metrics"] == ["accuracy", "f1"]
    table = run("tasks", capsys)
    assert [task for task in found if task not in table] == []


def test_push_takes_what_predicting_needs_and_nothing_of_this_machine(
    place: Path, capsys: Capture, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    hub.add("org/base", Path("base"))
    run("push run me/reviews --base-model org/base", capsys)
    names = "README.md adapter_config.json adapter_model.safetensors task.json tokenizer.json tokenizer_config.json"
    assert {name for name in hub.files("me/reviews") if not name.startswith(".")} == set(names.split())
    assert lines(run("predict me/reviews rows.csv", capsys)) == lines(run("predict run rows.csv", capsys))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate nowhere", "nowhere"),
        ("evaluate run nowhere.csv", "nowhere.csv"),
        ("evaluate run unlabelled.csv", "line 2"),
        ("evaluate run --metric acuracy", "accuracy"),
        ("evaluate run rows.csv --column text", "NAME=VALUE"),
        ("predict nowhere rows.csv", "nowhere"),
        ("predict run nowhere.csv", "nowhere.csv"),
        ("predict run rows.csv --column text=reviews", "'review'"),
        ("predict run rows.csv --task nonsense", "text-classification"),
        ("predict run said.csv --keep", "rename"),
        ("predict run rows.csv --set lenght=3", "max_length"),
        ("targets nowhere", "nowhere"),
        ("targets base --target-modules nothing", "nothing"),
        ("targets base --lora use_dora=[", "--lora use_dora=["),
        ("targets base --lora use_doora=true", "use_dora"),
        ("targets base --task txt-classification", "text-classification"),
        ("compare run nowhere", "nowhere"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(command: str, message: str, capsys: Capture) -> None:
    Path("said.csv").write_text("review,prediction\ngood,1\n", encoding="utf-8")
    Path("unlabelled.csv").write_text("review,stars\ngood w1,\n", encoding="utf-8")
    assert cli.main(command.split()) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("hf-lora: ")
    assert message in told.err
