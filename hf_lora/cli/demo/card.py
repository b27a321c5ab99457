"""The demo's measurements in the adapter's model card, in the Hub's own form and as text."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from transformers import Trainer
from transformers.modelcard import extract_hyperparameters_from_trainer

from ...hub.card.training_facts import TrainingFacts
from ...hub.card.writing import amend_card, write_card
from ...model.lora_model import LoRAModel
from .data import LABELS
from .results import DemoResults

__all__ = ["BASE", "card_data", "describe"]

BASE = "sentence-transformers/all-MiniLM-L6-v2"
_DATASET = "VADER lexicon"
_TEXT = """
## What it does

It tells whether an English word, phrase or emoticon is `{negative}` or `{positive}`. The base is
[{base}](https://huggingface.co/{base}), a BERT of 22.7M parameters.
`hf-lora demo` made it with the stock `transformers.Trainer`: {trainable:,} of {total:,} parameters trained
({share:.2%}), {epochs:g} epoch(s), seed {seed}.

## Data

The [VADER lexicon](https://github.com/cjhutto/vaderSentiment) (Hutto and Gilbert 2014): entries with the mean of ten
people's ratings; above zero counts as positive. {train:,} entries to train on and {held_out:,} held out, stratified;
of entries that differ by case only, the first counts.

## Before and after, on the held-out entries

| | accuracy | F1 |
|---|---|---|
| most frequent label | {majority:.4f} | |
| before training | {before.accuracy:.4f} | {before.f1:.4f} |
| after training | {after.accuracy:.4f} | {after.f1:.4f} |

## Limits

Single words and short phrases only, without their context. Other forms of a held-out word (*abandon*, *abandoned*)
may be among the training entries, so that really new words are harder than these numbers say. The ratings are those
of ten people a word, in 2014.
"""


def card_data(results: DemoResults) -> ModelCardData:
    """Return what was measured, as the Hub's metadata has it."""
    measured = (("accuracy", results.after.accuracy), ("f1", results.after.f1))
    return ModelCardData(
        base_model=BASE,
        language="en",
        license="apache-2.0",
        metrics=[name for name, _ in measured],
        model_name="sentiment-minilm-lora",
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="vader_lexicon",
                dataset_name=_DATASET,
                dataset_split="held out",
                metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in measured
        ],
    )


def describe(path: Path, trainer: Trainer, results: DemoResults) -> None:
    """Add to the card that `save_pretrained` wrote the base's name, the training set-up and what was measured."""
    model = trainer.model
    assert isinstance(model, LoRAModel)
    (name,) = model.active_adapters()
    facts = TrainingFacts(extract_hyperparameters_from_trainer(trainer))
    write_card(path, model, model.peft_config[name], model.get_adapter_state_dict(), facts, card_data(results))
    text = _TEXT.format(
        negative=LABELS[0],
        positive=LABELS[1],
        base=BASE,
        trainable=results.trainable,
        total=results.total,
        share=results.trainable / results.total,
        epochs=results.options.epochs,
        seed=results.options.seed,
        train=results.train_entries,
        held_out=results.held_out_entries,
        majority=results.majority,
        before=results.before,
        after=results.after,
    )
    amend_card(path, ModelCardData(), {"demo": text})
