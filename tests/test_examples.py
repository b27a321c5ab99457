"""The examples run offline and show what they say: numbers that moved, adapters alone on disk, the published cards."""

from __future__ import annotations

import json
import re
import runpy
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from . import forks

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
TRAINS = [name for name in EXAMPLES if name not in ("cards.py", "ratings.py")]  # test_ratings.py trains on these rows
CARDS = sorted(path for path in (ROOT / "model_cards").glob("*.md") if path.name != "README.md")
MOVED = re.compile(r"^(.+): (-?[\d.]+) before, (-?[\d.]+) after", re.MULTILINE)
FALLS = ("loss", "error rate")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # TRL's
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # PEFT's, before it asks us
]


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Run an example with --smoke as the main program, here or in a process of its own; return what it printed."""
    path, output = ROOT / "examples" / name, folder / "out"
    arguments = [str(path), "--smoke", "--output", str(output)]
    if "launcher" not in path.read_text("utf-8"):
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.chdir(folder)
        runpy.run_path(str(path), run_name="__main__")
        return capfd.readouterr().out
    program = f"import runpy, sys; sys.argv, sys.path[0] = {arguments}, {str(path.parent)!r}"
    done = forks.run(f"{program}; runpy.run_path(sys.argv[0], run_name='__main__')", folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def card_in(folder: Path) -> Path:
    """Return the card that lies highest; several adapters have a folder each."""
    return min(folder.rglob("README.md"), key=lambda path: (len(path.parts), path))


def structure(card: str) -> tuple[list[str], list[str], list[str]]:
    """Return a generated card's keys of the metadata, its headings, and the first column of its tables."""
    card = card.partition("<!-- hf_lora: end")[0]
    _, metadata, text = card.split("---\n", 2)
    headings, first = (re.findall(pattern, text, re.MULTILINE) for pattern in (r"^#+ .*", r"^\| ([^|]*) \|"))
    return list(_keys(yaml.safe_load(metadata))), headings, first


def _keys(value: object, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, each in value.items() for found in (f"{path}.{key}", *_keys(each, f"{path}.{key}"))]
    return [found for each in value for found in _keys(each, path)] if isinstance(value, list) else []


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINS)
def test_the_example_shows_what_it_says_and_writes_its_card(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = run(name, tmp_path, monkeypatch, capfd)
    moved = [(what, float(before), float(after)) for what, before, after in MOVED.findall(printed)]
    assert moved, f"{name} measures nothing before and after:\n{printed}"
    for what, before, after in moved:
        assert after < before if any(word in what for word in FALLS) else after > before, printed
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    adapters = list((tmp_path / "out").rglob("adapter_model.safetensors"))
    assert adapters
    for weights in adapters:
        heads = json.loads((weights.parent / "adapter_config.json").read_text())["modules_to_save"] or ()
        with safe_open(weights, "pt") as file:
            own = [key for key in file.keys() if "lora_" in key or any(f".{head}." in key for head in heads)]  # noqa: SIM118
            assert own == list(file.keys())
    made = card_in(tmp_path / "out").read_text(encoding="utf-8")
    assert not [wrong for wrong in (str(tmp_path), "multi-GPU") if wrong in made]
    published = (ROOT / "model_cards" / f"{Path(name).stem}.md").read_text(encoding="utf-8")
    assert structure(made) == structure(published)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_readme_names_the_example_which_can_be_read_at_a_glance(name: str) -> None:
    assert f"({name})" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) <= 80


def test_every_card_is_of_an_example_and_holds_no_path_of_a_machine() -> None:
    assert [card.stem for card in CARDS] == [Path(name).stem for name in TRAINS]
    for card in CARDS:
        text = card.read_text(encoding="utf-8")
        places = ("site-packages", str(ROOT), str(Path.home()) + "/", tempfile.gettempdir())
        assert not [place for place in places if place in text], card
