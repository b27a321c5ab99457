"""Chats and preferences in the layouts that people keep: read to the same messages, or refused with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_lora.errors import DataError

from .peek import CHAT_ROLES, PREFERENCE_ROLES, chat_of, choose_columns, preference_of, read_rows

USER, ANSWER = {"role": "user", "content": "¿Qué es?"}, {"role": "assistant", "content": "一只猫 🐈"}
SYSTEM = {"role": "system", "content": "قل الحقيقة"}
TOLD = [{"from": "human", "value": "¿Qué es?"}, {"from": "gpt", "value": "一只猫 🐈"}]
PARTS = [{**USER, "content": [{"type": "text", "text": "¿Qué "}, {"type": "text", "text": "es?"}]}, ANSWER]


def _chat(row: dict[str, Any], labelled: bool = True) -> list[dict[str, Any]]:
    return chat_of(row, choose_columns([row], CHAT_ROLES, {}, "rows.jsonl", labelled), labelled)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"id": "1", "messages": [USER, ANSWER]}, [USER, ANSWER]),
        ({"messages": json.dumps([USER, ANSWER])}, [USER, ANSWER]),
        ({"x": [USER, {**ANSWER, "name": None}]}, [USER, ANSWER]),
        ({"messages": PARTS}, [USER, ANSWER]),
        ({"conversations": TOLD}, [USER, ANSWER]),
        ({"conversations": TOLD, "system": SYSTEM["content"]}, [SYSTEM, USER, ANSWER]),
        ({"conversations": [{"from": "system", "value": SYSTEM["content"]}, *TOLD], "system": "x"}, [SYSTEM, USER, ANSWER]),
        ({"output": ANSWER["content"], "input": "", "instruction": USER["content"]}, [USER, ANSWER]),
        ({"instruction": "Say", "input": "it", "output": "x"}, [{**USER, "content": "Say\n\nit"}, {**ANSWER, "content": "x"}]),
        ({"Question": USER["content"], "Answer": ANSWER["content"]}, [USER, ANSWER]),
        ({"问题": USER["content"], "回答": ANSWER["content"]}, [USER, ANSWER]),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER]),
    ],
)  # fmt: skip
def test_every_layout_of_a_chat_is_read_to_the_same_turns(row: dict[str, Any], turns: list[dict[str, Any]]) -> None:
    assert _chat(row) == turns
    assert _chat({**row}, labelled=False) == turns[:-1]


def test_calls_of_tools_stay_in_their_turn() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    turns = [USER, calls, {"role": "tool", "content": "3", "tool_call_id": "a"}, ANSWER]
    assert _chat({"messages": turns}) == [USER, {**calls, "content": ""}, *turns[2:]]


def _calling(**arguments: Any) -> list[dict[str, Any]]:
    calls = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
    return [USER, {"role": "assistant", "content": "", "tool_calls": calls}, ANSWER]


@pytest.mark.parametrize("before", [1, 10_000])
def test_turns_of_texts_and_of_parts_stand_in_one_file(before: int, tmp_path: Path) -> None:
    rows = [{"messages": [USER, ANSWER]}] * before + [{"messages": PARTS}]
    for each in (rows, rows[::-1]):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
        read = read_rows(str(tmp_path / "a.jsonl"), tmp_path)
        assert all(_chat(read[place]) == [USER, ANSWER] for place in (0, -1))


def test_the_arguments_of_a_call_have_no_keys_of_other_calls(tmp_path: Path) -> None:
    chats = [_calling(town="Rome", day={"from": None, "days": [1, None]}), _calling(price=1.5), [USER, ANSWER]]
    tools = [[], [{"parameters": {"type": "object", "default": None}}], [{"parameters": {"other": 1}}]]
    told = [{"messages": chat, "tools": each} for chat, each in zip(chats, tools, strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    read = read_rows(str(tmp_path / "a.jsonl"), tmp_path)
    assert [_chat(row) for row in read] == chats
    assert [json.loads(row["tools"] or "[]") for row in read] == tools
    stored = [_calling(town="Rome"), _calling(price=1.5), [USER, ANSWER]]  # in Parquet the nulls are there already
    datasets.Dataset.from_list([{"messages": chat} for chat in stored]).to_parquet(tmp_path / "a.parquet")
    assert [_chat(row) for row in read_rows(str(tmp_path / "a.parquet"), tmp_path)] == stored


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([USER, {"role": "alien", "content": "x"}], "turn 2 has the unknown role 'alien'"),
        ([USER, {**ANSWER, "content": " "}], "turn 2 (assistant) is empty"),
        ([USER], "no turn of the assistant"),
        ([SYSTEM, ANSWER], "no turn of the user"),
        ([], "is empty"),
        ([USER, {"content": "x"}], "turn 2 does not say who speaks"),
        ([USER, {**ANSWER, "content": 3}], "turn 2 (assistant) says 3, a int"),
        ([{**USER, "content": [{"type": "image"}]}, ANSWER], "a part that is no text"),
        ('[{"role": "user"', "looks like JSON, but is none"),
        ({"role": "user"}, "is a dict"),
    ],
)
def test_a_chat_that_cannot_be_learnt_from_says_why(messages: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        chat_of({"messages": messages}, {"messages": "messages"})
    assert problem in str(caught.value)


WORSE = {"role": "assistant", "content": "a dog"}
SAID = f"\n\nHuman: {USER['content']}\n\nAssistant: "


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER["content"], "chosen": ANSWER["content"], "rejected": WORSE["content"]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"rejected": [USER, WORSE], "prompt": USER["content"], "chosen": [USER, ANSWER]},
        {"chosen": SAID + ANSWER["content"], "rejected": SAID + WORSE["content"]},
    ],
)
def test_every_layout_of_a_preference_is_read_to_the_same_turns(row: dict[str, Any]) -> None:
    columns = choose_columns([row], PREFERENCE_ROLES, {}, "rows.jsonl")
    assert preference_of(row, columns) == {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}
    assert preference_of(row, columns, labelled=False) == {"prompt": [USER]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ({"chosen": "a", "rejected": "b"}, "has no prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "its rejected (column 'rejected') is empty"),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "its rejected answer (column 'rejected') is no turn"),
    ],
)
def test_a_preference_that_cannot_be_learnt_from_says_why(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        preference_of(row, {name: name for name in row})
    assert problem in str(caught.value)
