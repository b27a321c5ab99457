"""The hf-lora command: what it prints and the status it exits with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_lora

from .peek import cli

ADAPTER = str(Path(__file__).parent / "data" / "before" / "lora")


def test_python_m_hf_lora_is_the_command_and_says_the_package_s_version() -> None:
    command = [sys.executable, "-m", "hf_lora", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"hf-lora {hf_lora.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--check", "nowhere"], "demo_results.json"),
        (["demo", "--check", "older"], "run `hf-lora demo` again"),
        (["demo", "--r", "0"], "r=0"),
        (["demo", "--seed", "-1"], "seed=-1"),
        (["demo", "--epochs", "-1"], "epochs=-1"),
        (["demo", "--epochs", "nan"], "epochs=nan"),
        (["demo", "--output", "taken"], "--output"),
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
    Path("older").mkdir()
    Path("older", "demo_results.json").write_text('{"options": {"seed": 0}, "after": {"accuracy": 0.6, "f1": 0.3}}')
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


@pytest.mark.parametrize("arguments", [[], ["trains"], ["demo", "--epochs", "many"], ["demo", "more"]])
def test_bad_arguments_are_refused_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert "hf-lora" in told.err + told.out
