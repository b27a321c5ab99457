"""Classify the sentiment of words with RoBERTa: three parts, early stopping, the best checkpoint, accuracy and F1.

    python examples/roberta_classification.py            # roberta-base from the Hub
    python examples/roberta_classification.py --smoke    # a tiny RoBERTa with random weights, a fifth of the words

Every attention projection gets an adapter; dropout, weight decay and a warm-up are the Trainer's own.
"""

from offline import base_for, encoded, options, parted, ratings
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train until the validation accuracy no longer rises, test the best checkpoint, save it."""
    given = options(__doc__, model="roberta-base")
    set_seed(0)
    rated = ratings(every=5 if given.smoke else 1)
    base = base_for(given, "roberta", [word for word, _ in rated])
    tokenizer = AutoTokenizer.from_pretrained(base)
    train, rest = parted(rated, 0.3)
    train, valid, test = (encoded(part, tokenizer) for part in (train, *parted(rest, 0.5)))
    # Random weights have to learn what words are as well.
    more = {"modules_to_save": ["word_embeddings"]} if given.smoke else {}
    config = LoRAConfig(r=8, lora_dropout=0.1, target_modules="attention", task_type="SEQ_CLS", **more)
    model = LoRAModel.from_pretrained(base, config, num_labels=2, id2label={0: "negative", 1: "positive"})
    print(model.targets_report())
    arguments = TrainingArguments(
        given.output, num_train_epochs=10, learning_rate=5e-3 if given.smoke else 1e-3, weight_decay=0.01,
        warmup_steps=20, per_device_train_batch_size=32, eval_strategy="epoch", save_strategy="epoch",
        save_total_limit=2, load_best_model_at_end=True, metric_for_best_model="accuracy", report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=valid,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy", "f1"),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    before = trainer.evaluate(test)
    trainer.train()
    after = trainer.evaluate(test)
    for name in ("accuracy", "f1"):
        print(f"{name}: {before[f'eval_{name}']:.4f} before, {after[f'eval_{name}']:.4f} after")
    print(f"{trainer.state.epoch:.0f} epochs until it no longer rose; checkpoints hold the adapter alone")
    trainer.save_model()
    trainer.create_model_card(model_name="roberta_classification", dataset="VADER lexicon")


if __name__ == "__main__":
    main()
