"""What a dry run says of memory is what a training takes; the threads are those that are fastest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from .forks import run as run_program
from .peek import RunSettings, estimated_memory, fastest_threads, plan_run, prepared_trainer, probing
from .runs import write_base

MIB = 2**20
SIZES = {"hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and with rows of which one is much longer than the others."""
    folder = tmp_path_factory.mktemp("probing")
    write_base(folder / "base", **SIZES)
    texts = ["w1 w2", "good w3"] * 40 + ["w4 " * 120]
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts)))
    return folder


def trainer_of(place: Path, scratch: Path, **changes: Any) -> Any:
    settings = {"task": "text-classification", "threads": 1, "eval_share": 0.1, "test_share": 0.0, "seed": 3}
    found = {"model": str(place / "base"), "train": str(place / "rows.csv"), "output": str(scratch / "run")}
    rows = scratch / "rows"
    rows.mkdir()
    return prepared_trainer(plan_run(RunSettings(**{**settings, **found, **changes}), rows))[0]


@pytest.mark.parametrize(("free", "counts"), [(10**15, [1, 10]), (5000, [1, 2, 4]), (3000, [1, 2]), (0, [1])])
def test_rows_are_doubled_while_there_is_room_and_then_continued_by_a_line(
    free: int, counts: list[int], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, computed = trainer_of(place, tmp_path, batch_size=10), []
    now = probing.psutil.Process().memory_info().rss

    def peak(trainer: Any, rows: list[int]) -> int:
        computed.append(rows)
        return now + 500 * len(rows)

    class System:
        Process = staticmethod(lambda: System)
        memory_info = staticmethod(lambda: SimpleNamespace(rss=now))
        virtual_memory = staticmethod(lambda: SimpleNamespace(available=free))

    monkeypatch.setattr(probing, "psutil", System)
    monkeypatch.setattr(probing, "_peak_of_step", peak)
    memory = estimated_memory(trainer)
    trained = sum(parameter.nbytes for parameter in trainer.model.parameters() if parameter.requires_grad)
    assert memory.to_dict() == {
        "now": now, "step": 5000, "optimizer": 2 * trained, "device": "cpu", "peak": now + 5000 + 2 * trained
    }  # fmt: skip
    assert [len(rows) for rows in computed] == counts
    assert len(trainer.train_dataset[computed[0][0]]["input_ids"]) > 100  # the longest row


def test_a_peak_that_the_system_notes_late_takes_nothing_off(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(place, tmp_path, batch_size=4)
    monkeypatch.setattr(probing, "_peak_of_step", lambda trainer, rows: 1000)
    assert estimated_memory(trainer).step == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_to_measure_is_computed_as_in_training_and_leaves_nothing(
    checkpointing: bool, place: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(place, tmp_path, batch_size=2, gradient_checkpointing=checkpointing)
    seen = set()
    trainer.model.register_forward_pre_hook(
        lambda model, _: seen.add((model.training, model.is_gradient_checkpointing))
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert estimated_memory(trainer).step >= 0
    assert seen == {(True, checkpointing)}
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_estimate_is_within_a_fifth_of_the_peak_of_the_process(place: Path) -> None:
    flags = "--model base --task text-classification --train long.csv --output run --batch-size 64 --max-steps 2 --json"
    texts = [" ".join(["w1"] * 120)] * 90
    (place / "long.csv").write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts)))

    def said(more: str) -> dict[str, Any]:
        command = ["train", *flags.split(), *more.split()]
        done = run_program(f"from tests.peek import cli; raise SystemExit(cli.main({command}))", place)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    estimate, taken = said("--dry-run")["memory"], said("")["peak_bytes"]
    assert estimate["step"] > 200 * MIB  # or the libraries' own memory would hide every mistake
    assert estimate["peak"] == pytest.approx(taken, rel=0.2)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("seconds", "threads"), [({1: 1.0, 2: 0.5}, 2), ({1: 1.0, 2: 0.9}, 1), ({1: 1.0, 2: 7.0}, 1)])
def test_more_threads_are_taken_where_they_pay(
    seconds: dict[int, float], threads: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(place, tmp_path, threads=2)
    now = [0.0]
    step = probing._step

    def timed(*given: Any, **named: Any) -> None:
        step(*given, **named)
        now[0] += seconds[torch.get_num_threads()]

    monkeypatch.setattr(probing, "_step", timed)
    monkeypatch.setattr(probing.time, "perf_counter", lambda: now[0])
    assert fastest_threads(trainer) == threads
    assert torch.get_num_threads() == 2
