"""Answers that people prefer to others, learnt by TRL's DPOTrainer.

    loss = -log sigmoid(beta (r(chosen) - r(rejected))),   r(y) = log p(y | prompt) - log p_base(y | prompt)

Rafailov et al. 2023, arXiv:2305.18290. The base is the model without its adapter, so there is no second one in memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError, MissingExtraError
from ..columns import IGNORED
from ..data.columns import place_of
from ..data.layouts import PREFERENCE_ROLES, preference_of
from .chat import use_template
from .generating import Generating, common_length
from .templates import chat_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

__all__ = ["ROLES", "Preference"]

ROLES = PREFERENCE_ROLES
_ANSWERS = ("chosen", "rejected")


class Preference(Generating):
    """A prompt, an answer and a worse one a row, as the tokenizer's chat template writes them.

    A prediction says which of the two the model prefers, and by how much more than its base does:
    r(chosen) - r(rejected).
    """

    smooths: ClassVar[bool] = False  # DPO has a label_smoothing of its own
    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "chat_template", "beta")
    trainer_class: ClassVar[str] = "trl.DPOTrainer"
    arguments_class: ClassVar[str] = "trl.DPOConfig"

    @classmethod
    def suits(cls, config: Any) -> bool:
        return False  # what learnt preferences answers chats, which is that task

    rows_tell: ClassVar[bool] = True

    def learn(self, rows: Dataset, processor: Any) -> None:
        if rows and importlib.util.find_spec("trl") is None:
            raise MissingExtraError("--task preference is TRL's, which is not here: pip install 'hf-lora[trl]'.")
        super().learn(rows, processor)
        del self.options["max_new_tokens"]  # nothing is generated
        self.options["beta"] = self.options.get("beta") or 0.1
        if rows:
            use_template(processor, self.options.get("chat_template"))

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        try:
            preference_of(row, self.columns)
        except DataError as error:
            return str(error)
        return None

    def training_arguments(self) -> dict[str, Any]:
        return {"beta": self.options["beta"], "max_length": self.options["max_length"]}

    def dataset(self, rows: Dataset, processor: Any, labelled: bool = True) -> Any:
        """Return the turns of each row, which TRL prepares."""
        return rows.map(preference_of, fn_kwargs={"columns": self.columns}, remove_columns=rows.column_names)

    def collator(self, processor: Any, model: Any) -> Any:
        return None  # TRL's

    def compute_metrics(self, names: Sequence[str], processor: Any) -> Any:
        return None  # TRL measures by itself

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        """Return the tokens of both answers behind the prompt, and the labels of the answers, as TRL makes them."""
        return [self._feature(row, processor) for row in rows]

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        import torch

        features = self.features(rows, processor)
        for row, feature in zip(rows, features, strict=True):
            if any(set(labels) <= {IGNORED} for labels in feature["labels"]):
                raise DataError(f"{place_of(row)}: its prompt fills max_length={self.options['max_length']}.")
        both = [{key: values[number] for key, values in feature.items()} for number in range(2) for feature in features]
        batch = {key: value.to(model.device) for key, value in super().collator(processor, model)(both).items()}
        labels = batch.pop("labels")
        with torch.inference_mode():
            ratios = _log_probabilities(model, batch, labels)
            with model.adapters_disabled():
                ratios = ratios - _log_probabilities(model, batch, labels)
        chosen, rejected = ratios.chunk(2)
        margins = (chosen - rejected).tolist()
        return [{"preferred": _ANSWERS[margin <= 0], "log_ratio": margin} for margin in margins]

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        seen: dict[str, str] = {}
        for number, name in enumerate(_ANSWERS):
            one = super().shown({key: values[number] for key, values in feature.items()}, processor)
            seen |= {f"prompt and {name}": one["input_ids"], name: one["learnt"]}
        return seen

    def _feature(self, row: Mapping[str, Any], processor: Any) -> dict[str, Any]:
        most, turns = self.options["max_length"], preference_of(row, self.columns)
        try:
            prompt = chat_tokens(processor, turns["prompt"], ask=True)
            both = [chat_tokens(processor, turns["prompt"] + turns[answer]) for answer in _ANSWERS]
        except DataError as error:
            raise DataError(f"{place_of(row)}: {error}.") from error
        if both[0] == both[1]:
            raise DataError(f"{place_of(row)}: the chat template writes both answers the same; name another one.")
        start = min(common_length(prompt, ids) for ids in both)
        labels = [[IGNORED] * start + ids[start:] for ids in both]
        return {"input_ids": [ids[:most] for ids in both], "labels": [each[:most] for each in labels]}


def _log_probabilities(model: Any, batch: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return log p of the labels of each row: labels (rows, tokens) to (rows,)."""
    logits = model(**batch).logits[:, :-1].float()
    wanted = labels[:, 1:]
    found = logits.log_softmax(-1).gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (found * (wanted != IGNORED)).sum(-1)
