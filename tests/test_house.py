"""The house: every file has its room, and imports run downward only, without circles (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HOME = Path(__file__).parents[1] / "hf_lora"
# From the bottom to the top: a room imports only from rooms before it.
ROOMS = (
    "_version", "errors", "maths", "kinds", "variants", "files", "config", "layers", "targets", "formats", "hub", "model",
    "training", "integrations", "cli",
)  # fmt: skip
OUTSIDE = ("__init__", "__main__", "py.typed")
FILES = {
    ".".join(("hf_lora", *path.relative_to(HOME).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(HOME.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def _imported(name: str, tree: ast.Module) -> set[str]:
    """Return the package's modules that a module imports, in functions and for type checkers alone as well."""
    base = name.split(".") if FILES[name].stem == "__init__" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{module}.{alias.name}" for alias in node.names}
            found |= {each if each in FILES else module for each in inner}
    return (found & FILES.keys()) - {name}


IMPORTS = {name: _imported(name, tree) for name, tree in TREES.items()}


def _room(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def test_at_the_top_are_the_rooms_and_nothing_else() -> None:
    there = {path.name.removesuffix(".py") for path in HOME.iterdir() if path.name != "__pycache__"}
    assert there == {*ROOMS, *OUTSIDE}
    assert len(there) <= 19


def test_imports_run_downward() -> None:
    order = {room: number for number, room in enumerate(ROOMS)}
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in sorted(others)
        if _room(name) in order and order.get(_room(other), len(ROOMS)) > order[_room(name)]
    ]
    assert upward == []


def test_the_package_itself_imports_the_top_rooms_alone() -> None:
    assert {_room(other) for other in IMPORTS["hf_lora"]} >= {"integrations"}
    assert not [name for name, others in IMPORTS.items() if "hf_lora" in others]


def test_no_imports_run_in_a_circle() -> None:
    left = {name: set(others) for name, others in IMPORTS.items()}
    while leaves := [name for name, others in left.items() if not others & left.keys()]:
        for name in leaves:
            del left[name]
    assert sorted(left) == []


def test_every_file_says_what_it_is() -> None:
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_tests_reach_inside_through_one_door() -> None:
    """The public names, the errors and `peek`; nothing else of the package is imported by a test."""
    inside = re.compile(r"^\s*(?:from|import) (hf_lora\.(?!errors\b)[\w.]+)", re.MULTILINE)
    tests = Path(__file__).parent
    found = {p.name: inside.findall(p.read_text(encoding="utf-8")) for p in tests.glob("*.py")}
    assert {name: modules for name, modules in found.items() if modules} == {}
