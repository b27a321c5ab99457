"""Chats and preferences as lists of messages, from the layouts in which people keep them.

    messages      [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]
    ShareGPT      [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]
    two columns   instruction (with input) and output, prompt and completion, question and answer
    preferences   prompt, chosen and rejected: texts, messages, or "Human: ... Assistant: ..." in one text

A cell with messages may be JSON in a text, as a CSV has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from .columns import Role, is_empty

Message = dict[str, Any]  # role and content, and what a tool call needs

# What people call a role -> what chat templates call it.
_SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "model", "ai", "bing", "bard", "function_call"), "assistant"
    ),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
}
_WHO, _WHAT = ("role", "from", "speaker"), ("content", "value", "text")
_KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content")
_DIALOGUE = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _is_messages(value: Any) -> bool:
    try:
        found = _opened(value)
    except DataError:
        return False
    return isinstance(found, list) and all(isinstance(turn, dict) and _of(turn, _WHO) for turn in found)


def _is_said(value: Any) -> bool:
    return isinstance(value, str) or _is_messages(value)


SYSTEM = Role("system", ("system", "system prompt"), _is_said, is_required=False)
CHAT_ROLES = (
    Role(
        "messages", ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns"), _is_messages,
        unless=("prompt", "completion"),
    ),
    Role(
        "prompt", ("instruction", "prompt", "question", "query", "anweisung", "frage", "pregunta", "指令", "问题"),
        _is_said, is_required=False,
    ),
    Role("context", ("input", "context", "eingabe", "输入"), lambda value: isinstance(value, str), is_required=False),
    Role(
        "completion",
        ("output", "completion", "response", "answer", "assistant", "antwort", "respuesta", "réponse", "输出", "回答"),
        _is_said, is_required=False, is_label=True,
    ),
    SYSTEM,
)  # fmt: skip
PREFERENCE_ROLES = (
    Role("prompt", ("prompt", "instruction", "question", "query", "input"), _is_said, is_required=False),
    Role("chosen", ("chosen", "preferred", "accepted", "better"), _is_said, is_label=True),
    Role("rejected", ("rejected", "dispreferred", "worse"), _is_said, is_label=True),
    SYSTEM,
)  # fmt: skip


def chat_of(row: Mapping[str, Any], columns: Mapping[str, str], labelled: bool = True) -> list[Message]:
    """Return the turns of a row, each with "role" (system, user, assistant, tool) and "content", a text.

    columns: the column of each of CHAT_ROLES. labelled: an assistant's turn has to be there; else those at the end are
    left out: the model is to write them. Raises DataError with what is wrong, without the row's place.
    """
    if "messages" in columns:
        turns = _turns(row.get(columns["messages"]), "user", f"its chat (column {columns['messages']!r})")
    else:
        turns = _part(row, columns, "prompt", "user")
        context = row.get(columns.get("context", ""))
        if not is_empty(context):
            turns[-1]["content"] += f"\n\n{context}"
        if labelled:
            turns += _part(row, columns, "completion", "assistant")
    turns = _with_system(row, columns, turns)
    if labelled and not any(turn["role"] == "assistant" for turn in turns):
        raise DataError("its chat has no turn of the assistant to learn from")
    while not labelled and turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not any(turn["role"] == "user" for turn in turns):
        raise DataError("its chat has no turn of the user")
    return turns


def preference_of(
    row: Mapping[str, Any], columns: Mapping[str, str], labelled: bool = True
) -> dict[str, list[Message]]:
    """Return the turns of "prompt", "chosen" and "rejected" of a row.

    Where there is no prompt of its own, or both answers repeat it, it is what the two begin with. labelled: False for
    the prompt alone. Raises DataError with what is wrong, without the row's place.
    """
    prompt = _part(row, columns, "prompt", "user") if "prompt" in columns else []
    if not labelled and prompt:
        return {"prompt": _with_system(row, columns, prompt)}
    chosen, rejected = (_part(row, columns, name, "assistant") for name in ("chosen", "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise DataError("its chosen and its rejected answer are the same")
    if shared and (not prompt or chosen[:shared][-len(prompt) :] == prompt):
        prompt = chosen[:shared]
        chosen, rejected = chosen[shared:], rejected[shared:]
    if not prompt:
        raise DataError("it has no prompt, and its chosen and rejected answers begin with no turn that they share")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or any(turn["role"] not in ("assistant", "tool") for turn in turns):
            raise DataError(f"its {name} answer (column {columns[name]!r}) is no turn of the assistant's")
    found = {"prompt": _with_system(row, columns, prompt)}
    return {**found, "chosen": chosen, "rejected": rejected} if labelled else found


def _part(row: Mapping[str, Any], columns: Mapping[str, str], role: str, speaker: str) -> list[Message]:
    return _turns(row.get(columns[role]), speaker, f"its {role} (column {columns[role]!r})")


def _with_system(row: Mapping[str, Any], columns: Mapping[str, str], turns: list[Message]) -> list[Message]:
    """Return the turns behind what the system's column says; their own system turn wins."""
    said = row.get(columns.get("system", ""))
    if is_empty(said) or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": str(said)}, *turns]


def _turns(value: Any, speaker: str, where: str) -> list[Message]:
    """Return what a cell holds as turns; a plain text is one of the speaker's."""
    try:
        found = _opened(value)
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    if is_empty(found):
        raise DataError(f"{where} is empty")
    if isinstance(found, str):
        parts = _DIALOGUE.split(found)
        said = [{"role": who, "content": what.strip()} for who, what in zip(parts[1::2], parts[2::2], strict=True)]
        found = said if said and not parts[0].strip() else [{"role": speaker, "content": found}]
    if not isinstance(found, list):
        raise DataError(f"{where} is a {type(found).__name__}, and has to be a text or a list of turns")
    return [_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(found, start=1)]


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict) or _of(turn, _WHO) is None:
        raise DataError(f'{where} does not say who speaks, as {{"role": "user", "content": "..."}}')
    who = str(_of(turn, _WHO))
    role = _SPEAKERS.get(who.strip().lower())
    if role is None:
        raise DataError(f"{where} has the unknown role {who!r}; known are {', '.join(_SPEAKERS)}")
    kept = {key: turn[key] for key in _KEPT if not is_empty(turn.get(key))}
    content = _of(turn, _WHAT)
    if isinstance(content, list):
        if other := [part for part in content if not isinstance(part, dict) or not isinstance(part.get("text"), str)]:
            raise DataError(f"{where} ({role}) has a part that is no text: {str(other[0])[:60]}")
        content = "".join(part["text"] for part in content)
    if is_empty(content) and "tool_calls" not in kept:
        raise DataError(f"{where} ({role}) is empty")
    if not isinstance(content, str | None):
        raise DataError(f"{where} ({role}) says {content!r}, a {type(content).__name__}, and has to say a text")
    return {"role": role, "content": content or "", **kept}


def _of(turn: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _opened(value: Any) -> Any:
    """Return what a cell holds; a text that looks like a list of JSON objects is read as one.

    Arrow gives an object the keys of all others in its column, with nulls, which are left out.
    """
    if isinstance(value, str) and re.match(r"\s*\[\s*\{", value):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"looks like JSON, but is none: {error}") from error
    return without_nulls(value)


def without_nulls(value: Any) -> Any:
    """Return a value without the keys of its objects, however deep, that hold None.

    >>> without_nulls([{"a": 1, "b": None, "c": {"d": None}}, None])
    [{'a': 1, 'c': {}}, None]
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return list(map(without_nulls, value)) if isinstance(value, list) else value
