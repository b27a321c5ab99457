"""Texts that a decoder-only model learns to write: whole ones, or completions of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class CausalText(Generating):
    """A text a row, of which every token is learnt; or a prompt and a completion, of which the completion is learnt.

    A prompt and a completion are joined by a line break where the rows have no white space between them. `packing`:
    the texts stand one behind the other, an end token after each, in blocks of max_length. A block begins with the last
    token of the one before, so that each token is learnt once.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "max_new_tokens", "packing", "separator")

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
        columns = zip(*self._whole(rows, processor), strict=True)
        ids, labels = ([token for row in column for token in row] for column in columns)
        most = self.options["max_length"]
        starts = range(0, max(len(ids) - 1, 1), most - 1)
        return {
            name: [tokens[start : start + most] for start in starts]
            for name, tokens in (("input_ids", ids), ("labels", labels))
        }
