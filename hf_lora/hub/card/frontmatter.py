"""The YAML block at a card's top, changed key by key: what is not changed keeps its lines, comments and order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump

__all__ = ["BrokenMetadataError", "replaced", "split"]

# Where the Hub's server sees the block.
_BLOCK = re.compile(r"^(\ufeff?\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$))")


class BrokenMetadataError(ValueError):
    """A block that is no YAML mapping."""


def split(text: str) -> tuple[dict[str, Any], str]:
    """Return a card's metadata, empty where it has no block, and the text below. Raises BrokenMetadataError."""
    found = _BLOCK.match(text)
    return ({}, text) if found is None else (_parsed(found[2]), text[found.end() :])


def replaced(text: str, values: Mapping[str, Any]) -> str:
    """Return a card whose metadata is `values`: keys that it lacks are removed, new ones come last.

    A key whose value is the same keeps its text, a list that only grew keeps its lines. Only where YAML's own
    cross references forbid it, the whole block is written anew. Raises BrokenMetadataError.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    found = _BLOCK.match(text)
    if found is None:
        block = f"---\n{_dumped(values)}---\n\n".replace("\n", newline)
        mark = "\ufeff" if text.startswith("\ufeff") else ""
        return mark + block + text.removeprefix(mark) if values else text
    before = _parsed(found[2])
    if _same(before, values):
        return text
    block = _edited(found[2].replace("\r\n", "\n"), before, values)
    head, tail = text[: found.end(1)], text[found.start(3) :]
    return head + block.replace("\n", newline) + tail


def _parsed(block: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise BrokenMetadataError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise BrokenMetadataError("it is not a mapping with names as keys")
    return values


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal; YAML's .nan, which another tool may have written, is equal to itself."""
    return one == other or repr(one) == repr(other)


def _edited(block: str, before: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    for keep_lines in (True, False):
        try:
            new = _by_key(block, before, values, keep_lines)
            if _same(_parsed(new), values):
                return new
        except (BrokenMetadataError, yaml.YAMLError):
            continue
    return _dumped(values)[:-1]


def _by_key(block: str, before: Mapping[str, Any], values: Mapping[str, Any], keep_lines: bool) -> str:
    """Return the block with the text of every changed key replaced, from the last to the first."""
    root = yaml.compose(block, Loader=yaml.SafeLoader)
    by_lines = isinstance(root, yaml.MappingNode) and not root.flow_style
    for key, node in reversed(root.value if by_lines else []):
        name = key.value
        if name in values and _same(before.get(name), values[name]):
            continue
        start, end = key.start_mark.index, _end(block, node)
        if name not in values:
            after = block.find("\n", end)  # with what follows on its line
            block = block[:start] + (block[after + 1 :] if after >= 0 else "")
            continue
        grown = _grown(block, node, before[name], values[name]) if keep_lines else None
        block = grown if grown is not None else block[:start] + _dumped({name: values[name]})[:-1] + block[end:]
    new = {name: value for name, value in values.items() if name not in before}
    if not new:
        return block
    return (block if not block or block.endswith("\n") else block + "\n") + _dumped(new)[:-1]


def _end(block: str, node: yaml.Node) -> int:
    """Return where a value ends: YAML counts the blank lines and comments after a collection to it."""
    start, end = node.start_mark.index, node.end_mark.index
    while True:
        line = block.rfind("\n", start, end)
        if line < 0 or not re.match(r"\s*(#.*)?$", block[line + 1 : end]):
            return end
        end = line


def _grown(block: str, node: yaml.Node, before: Any, value: Any) -> str | None:
    """Return the block with what a list gained put behind its last item, None where that is not all."""
    if not isinstance(node, yaml.SequenceNode) or not isinstance(value, list) or not node.value:
        return None
    if value[: len(before)] != before or not all(isinstance(item, str) for item in value[len(before) :]):
        return None
    last = node.value[-1]
    end = _end(block, last)
    items = [yaml_dump([item], default_flow_style=True, width=10**6).strip()[1:-1] for item in value[len(before) :]]
    if node.flow_style:
        return block[:end] + "".join(f", {item}" for item in items) + block[end:]
    start = last.start_mark.index
    lead = block[block.rfind("\n", 0, start) + 1 : start]
    line = block.find("\n", end)
    line = len(block) if line < 0 else line
    return block[:line] + "".join(f"\n{lead}{item}" for item in items) + block[line:]


def _dumped(values: Mapping[str, Any]) -> str:
    return str(yaml_dump(dict(values), sort_keys=False)) if values else ""
