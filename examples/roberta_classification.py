"""Classify the sentiment of words with RoBERTa: the split, early stopping, the best checkpoint, accuracy and F1.

    python examples/roberta_classification.py            # roberta-base from the Hub
    python examples/roberta_classification.py --smoke    # a tiny RoBERTa with random weights, no network

Every attention projection gets an adapter; dropout, weight decay and a warm-up are the Trainer's own.
"""

import argparse
from importlib import resources

from offline import roberta
from sklearn.model_selection import train_test_split
from transformers import AutoTokenizer, DataCollatorWithPadding, EarlyStoppingCallback, Trainer, TrainingArguments

from hf_lora import LoRAConfig, LoRAModel, metrics

LEXICON = resources.files("vaderSentiment") / "vader_lexicon.txt"


def ratings() -> dict[str, int]:
    """Return each word with 1 where people rated it above zero, else 0."""
    rows = (line.split("\t") for line in LEXICON.read_text("utf-8").splitlines())
    return {row[0].lower(): int(float(row[1]) > 0) for row in rows}


def main() -> None:
    """Train until the validation accuracy no longer rises, test the best checkpoint, save it."""
    parser = argparse.ArgumentParser(description="A RoBERTa learns the sentiment of words.")
    parser.add_argument("--model", default="roberta-base", help="a RoBERTa of the Hub, or a folder")
    parser.add_argument("--output", default="outputs/roberta_classification")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, a tenth of the words")
    options = parser.parse_args()

    rated = list(ratings().items())[:: 10 if options.smoke else 1]
    base = roberta(f"{options.output}/base", [word for word, _ in rated]) if options.smoke else options.model
    train, rest = train_test_split(rated, test_size=0.3, random_state=0, stratify=[label for _, label in rated])
    valid, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=[label for _, label in rest])
    tokenizer = AutoTokenizer.from_pretrained(base)

    def encoded(entries: list[tuple[str, int]]) -> list[dict]:
        return [{**tokenizer(word), "labels": label} for word, label in entries]

    config = LoRAConfig(r=8, lora_dropout=0.1, target_modules="attention", task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(base, config, num_labels=2, id2label={0: "negative", 1: "positive"})
    print(model.targets_report())
    arguments = TrainingArguments(
        options.output,
        seed=0,
        num_train_epochs=3 if options.smoke else 10,
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup_steps=20,
        per_device_train_batch_size=32,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded(train),
        eval_dataset=encoded(valid),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy", "f1"),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    print({name: round(value, 4) for name, value in trainer.evaluate(encoded(test), metric_key_prefix="test").items()})
    model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
