"""What to train on, to choose by and to test on: the files given, or shares of the training rows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def split_rows(rows: Dataset, share: float, seed: int, classes: list[Any] | None = None) -> tuple[Dataset, Dataset]:
    """Return (the rest, a share) of rows, drawn by scikit-learn; with the same share of each class where that can be.

    classes: each row's, of those that tell classes apart. A class of a single row, or more classes than rows in the
    share, cannot be stratified.
    """
    from sklearn.model_selection import train_test_split

    if any(not isinstance(each, str | int) for each in classes or ()):  # lists of labels, or none
        classes = [str(each) for each in classes or ()]
    counts = Counter(classes or ())
    held = min(round(len(rows) * share), len(rows) - 1)
    if not counts or min(counts.values()) < 2 or held < len(counts) or len(rows) - held < len(counts):
        classes = None
    kept, drawn = train_test_split(range(len(rows)), test_size=max(held, 1), random_state=seed, stratify=classes)
    return rows.select(kept), rows.select(drawn)
