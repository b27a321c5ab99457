"""What the names of modules say: letters (query, key, value), outputs, heads, routers."""

from __future__ import annotations

import re
from functools import cache


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LETTERS = {"query": "q", "queries": "q", "key": "k", "keys": "k", "value": "v", "values": "v"}
_BUNDLE = re.compile(r"w?([qkv]{1,3})z?")  # q, kv, qkv, Wqkv, and Qwen3-Next's qkvz
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
# A projection with one of these words serves positions or gates; it is a query, key or value only if no other is.
_SIDE = _set(
    "pos position positional positions pe rel relative sine gate gates gating conv sconv convolution bias norm "
    "embed embeddings embedding idx sampling offsets offset weights"
)
_OUTPUT = _set("o wo out output outputs")
_PLAIN_OUTPUT = _set("proj projection dense post final linear fc")
_NOISE = _PLAIN_OUTPUT | _set("att attn attention self cross multihead layer lin c to")
_ROUTER = _set("router routers routing")
_HEAD = _set(
    "head heads classifier classifiers classification score scorer pooler predictor predictors predictions cls "
    "qa logits unembedding confidence assignment"
)
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)


@cache
def words(name: str) -> tuple[str, ...]:
    """Return the lower-case words of an identifier: `EncDecAttention` gives enc, dec, attention."""
    return tuple(part.lower() for piece in re.split(r"[_.\-]", name) for part in _PARTS.findall(_whole(piece)))


def _whole(piece: str) -> str:
    """Return `Wqkv` as `wqkv`, which is one word, and leave other pieces alone."""
    return piece.lower() if re.fullmatch(r"W(q|k|v|kv|qkv|o)", piece) else piece


@cache
def letters(name: str) -> frozenset[str]:
    """Return which of q, k and v a projection of this name makes: `Wqkv` all three, `out_proj` none."""
    found: set[str] = set()
    for word in words(name):
        bundle = _BUNDLE.fullmatch(word)
        found.update(bundle.group(1) if bundle else _LETTERS.get(word, ""))
    return frozenset(found)


@cache
def is_side(name: str) -> bool:
    """Tell whether the name speaks of positions, gates, convolutions and the like."""
    return not _SIDE.isdisjoint(words(name))


@cache
def is_output(name: str) -> bool:
    """Tell whether the name is that of an attention's output projection."""
    if letters(name) or is_side(name):
        return False
    parts = set(words(name))
    return bool(parts & _OUTPUT) or (bool(parts & _PLAIN_OUTPUT) and parts <= _NOISE)


@cache
def is_router(name: str) -> bool:
    """Tell whether the name is a router's, whatever stands beside it."""
    return not _ROUTER.isdisjoint(words(name))


@cache
def is_indexer(name: str) -> bool:
    """Tell whether the name is that of an indexer, which picks the tokens sparse attention looks at."""
    return "indexer" in words(name)


@cache
def is_head(name: str) -> bool:
    """Tell whether the name is a task head's or a pooler's."""
    return not _HEAD.isdisjoint(words(name)) or words(name)[:2] == ("lm", "head")


@cache
def is_experts(name: str) -> bool:
    """Tell whether the name, of a module or of its class, speaks of experts."""
    return not {"expert", "experts"}.isdisjoint(words(name))


@cache
def says_attention(class_name: str) -> bool:
    """Tell whether a class name says attention."""
    return _ATTENTION.search(class_name) is not None


@cache
def is_first_factor(name: str) -> bool:
    """Tell whether the name is that of the first factor of a low-rank pair: `q_a_proj`, `kv_a_proj_with_mqa`."""
    return "a" in words(name)


@cache
def is_layer(class_name: str) -> bool:
    """Tell whether a class name is that of a repeated layer of a network."""
    parts = words(class_name)
    return parts[-1:] in (("layer",), ("block",), ("stage",)) and "prediction" not in parts and not is_head(class_name)
