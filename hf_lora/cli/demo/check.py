"""The demo's check: a process that has only the saved files gets the same scores, to the last digit."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from ...model.lora_model import LoRAModel
from .job import open_split
from .results import DemoResults, Scores
from .training import build_trainer, one_thread, quiet_loading, scores

__all__ = ["check", "check_in_fresh_process"]


@one_thread()
def check(directory: Path) -> bool:
    """Load a demo's adapter, evaluate it, print the scores, and return whether they are exactly the saved ones.

    Raises AdapterFileError where the directory holds no demo, MissingExtraError.
    """
    results = DemoResults.load(directory)
    with quiet_loading():
        model = LoRAModel.from_pretrained(directory)
    with tempfile.TemporaryDirectory() as scratch:
        found = scores(build_trainer(model, open_split(results.options), results.options, Path(scratch)))
    same = found == results.after
    verdict = "the same to the last digit" if same else f"but the demo had {_text(results.after)}"
    print(f"reloaded     {_text(found)}: {verdict}")
    return same


def check_in_fresh_process(directory: Path) -> bool:
    """Run `check` in a new Python process, which prints to this one's output."""
    command = [sys.executable, "-m", "hf_lora", "demo", "--check", str(directory)]
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode == 0


def _text(found: Scores) -> str:
    return f"accuracy {found.accuracy!r}, F1 {found.f1!r}"
