"""One exact prefix rewrite: an adapter of a model's part on the whole, or of the whole on a part. Strings only.

`model` -> `model.language_model`:  model.layers.0.mlp.fc1 -> model.language_model.layers.0.mlp.fc1
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Rewrite", "mixes", "rewrites", "rewritten"]

Rewrite = tuple[str, str]  # (old prefix, new prefix), whole dotted words; either may be empty


def rewritten(name: str, rewrite: Rewrite) -> str:
    """Return a name with its prefix changed, or as it is where it has another prefix.

    >>> rewritten("model.layers.0", ("model", "model.language_model"))
    'model.language_model.layers.0'
    """
    old, new = rewrite
    if old and name != old and not name.startswith(old + "."):
        return name
    return f"{new}.{name[len(old) :].lstrip('.')}".strip(".")


def rewrites(name: str, names: Iterable[str]) -> list[Rewrite]:
    """Return every prefix rewrite that takes a name to one of the names, each in its shortest form.

    A layer's number belongs to no prefix: rewriting it would move an adapter to another layer.
    """
    words = name.split(".")
    found: dict[Rewrite, None] = {}
    for other in names:
        theirs = other.split(".")
        same = 0
        while same < min(len(words), len(theirs)) and words[-1 - same] == theirs[-1 - same]:
            same += 1
        old, new = words[: len(words) - same], theirs[: len(theirs) - same]
        if same and old != new and not any(word.isdigit() for word in (*old, *new)):
            found[".".join(old), ".".join(new)] = None
    return list(found)


def mixes(names: Iterable[str], rewrite: Rewrite) -> bool:
    """Return whether some names would be rewritten into a part where others lie as they are: no class saves that.

    >>> mixes(["a.fc", "model.fc"], ("a", "model")), mixes(["a.fc", "head"], ("a", "model"))
    (True, False)
    """
    kept = [name for name in names if rewritten(name, rewrite) == name]
    return any(not rewrite[1] or name == rewrite[1] or name.startswith(rewrite[1] + ".") for name in kept)
