"""docs/troubleshooting.md: every class of error has its rows, and the words of each row stand in a message."""

from __future__ import annotations

import ast
import re

from hf_lora import errors

from .pages import DOCS, ROOT

LINES = (DOCS / "troubleshooting.md").read_text("utf-8").splitlines()
ERRORS = [re.match(r"\| `(\w+)`: (.+?) \| (.+?) \| (.+?) \|$", line) for line in LINES if line.startswith("| `")]
WARNINGS = [
    line.split(" | ")[0].removeprefix("| ") for line in LINES[LINES.index("## Warnings") + 4 :] if line.startswith("| ")
]


def messages() -> list[str]:
    """Return every text in the package's code, with … for what is put into it."""
    found = []
    for path in (ROOT / "hf_lora").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_class_of_error_has_a_row_with_cause_and_cure() -> None:
    assert all(ERRORS)
    told = {row[1] for row in ERRORS if row}
    assert told == set(errors.__all__) - {"LoRAError"}


def test_the_words_of_every_row_are_those_of_a_message() -> None:
    every = messages()
    words = [row[2] for row in ERRORS if row] + [row for row in WARNINGS if row != "---"]
    assert len(words) > 60
    patterns = {said: re.compile(".*?".join(map(re.escape, said.split(" … ")))) for said in words}
    assert [said for said, pattern in patterns.items() if not any(map(pattern.search, every))] == []
