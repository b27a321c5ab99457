"""mkdocstrings' extension: docstrings as Markdown. Doctests become code, lines that begin with an argument a list."""

import re
from typing import Any

import griffe

_ARGUMENT = re.compile(r"^((?:[a-z_]\w*)(?:, [a-z_]\w*)*): (?=\S)")


class Doctests(griffe.Extension):
    """Puts fences around what begins with >>>, up to the next empty line."""

    def on_instance(self, *, node: Any, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring, which griffe has just read."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring's text with fences around doctests, and arguments as items of a list."""
    lines: list[str] = []
    code = False
    for line in text.splitlines():
        if line.startswith(">>>") and not code:
            lines, code = [*lines, "", "```pycon"], True
        elif code and not line.strip():
            lines, code = [*lines, "```"], False
        elif not code and (found := _ARGUMENT.match(line)):
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            space = [""] if lines and lines[-1].strip() and not re.match(r"\* |    ", lines[-1]) else []
            lines += space
            line = f"* {names}: {line[found.end() :]}"
        elif not code and line and lines and not line.startswith(" ") and re.match(r"\* |    ", lines[-1]):
            lines.append("")
        lines.append(line)
    return "\n".join([*lines, "```"] if code else lines)
