"""Classify the sentiment of words with RoBERTa: the split, early stopping, the best checkpoint, accuracy and F1.

    python examples/roberta_classification.py            # roberta-base from the Hub
    python examples/roberta_classification.py --smoke    # a tiny RoBERTa with random weights, no network

Every attention projection gets an adapter; dropout, weight decay and a warm-up are the Trainer's own.
"""

from offline import encoded, options, parted, ratings, roberta
from transformers import AutoTokenizer, DataCollatorWithPadding, EarlyStoppingCallback, Trainer, TrainingArguments

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train until the validation accuracy no longer rises, test the best checkpoint, save it."""
    text = "A RoBERTa learns the sentiment of words."
    given = options(text, "roberta_classification", "a tiny model, a tenth of the words", model="roberta-base")
    rated = ratings(every=10 if given.smoke else 1)
    base = roberta(f"{given.output}/base", [word for word, _ in rated]) if given.smoke else given.model
    tokenizer = AutoTokenizer.from_pretrained(base)
    train, rest = parted(rated, 0.3)
    valid, test = parted(rest, 0.5)
    config = LoRAConfig(r=8, lora_dropout=0.1, target_modules="attention", task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(base, config, num_labels=2, id2label={0: "negative", 1: "positive"})
    print(model.targets_report())
    arguments = TrainingArguments(
        given.output, seed=0, num_train_epochs=3 if given.smoke else 10, learning_rate=1e-3, weight_decay=0.01,
        warmup_steps=20, per_device_train_batch_size=32, eval_strategy="epoch", save_strategy="epoch",
        save_total_limit=2, load_best_model_at_end=True, metric_for_best_model="accuracy",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded(train, tokenizer),
        eval_dataset=encoded(valid, tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy", "f1"),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    print(
        {
            name: round(value, 4)
            for name, value in trainer.evaluate(encoded(test, tokenizer), metric_key_prefix="test").items()
        }
    )
    model.save_pretrained(given.output)


if __name__ == "__main__":
    main()
