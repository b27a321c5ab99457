"""The code blocks of README and docs, and how they run: those of a page in order, in one namespace, in one folder.

A block of Python is executed. Of a shell block `hf-lora` runs in this process, `pip install`, `make` and `python -m` are
looked up. A block with a title (```csv title="reviews.csv") is that file. One that cannot run begins with
"# not run: " and the reason.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .peek import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INDEX = DOCS / "index.md"
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "examples").rglob("*.md")), *sorted(DOCS.rglob("*.md")),
]  # fmt: skip
BLOCK = re.compile(r'^( *)```(\w+)(?: title="([^"\n]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NOT_RUN = "# not run: "
SHELL = ("sh", "bash")
_EXTRAS = (
    (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2].partition("\n[")[0]
)
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title ("" without), its code, the number of its first line in the page."""

    language: str
    title: str
    code: str
    line: int

    @property
    def runs(self) -> bool:
        """Is it something to run, and not said to be impossible here?"""
        return self.language in ("python", *SHELL) and not self.code.startswith(NOT_RUN)


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's blocks in order."""
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        indent, language, title, code = found.groups()
        code = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        yield Block(language, title or "", code, text.count("\n", 0, found.start()) + 2)


def prose(page: Path) -> str:
    """Return a page's text without its blocks."""
    return BLOCK.sub("", page.read_text("utf-8"))


def run(page: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a page's blocks in the current folder; `names` is the namespace of Python. Return hf-lora's commands."""
    commands: list[str] = []
    for block in blocks(page):
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.runs and block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, page.name, "exec"), names)
        elif block.runs:
            commands += [line for line in lines(block) if _run_line(line, f"{page.name}, {block.line}", monkeypatch)]
    return commands


def lines(block: Block) -> list[str]:
    """Return a shell block's commands, a line each, without comments."""
    whole = block.code.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(?:^|\s)#\s.*$", "", line).strip() for line in whole) if line]


def _run_line(line: str, where: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a command of hf-lora; look any other up. Return whether it was hf-lora's."""
    said, _, command = line.rpartition(" | ")
    words = shlex.split(command)
    if words[0] == "hf-lora":
        monkeypatch.setattr("sys.stdin", [f"{word}\n" for word in shlex.split(said)[1:]])
        assert cli.main(words[1:]) == 0, f"{where}: {line}"
        return True
    if words[0] == "make":
        assert set(words[1:]) <= _TARGETS, f"{where}: {line}"
    elif words[:2] == ["pip", "install"]:
        wanted = set(re.findall(r"[\w-]+", " ".join(re.findall(r"\[(.*?)\]", command))))
        assert wanted <= set(re.findall(r"(?m)^(\w+) =", _EXTRAS)), f"{where}: {line}"
    else:
        assert words[1:2] == ["-m"], (
            f"{where}: nothing runs {line!r}; if it cannot run, begin the block with {NOT_RUN!r}"
        )
        assert importlib.util.find_spec(words[2]), f"{where}: {line}"
    return False
