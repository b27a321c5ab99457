"""The hf-lora command: what it prints and the status it exits with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hf_lora

from .peek import COMMANDS, cli

ADAPTER = str(Path(__file__).parent / "data" / "before" / "lora")


def test_python_m_hf_lora_is_the_command_and_says_the_package_s_version() -> None:
    command = [sys.executable, "-m", "hf_lora", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"hf-lora {hf_lora.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--output", "taken", "--model", "gpt2", "--train", "rows.csv"], "--output taken: that is a file"),
        (["inspect", "./nowhere"], "owner/name"),
        (["inspect", ""], "owner/name"),
        (["push", "nowhere", "me/adapter"], "nowhere"),
    ],
)
def test_an_error_of_ours_is_one_line_on_stderr_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("taken").touch()
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("hf-lora: ")
    assert told.err.count("\n") == 1
    assert message in told.err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["inspect", ADAPTER], ["--help"]])
def test_a_reader_that_goes_away_is_no_traceback(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "hf_lora", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [[], ["trains"], ["train", "--epochs", "many"], ["train", "more"]])
def test_bad_arguments_are_refused_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert "hf-lora" in told.err + told.out


def test_the_help_is_there_at_once_and_fits_80_columns() -> None:
    """It imports neither torch nor Transformers, which take seconds, nor the network's client."""
    code = (
        "import sys; from hf_lora.cli.main import main; status = main(['--help'])\n"
        "slow = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'numpy', 'pandas'} & {*sys.modules}\n"
        "sys.exit(f'{status} {slow}' if status or slow else 0)"
    )
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for heading, commands in COMMANDS.items():
        assert heading in done.stdout
        for command in commands:
            assert f" {command.__name__} " in done.stdout


def test_every_command_s_help_has_examples_and_its_first_line_is_short_and_nothing_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in (command for commands in COMMANDS.values() for command in commands):
        assert cli.main([command.__name__, "--help"]) == 0
        told = capsys.readouterr().out
        assert f"hf-lora {command.__name__}" in told.partition("Example")[2]
        assert "\u2026" not in told, "a flag is cut"
        assert len((command.__doc__ or "").splitlines()[0]) <= 100


@pytest.mark.parametrize(
    ("line", "word"),
    [("train --task text-cl", "text-classification"), ("evaluate run --metric accu", "accuracy"), ("eval", "evaluate")],
)
def test_the_shell_completes_commands_tasks_and_metrics(
    line: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_HF_LORA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"hf-lora {line}")
    monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
    assert cli.main([]) == 0
    assert word in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, ""),
        (FileNotFoundError(2, "No such file or directory", "a\x1b[31mb"), 2, "a?[31mb: No such file or directory."),
        (ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics"), 2, "pip install 'hf-lora[train]'"),
        (ModuleNotFoundError("No module named 'zstandard'", name="zstandard"), 2, "pip install 'zstandard'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "UTF-8"),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "--batch-size"),
        (ZeroDivisionError("division by zero"), 70, "this is a bug of hf_lora"),
        (ModuleNotFoundError("No module named 'hf_lora.gone'", name="hf_lora.gone"), 70, "Traceback"),
    ],
)
def test_a_mistake_or_a_missing_package_is_told_in_a_line_and_a_bug_is_called_one(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("hf_lora.formats.inspection.inspect_adapter", fails)
    assert cli.main(["inspect", "anything"]) == status
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert ("Traceback" in told.err) == (status == 70)
    assert status == 70 or told.err.count("\n") == bool(message)
