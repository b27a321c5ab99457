"""Recommendation from text: how well an item goes with what somebody had before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..columns import Columns, as_objects
from ..data.columns import Role, is_missing, plain_name
from .classes import is_label
from .numbers import Numbers
from .texts import is_text, label_text, mean_length, shortened, split_up

if TYPE_CHECKING:
    from datasets import Dataset

_YES = {"1", "true", "yes", "y", "like", "liked", "click", "clicked", "positive", "bought"}
_NO = {"0", "false", "no", "n", "dislike", "disliked", "not clicked", "skip", "skipped", "negative", "not bought"}

HISTORY = Role(
    "history", ("history", "user history", "past items", "previous", "profile", "context", "历史"),
    lambda value: isinstance(value, str | list), preference=lambda values: mean_length([str(v) for v in values]),
)  # fmt: skip
CANDIDATE = Role(
    "candidate", ("candidate", "item", "title", "description", "text", "product", "movie", "候选"), is_text
)
LABEL = Role(
    "label", ("label", "clicked", "click", "rating", "score", "liked", "stars", "target", "relevance", "评分"),
    lambda value: is_label(value) or isinstance(value, float), is_label=True,
)  # fmt: skip
USER = Role("user", ("user", "user id", "userid", "session", "session id", "query id", "impression id"),
            lambda value: isinstance(value, str | int), is_required=False, is_label=True)  # fmt: skip
ROLES = (HISTORY, CANDIDATE, LABEL, USER)


class Recommendations(Numbers):
    """A history of items, a candidate, and whether it was taken (a yes or no, learnt by its log loss) or its rating.

    Rows of one user, or of one history where no column names users, are a list that is to be ranked. Of a long history
    the oldest items are cut. options: clicks, whether labels are yes or no.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (*Numbers.OPTIONS, "clicks")

    @classmethod
    def suits(cls, config: Any) -> bool:
        return False  # no model says that its texts were histories

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether there is a history, by its name or in lists."""
        column = columns["history"]
        return plain_name(column) in HISTORY.names or any(isinstance(row[column], list) for row in rows)

    def look(self, rows: Dataset) -> None:
        said = {_word(value) for value in rows.unique(self.columns["label"]) if not is_missing(value)}
        self.options["clicks"] = len(said) == 2 and len(said & _YES) == 1 and len(said & _NO) == 1
        super().look(rows)
        if self.options["clicks"]:
            self.options |= {"mean": 0.0, "std": 1.0}

    def number(self, value: Any) -> float:
        if not self.options["clicks"]:
            return super().number(value)
        return 1.0 if _word(value) in _YES else 0.0 if _word(value) in _NO else math.nan

    def metrics(self) -> tuple[str, ...]:
        return ("roc_auc", "ndcg") if self.options["clicks"] else ("mse", "mae", "ndcg")

    def model_arguments(self) -> dict[str, Any]:
        return {
            "num_labels": 1,
            "problem_type": "multi_label_classification" if self.options["clicks"] else "regression",
        }

    def target(self, row: Mapping[str, Any]) -> Any:
        return [super().target(row)] if self.options["clicks"] else super().target(row)

    def inputs(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[dict[str, Any]]:
        """Return histories and candidates as pairs, cut where a history begins, to at least half of the tokens."""
        most, side = self.options["max_length"], processor.truncation_side
        histories = [_history(self.value(row, "history")) for row in rows]
        candidates = [shortened(str(self.value(row, "candidate")), most // 2, processor) for row in rows]
        processor.truncation_side = "left"
        try:
            return split_up(processor(histories, candidates, truncation="only_first", max_length=most))
        finally:
            processor.truncation_side = side

    def compared(self, rows: Dataset, processor: Any, predictions: Any, labels: Any) -> dict[str, Columns]:
        """Return the ratings, and the lists to rank: the rows of each user."""
        said, truth = (np.asarray(values, dtype=np.float64).reshape(len(rows)) for values in (predictions, labels))
        lists: dict[str, list[int]] = {}
        users = rows[self.columns.get("user") or self.columns["history"]]
        for number, user in enumerate(users):
            lists.setdefault(str(user), []).append(number)
        scores, gains = (as_objects([values[of].tolist() for of in lists.values()]) for values in (said, truth))
        found = super().compared(rows, processor, predictions, labels)
        return {**({} if self.options["clicks"] else found), "lists": Columns(scores, gains)}

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a score, the higher the better: the probability of a yes, or the rating."""
        if not self.options["clicks"]:
            return [{"score": each["value"]} for each in super().predictions(model, processor, rows)]
        logits = self.outputs(model, processor, rows).logits.float()[:, 0]
        return [{"score": score} for score in logits.sigmoid().tolist()]


def _word(value: Any) -> str:
    return label_text(value).casefold()


def _history(value: Any) -> str:
    """Return the items in the order in which they stand, a line each."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")
