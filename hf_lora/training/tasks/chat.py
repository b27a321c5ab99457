"""Conversations, of which the assistant's answers are learnt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ConfigError, DataError
from ..columns import IGNORED
from ..data.columns import Role, place_of
from ..data.layouts import CHAT_ROLES, chat_of, without_nulls
from .generating import Generating, cut, generate
from .templates import answer_mask, chat_tokens, named_template

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ROLES", "Chat", "use_template"]

ROLES = (
    *CHAT_ROLES,
    Role("tools", ("tools", "functions"), lambda value: isinstance(value, str | list), is_required=False),
)


class Chat(Generating):
    """A conversation a row, as the tokenizer's chat template writes it; the assistant's answers are learnt.

    A prediction answers the last turn of the user. `answers`: "all", or "last" for the last of each row alone.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "max_new_tokens", "chat_template", "answers")

    rows_tell: ClassVar[bool] = True

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        if rows:  # an adapter that others trained may have learnt no chat
            use_template(processor, self.options.get("chat_template"))

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        try:
            chat_of(row, self.columns, labelled)
            self._tools(row)
        except DataError as error:
            return str(error)
        return None

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        return [self._feature(row, processor, labelled) for row in rows]

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        prompts = [feature["input_ids"] for feature in self.features(rows, processor, labelled=False)]
        texts = generate(model, processor, prompts, self.options["max_new_tokens"])
        return [{"generated_text": text.strip()} for text in texts]

    def _feature(self, row: Mapping[str, Any], processor: Any, labelled: bool) -> dict[str, Any]:
        turns, tools, most = chat_of(row, self.columns, labelled), self._tools(row), self.options["max_length"]
        try:
            if not labelled:
                return {"input_ids": chat_tokens(processor, turns, tools, ask=True)[-most:]}
            ids, mask = answer_mask(processor, turns, tools, self.options.get("answers") == "last")
        except DataError as error:
            raise DataError(f"{place_of(row)}: {error}.") from error
        if not any(mask):
            raise DataError(f"{place_of(row)}: the chat template marks nothing as the assistant's to learn from.")
        return cut(ids, [token if own else IGNORED for token, own in zip(ids, mask, strict=True)], most)

    def _tools(self, row: Mapping[str, Any]) -> Any:
        """Return the tools that a row offers to the assistant: JSON schemas, or a text of them."""
        tools = self.value(row, "tools")
        if isinstance(tools, str):
            try:
                tools = json.loads(tools)
            except (ValueError, RecursionError) as error:
                raise DataError(f"its tools (column {self.columns['tools']!r}) are no JSON: {error}") from error
            return tools
        return without_nulls(tools)


def use_template(processor: Any, name: str | None) -> None:
    """Give a tokenizer the chat template of a name, which is saved with it. Raises ConfigError where it has none."""
    if name is not None:
        processor.chat_template = named_template(name, processor)
    if not processor.chat_template:
        raise ConfigError(
            "the tokenizer has no chat template, as bases that were not trained to chat: take --chat-template simple "
            "(User: ... Assistant: ...), which is saved with the adapter, or name a file with one."
        )
    if not processor.is_fast:
        raise ConfigError(
            f"{type(processor).__name__} does not tell where its tokens stand in a text; take a fast one."
        )
