"""Chats as tokens, by the tokenizer's chat template, and which of them the assistant wrote.

A template with {% generation %} marks them itself. Otherwise they are what is added to a chat by an answer, so each
rendering has to begin with the one of the turns before; where a template rewrites earlier turns, that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ...errors import ConfigError, DataError, MissingExtraError

__all__ = ["answer_mask", "chat_tokens", "named_template"]

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TAIL = 20  # letters of an answer that have to be in what a template writes; it may rewrite thoughts before them
# For a tokenizer without a template: no new token, an end token after each answer.
_SIMPLE = """\
{%- for message in messages %}
{%- if tools or message.tool_calls or message.role == 'tool' %}
{{- raise_exception('the template "simple" knows no tools') }}{% endif %}
{{- message.role | capitalize + ':' }}
{%- if message.role == 'assistant' %}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
{%- else %}{{ ' ' + message.content }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""


def named_template(name: str, processor: Any) -> str:
    """Return a chat template: "simple", "trl" (TRL's for training, in the place of the tokenizer's), or a file's text.

    Raises ConfigError for a name that is no file, or where TRL has none; MissingExtraError without TRL.
    """
    if name == "simple":
        adds = processor("a")["input_ids"][:1] == [processor.bos_token_id]
        return ("{{- bos_token }}" if adds else "") + _SIMPLE
    if name == "trl":
        return _of_trl(processor)
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template={name!r}: it is neither 'simple' nor 'trl' nor a file with a template: {error}"
        ) from error


def _of_trl(processor: Any) -> str:
    try:
        from trl.chat_template_utils import get_training_chat_template
    except ImportError as error:
        raise MissingExtraError(
            "chat_template='trl' needs the package trl, which is not here: pip install trl."
        ) from error
    try:
        return str(get_training_chat_template(processor) or processor.chat_template)
    except ValueError as error:
        raise ConfigError(
            "chat_template='trl': TRL has none for this tokenizer. Name a file with one that has {% generation %} and "
            "{% endgeneration %} around what the assistant writes."
        ) from error


def chat_tokens(processor: Any, turns: Sequence[Mapping[str, Any]], tools: Any = None, ask: bool = False) -> list[int]:
    """Return the tokens of a chat; ask: with those that ask the assistant for an answer. Raises DataError."""
    return list(_encoded(processor, _rendered(processor, turns, tools, add_generation_prompt=ask))["input_ids"])


def answer_mask(
    processor: Any, turns: Sequence[Mapping[str, Any]], tools: Any = None, last_only: bool = False
) -> tuple[list[int], list[bool]]:
    """Return a chat's tokens, and which of them the assistant wrote, the end of the answers with them.

    last_only: of the last answer alone. Raises DataError where the template refuses the chat, or rewrites its turns.
    """
    template = str(processor.get_chat_template(tools=tools))
    marked = _MARKS.search(template) is not None
    whole, spans = _marked(processor, turns, tools) if marked else _added(processor, turns, tools, last_only)
    spans = spans[-1:] if last_only else spans
    written = "".join(whole[first:last] for first, last in spans)
    answers = [turn["content"].strip() for turn in turns if turn["role"] == "assistant"]
    if lost := [said for said in (answers[-1:] if last_only else answers) if said[-_TAIL:] not in written]:
        raise DataError(
            f"the chat template leaves out what the assistant says ({lost[0][:60]!r}), as those of pictures do; name "
            "another one with --chat-template"
        )
    encoded = _encoded(processor, whole, return_offsets_mapping=True)
    mask = [any(end > first and start < last for first, last in spans) for start, end in encoded["offset_mapping"]]
    return encoded["input_ids"], mask


def _marked(processor: Any, turns: Any, tools: Any) -> tuple[str, list[tuple[int, int]]]:
    """Return a chat's text, and what the template marks of it.

    Transformers' own mask of tokens misses an answer, or marks all behind one, that begins or ends with a space.
    """
    with _refusals():
        found: Any = render_jinja_template(
            conversations=[list(turns)], tools=tools, chat_template=processor.get_chat_template(tools=tools),
            return_assistant_tokens_mask=True, **processor.special_tokens_map,
        )  # fmt: skip
    return found[0][0], found[1][0]


def _added(processor: Any, turns: Any, tools: Any, last_only: bool) -> tuple[str, list[tuple[int, int]]]:
    """Return a chat's text, and what its answers add to it."""
    whole, spans = _rendered(processor, turns, tools), []
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    for number in answers[-1:] if last_only else answers:
        before = _rendered(processor, turns[:number], tools, add_generation_prompt=True)
        after = _rendered(processor, turns[: number + 1], tools)
        if not (after.startswith(before) and whole.startswith(after)):
            raise DataError(
                f"the chat template writes turn {number + 1} otherwise where others follow, or begins an answer "
                "otherwise than it asks for one, so what to learn cannot be told. Take --answers last, --chat-template "
                "trl, or a template with {% generation %}"
            )
        if turns[number]["content"] and after.endswith(turns[number]["content"]):
            raise DataError(
                "the chat template ends an answer with nothing, so no model could learn to stop. Take --chat-template "
                "trl, or one with an end token behind each answer"
            )
        spans.append((len(before), len(after)))
    return whole, spans


def _encoded(processor: Any, text: str, **settings: Any) -> Any:
    return processor(text, add_special_tokens=False, **settings)


def _rendered(processor: Any, turns: Any, tools: Any, **settings: Any) -> str:
    with _refusals():
        return processor.apply_chat_template(list(turns), tools=tools, tokenize=False, **settings) if turns else ""


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise DataError with what a template says of a chat that it does not take."""
    try:
        yield
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the chat template refuses it: {' '.join(str(error).split())}") from error
