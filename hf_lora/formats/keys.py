"""PEFT's keys: the parts of one, and its one spelling without what wrappers and versions of PEFT leave in it.

module.base_model.model.<layer>.lora_A.default.weight          distributed, the adapter's name inside
base_model.model._orig_mod.<layer>._fsdp_wrapped_module.lora_A.weight   compiled, sharded
base_model.model.base_model.model.<layer>.lora_A.weight        wrapped twice
base_model.model.<module>.modules_to_save.default.weight       saved whole; `original_module` is the base's own
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TypeVar

from ..variants.row import Row
from ..variants.table import COPIES, FORMULAS, SAVED, TOKENS

PREFIX = "base_model.model."
TOP = "base_model."
TOP_KEYS = frozenset(stored.key for row in FORMULAS.values() for stored in row.tensors if stored.at_top)
WRAP = "base_layer"
ROWS_KEY = TOKENS.tensors[0].key
Value = TypeVar("Value")
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def split_key(key: str) -> tuple[str, str, str]:
    """Return (path, leaf, the adapter's attribute, or its role where it is a copy) of a key, PEFT's prefix aside."""
    leaves, _ = _spellings((*FORMULAS.values(), *COPIES.values()))
    path, _, last = key.removeprefix(PREFIX).rpartition(".")
    before, _, word = path.rpartition(".")
    pair = f"{word}.{last}"
    if pair in leaves:
        return before, pair, leaves[pair]
    return path, last, leaves.get(last, SAVED.name)


def lowered(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return a file's tensors with what lies at its top below the first layer that it adapts.

    >>> lowered({"base_model.vera_A": 1, "base_model.model.fc.vera_lambda_b": 2})
    {'base_model.model.fc.vera_A': 1, 'base_model.model.fc.vera_lambda_b': 2}
    """
    tops = {key: key.removeprefix(TOP) for key in tensors if key.removeprefix(TOP) in TOP_KEYS}
    rest = (split_key(key) for key in sorted(tensors.keys() - tops.keys()))
    first = next((path for path, _, attribute in rest if attribute not in COPIES), "")
    return {f"{PREFIX}{first}.{tops[key]}" if key in tops and first else key: each for key, each in tensors.items()}


def unwrapped(path: str) -> tuple[str, int]:
    """Return a module's path without PEFT's wrappers, and how many of them stand at its end."""
    if WRAP not in path:
        return path, 0
    words = path.split(".")
    depth = next((i for i, word in enumerate(reversed(words)) if word != WRAP), len(words))
    return ".".join(word for word in words if word != WRAP), depth


def reads_back(module: str, leaf: str) -> bool:
    """Return whether a key stands for the module that it was made of, whose name may hold a word of the layout's own.

    >>> reads_back("encoder.fc", "lora_A.weight"), reads_back("encoder.base_layer", "lora_A.weight")
    (True, False)
    """
    return unwrapped(split_key(f"{PREFIX}{module}.{leaf}")[0])[0] == module


def plain_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return each key with PEFT's prefix and without wrappers and adapter names; the base's own copies are left out.

    >>> plain_keys(["module.base_model.model.fc.lora_A.default.weight", "fc.lora_B.default.weight"])
    {'module.base_model.model.fc.lora_A.default.weight': 'base_model.model.fc.lora_A.weight', \
'fc.lora_B.default.weight': 'base_model.model.fc.lora_B.weight'}
    """
    _, named = _spellings((*FORMULAS.values(), *COPIES.values()))
    bare = {key: _unwrapped(key) for key in keys if "original_module" not in key.split(".")}
    adapters = {found["adapter"] for name in bare.values() if (found := named.search(name))} | {"default"}
    saved = re.compile(rf"\.modules_to_save(\.({'|'.join(map(re.escape, adapters))}))?(?=\.)")
    return {key: PREFIX + saved.sub("", named.sub(r"\g<stem>\g<end>", name)) for key, name in bare.items()}


def _unwrapped(key: str) -> str:
    """Return a key without wrappers' words and without PEFT's prefix, however often it is there."""
    key = ".".join(word for word in key.split(".") if word not in _WRAPPERS)
    while (name := key.removeprefix("module.")).startswith(PREFIX):
        key = name.removeprefix(PREFIX)
    return key


@cache
def _spellings(rows: tuple[Row, ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    """Return the attribute or role of each leaf, and what a key with an adapter's name inside ends in."""
    every = {s.key: (s.attribute if row.low_rank else row.name, s) for row in rows for s in row.tensors if s.keys}
    leaves = {key: name for name, stored in every.values() for key in stored.keys}
    stems = "|".join(re.escape(stem.rpartition(".")[2]) for _, stored in every.values() for stem in stored.stems)
    return leaves, re.compile(
        rf"(?<![^.])(?P<stem>{stems})\.(?P<adapter>(?!weight$|bias$)[^.]+)(?P<end>\.weight|\.bias)?$"
    )
