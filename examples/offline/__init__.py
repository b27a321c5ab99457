"""What the examples share, so that none needs a network: options, data, and tiny models for `--smoke`.

The data is real where a package holds some (people's ratings of words, the documentation inside Python, scikit-learn's
digits), and made where none does (numbers in words, melodies). `pip install ".[demo]"` in a checkout brings all of it,
and MiniLM-L6, a pretrained BERT of 22.7M parameters.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from .documented import conversations, documented, neighbours, questions, summaries, tagged
from .made import RATE, melodies, numbers
from .rated import BASE, BASE_ID, encoded, parted, ratings
from .tiny import tiny

__all__ = [
    "BASE", "BASE_ID", "RATE", "base_for", "conversations", "documented", "encoded", "melodies", "neighbours",
    "numbers", "options", "parted", "questions", "ratings", "summaries", "tagged",
]  # fmt: skip


def options(text: str, model: str = BASE) -> argparse.Namespace:
    """Return an example's options: output, smoke and model; text: its docstring, for --help."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=f"outputs/{Path(sys.argv[0]).stem}", help="a folder for the adapter")
    parser.add_argument("--smoke", action="store_true", help="a small part of it, in seconds and without network")
    shown = "MiniLM-L6, from a package" if model == BASE else model
    parser.add_argument("--model", default=model, help=f"a model of the Hub, or a folder ({shown})")
    return parser.parse_args()


def base_for(given: argparse.Namespace, kind: str, texts: Iterable[str] = ()) -> str:
    """Return the model to adapt: the one of the options, or with --smoke a tiny one with a tokenizer of these texts."""
    return tiny(kind, f"{given.output}/base", texts) if given.smoke else given.model
