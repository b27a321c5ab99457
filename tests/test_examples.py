"""The examples run, as a user runs them: a process each, offline."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from . import forks

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


TRAINS = [name for name in EXAMPLES if name != "ratings.py"]  # whose rows test_ratings.py trains on


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINS)
def test_the_example_runs_without_network(name: str, tmp_path: Path) -> None:
    command = [str(ROOT / "examples" / name), "--smoke", "--output", str(tmp_path / "out")]
    program = f"import runpy, sys; sys.argv, sys.path[0] = {command}, {str(ROOT / 'examples')!r}"
    done = forks.run(f"{program}; runpy.run_path(sys.argv[0], run_name='__main__')", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_readme_names_the_example(name: str) -> None:
    assert f"({name})" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


def test_no_published_card_holds_a_path_of_a_machine() -> None:
    cards = sorted((ROOT / "model_cards").glob("*.md"))
    assert cards
    for card in cards:
        text = card.read_text(encoding="utf-8")
        places = ("site-packages", str(ROOT), str(Path.home()), tempfile.gettempdir())
        assert not [place for place in places if place in text], card
