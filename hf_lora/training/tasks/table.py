"""The tasks of `hf-lora train`: a row each, which the command line, the card and the docs read."""

from __future__ import annotations

from typing import Any

from ..data.columns import Role
from ..data.layouts import CHAT_ROLES
from .causal import CausalText
from .chat import Chat
from .classes import Classes
from .task import TrainingTask

__all__ = ["TASKS"]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int | bool)


def _mean_length(values: Any) -> float:
    return sum(map(len, values)) / max(len(values), 1)


def _repetition(values: Any) -> float:
    """Labels come again, names, dates and texts do not."""
    return float(len(set(values)) <= len(values) / 2)


TEXT = Role(
    "text",
    ("text", "sentence", "review", "comment", "content", "message", "body", "texto", "texte", "testo", "文本", "内容"),
    _is_text, preference=_mean_length,
)  # fmt: skip
LABEL = Role(
    "label",
    ("label", "labels", "class", "category", "target", "sentiment", "etikett", "klasse", "categoria", "标签", "类别"),
    _is_label, is_label=True, preference=_repetition,
)  # fmt: skip
PAIR = Role("text_pair", ("text pair", "sentence2", "text2", "hypothesis"), _is_text, is_required=False)

WRITTEN = Role(TEXT.name, TEXT.names, TEXT.holds, preference=_mean_length, unless=("prompt", "completion"))
PROMPT = Role("prompt", ("prompt",), _is_text, is_required=False)
COMPLETION = Role("completion", ("completion",), _is_text, is_required=False, is_label=True)
TOOLS = Role("tools", ("tools", "functions"), lambda value: isinstance(value, str | list), is_required=False)

ROWS = (
    TrainingTask(
        "text-classification", ("AutoModelForSequenceClassification",), (TEXT, PAIR, LABEL),
        "transformers.DataCollatorWithPadding", ("accuracy", "f1"), "one label for a text, or for two", Classes,
    ),
    TrainingTask(
        "causal-lm", ("AutoModelForCausalLM",), (WRITTEN, PROMPT, COMPLETION),
        "transformers.DataCollatorForSeq2Seq", ("perplexity",), "a text to go on with, or a completion of a prompt",
        CausalText, learning_rate=3e-4, batch_size=8,
    ),
    TrainingTask(
        "chat", ("AutoModelForCausalLM",), (*CHAT_ROLES, TOOLS), "transformers.DataCollatorForSeq2Seq",
        ("perplexity",), "conversations, or questions and answers; the answers are learnt", Chat,
        learning_rate=3e-4, batch_size=8,
    ),
)  # fmt: skip
TASKS = {row.name: row for row in ROWS}
