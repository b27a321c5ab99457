"""How long rows are in tokens, and what is cut of them: the task's own features, with and without the limit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..columns import IGNORED
from .preparation import Preparation

if TYPE_CHECKING:
    from datasets import Dataset

_LOOKED_AT = 1000  # rows, spread over all of them
_UNCUT = 1_000_000  # tokens


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows that were looked at, in rising order.

    limit: the most that a row may have. cut: how many have more. lost: of how many nothing is left to learn from.
    """

    tokens: list[int]
    limit: int
    cut: int
    lost: int

    def __str__(self) -> str:
        lost = f", {self.lost / len(self.tokens):.1%} so far that nothing is left to learn from" if self.lost else ""
        return (
            f"{self.cut / len(self.tokens):.1%} of the rows have more than {self.limit} tokens and are cut{lost}; the "
            f"longest has {self.tokens[-1]:,}. --max-length says how many stay."
        )

    def quantile(self, share: float) -> int:
        """Return the length that this share of the rows does not pass.

        >>> Lengths([1, 2, 3, 4, 50], 9, 1, 0).quantile(0.5)
        3
        """
        return self.tokens[min(int(share * len(self.tokens)), len(self.tokens) - 1)]


def measure_lengths(preparation: Preparation, rows: Dataset, processor: Any) -> Lengths | None:
    """Return how long at most a thousand rows are, spread over all; None for packed ones, or without tokens."""
    limit = None if preparation.options.get("packing") else preparation.options.get("max_length")
    if limit is None or not len(rows):
        return None
    step = max(len(rows) // _LOOKED_AT, 1)
    looked_at = rows.select(range(0, len(rows), step)).to_list()
    free = copy.copy(preparation)
    free.options = {**preparation.options, "max_length": _UNCUT}
    whole = free.features(looked_at, processor)
    if len(whole) != len(looked_at) or "input_ids" not in whole[0]:
        return None
    tokens = [_length(feature["input_ids"]) for feature in whole]
    cut = [number for number, length in enumerate(tokens) if length > limit] if preparation.cuts else []
    left = preparation.features([looked_at[number] for number in cut], processor) if cut else []
    empty = {*processor.all_special_ids, IGNORED}
    lost = [number for number, feature in zip(cut, left, strict=True) if _is_lost(whole[number], feature, empty)]
    return Lengths(sorted(tokens), limit, len(cut), len(lost))


def check_lengths(lengths: Lengths | None, source: str) -> None:
    """Raise DataError where of every row that was looked at nothing is left to learn from."""
    if lengths is not None and lengths.lost == len(lengths.tokens):
        raise DataError(
            f"{source}: with max_length={lengths.limit}, what is to be learnt from is cut away in all rows; half "
            f"of them have {lengths.quantile(0.5)} tokens or more. Take --max-length {lengths.quantile(0.95)}."
        )


def _length(ids: Sequence[Any]) -> int:
    return max(map(len, ids), default=0) if ids and not isinstance(ids[0], int) else len(ids)


def _is_lost(whole: Mapping[str, Any], left: Mapping[str, Any], empty: set[int]) -> bool:
    """Return whether tokens, or what is learnt of each, had something to say before they were cut, and now have not."""
    for name in ("input_ids", "labels"):
        values = left.get(name)
        if isinstance(values, list) and not _says(values, empty) and _says(whole[name], empty):
            return True
    return False


def _says(values: Sequence[Any], empty: set[int]) -> bool:
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    return any(value not in empty for value in flat)
