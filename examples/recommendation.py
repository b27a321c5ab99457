"""Recommend from texts: who read these two wants which of five next? A BERT scores each, and they are ranked.

    pip install ".[demo]"                           # in a checkout
    python examples/recommendation.py               # a minute or two
    python examples/recommendation.py --smoke       # a thirtieth of the readers

A reader of Python's documentation stays in a module: the item to find is of the module that the history is of, the
other four are of others. The modules to test with are not among those to train on.
"""

import torch
from offline import BASE_ID, neighbours, options
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train on pairs of history and item, rank the items of new readers, save."""
    given = options(__doc__)
    set_seed(0)
    readers = neighbours(seed=0)[:: 30 if given.smoke else 1]
    modules = sorted({reader["module"] for reader in readers})[::4]
    test = [reader for reader in readers if reader["module"] in modules]
    train = [reader for reader in readers if reader["module"] not in modules]
    tokenizer = AutoTokenizer.from_pretrained(given.model)

    def pairs(readers: list[dict]) -> list[dict]:
        return [
            {**tokenizer(" ".join(reader["history"]), item), "labels": int(number == reader["wanted"])}
            for reader in readers
            for number, item in enumerate(reader["items"])
        ]

    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(given.model, config, num_labels=2, id2label={0: "other", 1: "wanted"})
    arguments = TrainingArguments(
        given.output, num_train_epochs=2, learning_rate=1e-3, per_device_train_batch_size=8, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=pairs(train),
        eval_dataset=pairs(test),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("roc_auc"),
    )

    def first() -> float:
        """Return how often the wanted item has the highest score of its five."""
        scores = torch.tensor(trainer.predict(pairs(test)).predictions).softmax(-1)[:, 1].view(len(test), -1)
        wanted = torch.tensor([reader["wanted"] for reader in test])
        return float((scores.argmax(-1) == wanted).float().mean())

    before, ranked = trainer.evaluate(), [first()]
    trainer.train()
    after = trainer.evaluate()
    ranked.append(first())
    print(f"loss: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    print(f"ROC AUC {before['eval_roc_auc']:.3f}, then {after['eval_roc_auc']:.3f}")
    print(f"the wanted item ranked first: {ranked[0]:.3f}, then {ranked[1]:.3f} of the lists")
    trainer.save_model()
    trainer.create_model_card(model_name="recommendation", dataset="Python's documentation", finetuned_from=BASE_ID)


if __name__ == "__main__":
    main()
