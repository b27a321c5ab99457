"""docs/trust.md: every row names tests, and every test it names exists."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split(" | ")]
    for line in (HERE.parent / "docs" / "trust.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| elsewhere"))
]


def test_every_test_that_the_table_of_trust_names_exists() -> None:
    assert len(ROWS) > 20
    there: dict[str, set[str]] = {}
    missing = []
    for elsewhere, here, tests in ROWS:
        assert elsewhere
        assert here
        for named in tests.split(", "):
            file, _, name = named.partition("::")
            if file not in there:
                tree = ast.parse((HERE / f"{file}.py").read_text("utf-8"))
                there[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            missing += [named] if name not in there[file] else []
    assert not missing
