"""The tasks of `hf-lora train`: a row each, which the command line, the card and the docs read."""

from __future__ import annotations

from ..data.columns import Role
from ..data.layouts import CHAT_ROLES
from . import classes, pictures, sounds
from .causal import CausalText
from .chat import Chat
from .task import TrainingTask
from .texts import TEXT, is_text, mean_length

WRITTEN = Role(TEXT.name, TEXT.names, TEXT.holds, preference=mean_length, unless=("prompt", "completion"))
PROMPT = Role("prompt", ("prompt",), is_text, is_required=False)
COMPLETION = Role("completion", ("completion",), is_text, is_required=False, is_label=True)
TOOLS = Role("tools", ("tools", "functions"), lambda value: isinstance(value, str | list), is_required=False)

ROWS = (
    TrainingTask(
        "text-classification", ("AutoModelForSequenceClassification",), classes.ROLES,
        "transformers.DataCollatorWithPadding", ("accuracy", "f1"), "one label for a text, or for two", classes.Classes,
    ),
    TrainingTask(
        "image-classification", ("AutoModelForImageClassification",), (pictures.IMAGE, classes.LABEL),
        "transformers.default_data_collator", ("accuracy",), "one label for a picture", pictures.PictureClasses,
    ),
    TrainingTask(
        "audio-classification", ("AutoModelForAudioClassification",), (sounds.AUDIO, classes.LABEL),
        "transformers.DataCollatorWithPadding", ("accuracy",), "one label for a sound", sounds.SoundClasses,
        batch_size=8,
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
