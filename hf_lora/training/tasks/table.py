"""The tasks of `hf-lora train`: a row each, which the command line, the card and the docs read."""

from __future__ import annotations

from . import (
    answers,
    causal,
    chat,
    choices,
    classes,
    detection,
    masked,
    numbers,
    pictures,
    preference,
    recommending,
    rewriting,
    several,
    sounds,
    speech,
    tokens,
)  # fmt: skip
from .task import TrainingTask

__all__ = ["TASKS"]

ROWS = (
    TrainingTask(
        "text-classification", ("AutoModelForSequenceClassification",), classes.ROLES,
        "transformers.DataCollatorWithPadding", ("accuracy", "f1"), "one label for a text, or for two", classes.Classes,
        batch_size=32,
    ),
    TrainingTask(
        "multi-label", ("AutoModelForSequenceClassification",), several.ROLES,
        "transformers.DataCollatorWithPadding", ("f1", "accuracy"), "any number of labels for a text, or for two",
        several.Labels,
    ),
    TrainingTask(
        "regression", ("AutoModelForSequenceClassification",), numbers.ROLES,
        "transformers.DataCollatorWithPadding", ("mse", "mae", "pearsonr"), "a number for a text, or for two",
        numbers.Numbers,
    ),
    TrainingTask(
        "token-classification", ("AutoModelForTokenClassification",), tokens.ROLES,
        "transformers.DataCollatorForTokenClassification", ("seqeval",), "entities in a text, or a tag for each word",
        tokens.Tokens,
    ),
    TrainingTask(
        "question-answering", ("AutoModelForQuestionAnswering",), answers.ROLES,
        "transformers.DataCollatorWithPadding", ("squad",), "the part of a context that answers a question",
        answers.Answers,
    ),
    TrainingTask(
        "multiple-choice", ("AutoModelForMultipleChoice",), choices.ROLES, "", ("accuracy",),
        "which of several choices goes with a context or question", choices.Choices,
    ),
    TrainingTask(
        "masked-lm", ("AutoModelForMaskedLM",), masked.ROLES, "", ("perplexity", "accuracy"),
        "hidden words of a text", masked.Masked,
    ),
    TrainingTask(
        "recommendation", ("AutoModelForSequenceClassification",), recommending.ROLES,
        "transformers.DataCollatorWithPadding", ("roc_auc", "ndcg"), "how well an item goes with a history of items",
        recommending.Recommendations,
    ),
    TrainingTask(
        "image-classification", ("AutoModelForImageClassification",), (pictures.IMAGE, classes.LABEL),
        "transformers.default_data_collator", ("accuracy",), "one label for a picture", pictures.PictureClasses,
    ),
    TrainingTask(
        "object-detection", ("AutoModelForObjectDetection",), (pictures.IMAGE, detection.OBJECTS), "",
        ("mean_average_precision",), "boxes and labels of the objects in a picture", detection.Detection, batch_size=8,
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
        causal.CausalText, batch_size=8,
    ),
    TrainingTask(
        "chat", ("AutoModelForCausalLM",), chat.ROLES, "transformers.DataCollatorForSeq2Seq",
        ("perplexity",), "chats, or questions and answers; the answers are learnt", chat.Chat,
        batch_size=8,
    ),
    TrainingTask(
        "preference", ("AutoModelForCausalLM",), preference.ROLES, "transformers.DataCollatorForSeq2Seq",
        ("rewards/accuracies",), "an answer that is better than another one (DPO)", preference.Preference,
        rate=5e-6, epochs=1.0, batch_size=4,
    ),
    TrainingTask(
        "summarization", ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM"), rewriting.SUMMARY_ROLES,
        "transformers.DataCollatorForSeq2Seq", ("rouge",), "a short text for a long one",
        rewriting.Rewriting, batch_size=8,
    ),
    TrainingTask(
        "translation", ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM"), rewriting.TRANSLATION_ROLES,
        "transformers.DataCollatorForSeq2Seq", ("sacrebleu",), "a text in another language",
        rewriting.Rewriting, batch_size=8,
    ),
)  # fmt: skip
TASKS = {row.name: row for row in ROWS}
