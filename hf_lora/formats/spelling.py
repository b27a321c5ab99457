"""Spellings of one name: what wrappers and versions of PEFT leave in a file's keys, taken out. Strings only.

module.base_model.model.<layer>.lora_A.default.weight          distributed, the adapter's name inside
base_model.model._orig_mod.<layer>._fsdp_wrapped_module.lora_A.weight   compiled, sharded
base_model.model.base_model.model.<layer>.lora_A.weight        wrapped twice
base_model.model.<module>.modules_to_save.default.weight       saved whole; `original_module` is the base's own
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from ..variants.row import Stored
from .keys import PREFIX, stored_tensors

__all__ = ["plain_keys"]

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def plain_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return each key with PEFT's prefix and without wrappers and adapter names; the base's own copies are left out.

    >>> plain_keys(["module.base_model.model.fc.lora_A.default.weight", "fc.lora_B.default.weight"])
    {'module.base_model.model.fc.lora_A.default.weight': 'base_model.model.fc.lora_A.weight', \
'fc.lora_B.default.weight': 'base_model.model.fc.lora_B.weight'}
    """
    pattern = _named(stored_tensors())
    bare = {key: _unwrapped(key) for key in keys}
    named = {key: pattern.fullmatch(name) for key, name in bare.items()}
    adapters = {found["name"] for found in named.values() if found} | {"default"}
    result = {}
    for key, name in bare.items():
        found = named[key]
        name = f"{found['before']}{found['after'] or ''}" if found else name
        words = name.split(".")
        if "original_module" not in words:
            result[key] = PREFIX + ".".join(_without_saved(words, adapters))
    return result


@cache
def _named(stored: tuple[tuple[str, Stored], ...]) -> re.Pattern[str]:
    """Return what a key with an adapter's name inside looks like."""
    stems = "|".join(re.escape(stem.rpartition(".")[2]) for _, each in stored for stem in each.stems)
    return re.compile(
        rf"(?P<before>(?:^|.*\.)(?:{stems}))\.(?P<name>(?!weight$|bias$)[^.]+)(?P<after>\.weight|\.bias)?"
    )


def _unwrapped(key: str) -> str:
    """Return a key without wrappers' words and without PEFT's prefix, however often it is there."""
    key = ".".join(word for word in key.split(".") if word not in _WRAPPERS)
    while (name := key.removeprefix("module.")).startswith(PREFIX):
        key = name.removeprefix(PREFIX)
    return key


def _without_saved(words: list[str], adapters: set[str]) -> list[str]:
    """Return the words of a name without `modules_to_save` and the adapter's name after it."""
    if "modules_to_save" not in words:
        return words
    at = words.index("modules_to_save")
    rest = words[at + 1 :]
    return [*words[:at], *(rest[1:] if len(rest) > 1 and rest[0] in adapters else rest)]
