"""What the names of modules say: letters (query, key, value), outputs, heads, routers."""

import re
from functools import cache


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that say what a module is, whatever stands beside them.
EXPERTS = _set("expert experts")
FIRST_FACTOR = _set("a")  # of a low-rank pair: `q_a_proj`, `kv_a_proj_with_mqa`
INDEXER = _set("indexer")  # it picks the tokens that sparse attention looks at
QUANTIZER = _set("quantizer quantize quantization codebook")
ROUTER = _set("router routers routing")
# A projection with one of these serves positions or gates; it is a query, key or value only if no other is.
SIDE = _set(
    "pos position positional positions pe rel relative sine gate gates gating conv sconv convolution bias norm "
    "embed embeddings embedding idx sampling offsets offset weights"
)
_HEAD = _set(
    "head heads classifier classifiers classification score scorer pooler predictor predictors predictions cls "
    "qa logits unembedding confidence assignment"
)
_OUTPUT = _set("o wo out output outputs")
_PLAIN_OUTPUT = _set("proj projection dense post final linear fc")
_NOISE = _PLAIN_OUTPUT | _set("att attn attention self cross multihead layer lin c to")
_LETTERS = {"query": "q", "queries": "q", "key": "k", "keys": "k", "value": "v", "values": "v"}
_BUNDLE = re.compile(r"w?([qkv]{1,3})z?")  # q, kv, qkv, Wqkv, and Qwen3-Next's qkvz
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_WHOLE = re.compile(r"W(q|k|v|kv|qkv|o)")


@cache
def words(name: str) -> tuple[str, ...]:
    """Return the lower-case words of an identifier: `EncDecAttention` gives enc, dec, attention; `Wqkv` is one word."""
    pieces = [piece.lower() if _WHOLE.fullmatch(piece) else piece for piece in re.split(r"[_.\-]", name)]
    return tuple(part.lower() for piece in pieces for part in _PARTS.findall(piece))


@cache
def says(name: str, group: frozenset[str]) -> bool:
    """Tell whether a name, of a module or of its class, has one of a group's words."""
    return not group.isdisjoint(words(name))


@cache
def letters(name: str) -> frozenset[str]:
    """Return which of q, k and v a projection of this name makes: `Wqkv` all three, `out_proj` none."""
    found: set[str] = set()
    for word in words(name):
        bundle = _BUNDLE.fullmatch(word)
        found.update(bundle.group(1) if bundle else _LETTERS.get(word, ""))
    return frozenset(found)


@cache
def is_output(name: str) -> bool:
    """Tell whether the name is that of an attention's output projection."""
    if letters(name) or says(name, SIDE):
        return False
    return says(name, _OUTPUT) or (says(name, _PLAIN_OUTPUT) and _NOISE.issuperset(words(name)))


@cache
def is_head(name: str) -> bool:
    """Tell whether the name is a task head's or a pooler's."""
    return says(name, _HEAD) or words(name)[:2] == ("lm", "head")


@cache
def is_layer(class_name: str) -> bool:
    """Tell whether a class name is that of a repeated layer of a network."""
    parts = words(class_name)
    return parts[-1:] in (("layer",), ("block",), ("stage",)) and "prediction" not in parts and not is_head(class_name)


def says_attention(class_name: str) -> bool:
    """Tell whether a class name says attention, as a word or inside one."""
    return re.search(r"attention|attn", class_name, re.IGNORECASE) is not None
