"""What the tasks share whose models write text: padding, cutting, generating, and how a sample is shown."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ConfigError
from ..columns import IGNORED
from .preparation import Preparation

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Generating", "common_length", "cut", "generate"]

logger = logging.getLogger(__name__)
_NEW_TOKENS = 128  # of an answer, where nobody says it


class Generating(Preparation):
    """A task whose model writes text. Predictions are {"generated_text": ...}, as Transformers' pipelines give it."""

    smooths: ClassVar[bool] = True
    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "max_new_tokens")

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        self.options["max_new_tokens"] = self.options.get("max_new_tokens") or _NEW_TOKENS
        if processor.eos_token is None:
            raise ConfigError(
                f"the tokenizer ({type(processor).__name__}) has no end token (eos_token), so no model could learn "
                "where a text ends: set one in its tokenizer_config.json."
            )

    def fit_model(self, model: Any, processor: Any) -> None:
        if processor.pad_token is None:
            processor.pad_token = processor.eos_token  # labels and attention leave padding out, whatever it is

    def compute_metrics(self, names: Sequence[str], processor: Any) -> Any:
        from ..metrics import metrics

        return metrics(*names, processing_class=processor)

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        feature = {key: value for key, value in feature.items() if key != "attention_mask"}
        trained = [token for token in feature.pop("labels", ()) if token != IGNORED]
        return {
            **super().shown(feature, processor),
            "learnt": super().shown({"input_ids": trained}, processor)["input_ids"],
        }


def generate(
    model: Any,
    processor: Any,
    prompts: Sequence[list[int]],
    most: int,
    how: Mapping[str, Any] | None = None,
    streamer: Any = None,
) -> list[str]:
    """Return what a decoder-only model writes behind prompts, token ids each: the likeliest, token by token.

    most: new tokens at most. how: other settings of `generate` than that. streamer: gets the tokens of a single prompt.
    A prompt that leaves no room for the answer in the model's positions loses its beginning, with a warning; it keeps
    half of them, and what is left is the answer's.
    """
    import torch

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts))
    room = max(positions - most, positions // 2, 1) if positions else longest
    most = min(most, positions - min(longest, room)) if positions else most
    if longest > room:
        logger.warning(
            "a prompt of %s tokens and an answer of %s are more than the model's %s: its beginning is left out.",
            longest, most, positions,
        )  # fmt: skip
    kept = [prompt[-room:] for prompt in prompts]
    batch = processor.pad({"input_ids": kept}, padding_side="left", return_tensors="pt").to(model.device)
    likeliest = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    with torch.inference_mode():
        found = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=most,
            pad_token_id=processor.pad_token_id, eos_token_id=_ends(model, processor), streamer=streamer,
            **(likeliest if how is None else how),
        )  # fmt: skip
    return processor.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def _ends(model: Any, processor: Any) -> list[int]:
    """Return the tokens that end an answer: those of the model's, and the tokenizer's, which training puts there."""
    own = model.generation_config.eos_token_id
    return sorted({*(own if isinstance(own, list) else [own]), processor.eos_token_id} - {None})


def cut(ids: list[int], labels: list[int], most: int) -> dict[str, list[int]]:
    """Return a feature of at most so many tokens: the beginning, or, if nothing is trained there, what is around the
    first tokens that are. labels: IGNORED where nothing is trained."""
    start = 0
    if len(ids) > most:
        trained = [i for i, label in enumerate(labels) if label != IGNORED]
        first, last = (trained[0], trained[-1]) if trained else (0, 0)
        if first >= most - 1:
            start = max(min(last + 1, first + max(most // 2, 1)) - most, 0)
    return {"input_ids": ids[start : start + most], "labels": labels[start : start + most]}


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common from their beginning.

    >>> common_length([1, 2, 3], [1, 2, 4])
    2
    """
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))  # noqa: B905
