"""The error of an adapter that does not fit its model: what is unexpected, what is missing, and what was near."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from torch import nn

from ..errors import AdapterMismatchError, some
from ..targets.names import input_table
from ..variants.table import SAVED
from .keys import split_key, unwrapped

__all__ = ["mismatch", "other_size"]

_MOST = 6  # problems that an error tells


def mismatch(
    modules: Mapping[str, nn.Module], unexpected: Sequence[str], problems: Sequence[str], count: int
) -> AdapterMismatchError:
    """Return the error that lists what does not fit, with the nearest names for each key without a place."""
    said = [f"unexpected {key}{_nearest(key, modules) if i < _MOST else ''}" for i, key in enumerate(unexpected)]
    shown = some([*said, *problems], _MOST, "; ")
    return AdapterMismatchError(
        f"the adapter does not fit {type(modules['']).__name__}: {shown}. Its file holds {count} tensors. Load it onto "
        "the base it was trained on (base_model_name_or_path in its adapter_config.json), of the same class."
    )


def other_size(model: nn.Module, own: Sequence[int], found: Sequence[int], is_whole: bool) -> str:
    """Say what to do where a tensor is for another vocabulary or number of labels; nothing where it is for neither.

    own, found: its shapes in the model and in the file. is_whole: whether it is all of a parameter, as a head's is.
    """
    differing = [(n, m) for n, m in zip(own, found, strict=False) if n != m]
    if len(own) != len(found) or len(differing) != 1:
        return ""
    ((have, held),) = differing
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    if is_whole and own[0] == have == labels:
        return (
            f" (a head for {held} labels, where the model has num_labels={labels}: load the base with "
            f"num_labels={held}, which LoRAModel.from_pretrained does by itself where neither num_labels nor a loaded "
            f"base_model is given; for {labels} labels, train a new adapter)"
        )
    table = input_table(model)
    if not isinstance(table, nn.Embedding) or table.num_embeddings != have:
        return ""
    return f" (another vocabulary: the model has {have} rows; call model.resize_token_embeddings({held}) first)"


def _nearest(key: str, modules: Mapping[str, nn.Module]) -> str:
    path, leaf, attribute = split_key(key)
    path, _ = unwrapped(path)
    if path in modules:
        return f" ({path or type(modules['']).__name__} has no {leaf})" if attribute == SAVED.name else ""
    near = difflib.get_close_matches(path, [n for n in modules if n], n=2, cutoff=0.6)
    return f" (nearest: {', '.join(near)})" if near else ""
