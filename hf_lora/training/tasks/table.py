"""The tasks of `hf-lora train`: a row each, which the command line, the card and the docs read."""

from __future__ import annotations

from . import causal, chat, classes, pictures, preference, rewriting, sounds, speech
from .task import TrainingTask

__all__ = ["TASKS"]

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
        "speech-recognition", ("AutoModelForSpeechSeq2Seq", "AutoModelForCTC"), (sounds.AUDIO, speech.TRANSCRIPT),
        "", ("wer", "cer"), "the text of a sound", speech.Speech, batch_size=8,
    ),
    TrainingTask(
        "causal-lm", ("AutoModelForCausalLM",), causal.ROLES,
        "transformers.DataCollatorForSeq2Seq", ("perplexity",), "a text to go on with, or a completion of a prompt",
        causal.CausalText, learning_rate=3e-4, batch_size=8,
    ),
    TrainingTask(
        "chat", ("AutoModelForCausalLM",), chat.ROLES, "transformers.DataCollatorForSeq2Seq",
        ("perplexity",), "conversations, or questions and answers; the answers are learnt", chat.Chat,
        learning_rate=3e-4, batch_size=8,
    ),
    TrainingTask(
        "preference", ("AutoModelForCausalLM",), preference.ROLES, "transformers.DataCollatorForSeq2Seq",
        ("rewards/accuracies",), "an answer that is better than another one (DPO)", preference.Preference,
        learning_rate=5e-6, epochs=1.0, batch_size=4,
    ),
    TrainingTask(
        "summarization", ("AutoModelForSeq2SeqLM",), rewriting.SUMMARY_ROLES, "transformers.DataCollatorForSeq2Seq",
        ("rouge",), "a short text for a long one", rewriting.Rewriting, learning_rate=3e-4, batch_size=8,
    ),
    TrainingTask(
        "translation", ("AutoModelForSeq2SeqLM",), rewriting.TRANSLATION_ROLES, "transformers.DataCollatorForSeq2Seq",
        ("sacrebleu",), "a text in another language", rewriting.Rewriting, learning_rate=3e-4, batch_size=8,
    ),
)  # fmt: skip
TASKS = {row.name: row for row in ROWS}
