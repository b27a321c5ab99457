"""Texts that a decoder-only model learns to write: whole ones, or completions of prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from ..columns import IGNORED
from ..data.columns import Role
from .generating import Generating, common_length, cut, generate
from .texts import TEXT, is_text, mean_length

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ROLES", "CausalText"]

ROLES = (
    Role(TEXT.name, TEXT.names, TEXT.holds, preference=mean_length, unless=("prompt", "completion")),
    Role("prompt", ("prompt",), is_text, is_required=False),
    Role("completion", ("completion",), is_text, is_required=False, is_label=True),
)
_LOOKED_AT = 100  # rows that tell how prompts and completions are joined

logger = logging.getLogger(__name__)


class CausalText(Generating):
    """A text a row, of which every token is learnt; or a prompt and a completion, of which the completion is learnt.

    A prompt and a completion are joined by a line break where the rows have no white space between them. `packing`:
    the texts stand one behind the other, an end token after each, in blocks of max_length. A block begins with the last
    token of the one before, so that each token is learnt once. Where the base can do that, no text sees the others:
    their positions begin again, from which Transformers makes the mask.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "max_new_tokens", "packing", "separator")

    _parts_texts = False  # whether the base keeps packed texts apart

    def fit_model(self, model: Any, processor: Any) -> None:
        super().fit_model(model, processor)
        if self.options.get("packing"):
            model.config.use_cache = False  # with a cache Transformers takes no packed texts; its Trainer sets it, too
            self._parts_texts = parts_texts(model)
            if not self._parts_texts:
                logger.warning("This base cannot keep packed texts apart: in a block, each sees those before it.")

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        if self.options.get("separator") is None and self._has_prompts:
            pairs = [(self._text(row, "prompt"), self._text(row, "completion")) for row in islice(rows, _LOOKED_AT)]
            spaced = any(prompt[-1:].isspace() or completion[:1].isspace() for prompt, completion in pairs)
            self.options["separator"] = "" if spaced else "\n"

    def needed(self, labelled: bool) -> tuple[str, ...]:
        return ("prompt", "completion")[: 1 + labelled] if self._has_prompts else ("text",)

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        most = self.options["max_length"]
        if not labelled:
            return [{"input_ids": prompt[-most:]} for prompt in self._prompts(rows, processor)]
        return [cut(ids, labels, most) for ids, labels in self._whole(rows, processor)]

    def dataset(self, rows: Dataset, processor: Any, labelled: bool = True) -> Any:
        if not (self.options.get("packing") and labelled):
            return super().dataset(rows, processor, labelled)
        return rows.map(lambda batch: self._blocks(batch, processor), batched=True, remove_columns=rows.column_names)

    def collator(self, processor: Any, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        if not self._parts_texts:
            return super().collator(processor, model)
        import torch

        def collated(features: list[dict[str, Any]]) -> dict[str, Any]:
            """Pad what no token before it sees; an attention mask would take the place of the texts' own."""
            fills = {"input_ids": processor.pad_token_id, "labels": IGNORED, "position_ids": 0}
            rows = {name: [torch.tensor(feature[name]) for feature in features] for name in fills}
            return {name: torch.nn.utils.rnn.pad_sequence(rows[name], True, fill) for name, fill in fills.items()}

        return collated

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        prompts = [feature["input_ids"] for feature in self.features(rows, processor, labelled=False)]
        texts = generate(model, processor, prompts, self.options["max_new_tokens"])
        return [{"generated_text": text} for text in texts]

    @property
    def _has_prompts(self) -> bool:
        return "prompt" in self.columns and ("completion" in self.columns or "text" not in self.columns)

    def _text(self, row: Mapping[str, Any], role: str) -> str:
        value = self.value(row, role)
        return "" if value is None else str(value)

    def _prompts(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[list[int]]:
        """Return the tokens behind which the model goes on writing."""
        role, end = ("prompt", self.options["separator"] or "") if self._has_prompts else ("text", "")
        found = processor([self._text(row, role) + end for row in rows])["input_ids"]
        return [ids[:-1] if ids[-1:] == [processor.eos_token_id] else ids for ids in found]

    def _whole(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[tuple[list[int], list[int]]]:
        """Return each row's tokens, the end token with them, and the labels: from where the prompt's tokens end."""
        texts = [self._text(row, "text") for row in rows]
        prompts: list[list[int]] = [[]] * len(rows)
        if self._has_prompts:
            joined = (self._text(row, "prompt") + self.options["separator"] for row in rows)
            texts = [prompt + self._text(row, "completion") for prompt, row in zip(joined, rows, strict=True)]
            prompts = self._prompts(rows, processor)
        found = []
        for ids, prompt in zip(processor(texts)["input_ids"], prompts, strict=True):
            ids = ids if ids[-1:] == [processor.eos_token_id] else [*ids, processor.eos_token_id]
            start = common_length(prompt, ids)
            found.append((ids, [IGNORED] * start + ids[start:]))
        return found

    def _blocks(self, batch: Mapping[str, list[Any]], processor: Any) -> dict[str, list[list[int]]]:
        """Return the tokens and labels of a batch of rows, a column each, in blocks."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        whole = self._whole(rows, processor)
        if self._parts_texts:  # a text's first token has nothing before it that tells it
            whole = [(ids, [IGNORED, *labels[1:]]) for ids, labels in whole]
        ids, labels = ([token for row in column for token in row] for column in zip(*whole, strict=True))
        places = [place for row, _ in whole for place in range(len(row))]
        most = self.options["max_length"]
        starts = range(0, max(len(ids) - 1, 1), most - 1)
        found = {
            name: [tokens[start : start + most] for start in starts]
            for name, tokens in (("input_ids", ids), ("labels", labels))
        }
        if self._parts_texts:
            blocks = [places[start : start + most] for start in starts]
            found["position_ids"] = [[min(at, place) for at, place in enumerate(block)] for block in blocks]
        return found


def parts_texts(model: Any) -> bool:
    """Return whether a model keeps texts apart that stand in one row, each with positions from 0.

    Tried on the model: its logits of two texts in a row, without a mask, are those of each alone.
    """
    import torch

    ids = torch.arange(12, device=model.device)[None] % model.config.get_text_config().vocab_size
    places = torch.cat([torch.arange(7), torch.arange(5)])[None].to(model.device)
    trains = model.training
    model.eval()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=part).logits for part in (ids[:, :7], ids[:, 7:])], dim=1).float()
        try:
            both = model(input_ids=ids.expand(2, -1), position_ids=places.expand(2, -1)).logits.float()
        except (TypeError, ValueError, RuntimeError):
            return False
        finally:
            model.train(trains)
        seen = model(input_ids=ids).logits.float()
    return bool((both - alone).abs().mean() < 0.05 * (seen - alone).abs().mean())  # bfloat16 rounds
