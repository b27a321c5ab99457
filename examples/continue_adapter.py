"""Train an adapter on a part of the words, save it, load it later and go on with the rest.

    pip install ".[demo]"                            # in a checkout
    python examples/continue_adapter.py              # a minute
    python examples/continue_adapter.py --smoke      # a fifteenth of the words

What comes later is measured before and after it was learned. examples/continual.py is about new tasks, and forgetting.
"""

from offline import BASE_ID, encoded, options, parted, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train on one half, save, load, go on with the other; measure each time."""
    given = options(__doc__)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    train, test = (encoded(part, tokenizer) for part in parted(ratings(every=15 if given.smoke else 1)))
    half = len(train) // 2

    def trainer_of(model: LoRAModel, rows: list[dict]) -> Trainer:
        arguments = TrainingArguments(
            given.output, num_train_epochs=1, learning_rate=1e-3, per_device_train_batch_size=8, save_strategy="no",
            report_to="none",
        )  # fmt: skip
        return Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=test,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics("accuracy"),
        )

    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    trainer = trainer_of(LoRAModel.from_pretrained(given.model, config, num_labels=2), train[:half])
    start = trainer.evaluate()
    trainer.train()
    trainer.save_model()

    # is_trainable: an adapter is loaded for inference otherwise, and training it is an error that says so.
    model = LoRAModel.from_pretrained(given.output, is_trainable=True)
    trainer = trainer_of(model, train[half:])
    middle = trainer.evaluate()
    trainer.train()
    end = trainer.evaluate()
    for part, before, after in (("the first half", start, middle), ("the second half", middle, end)):
        print(f"loss, {part}: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    accuracies = (found["eval_accuracy"] for found in (start, middle, end))
    print("accuracy {:.4f}, then {:.4f}, then {:.4f}".format(*accuracies))
    trainer.save_model()
    trainer.create_model_card(model_name="continue_adapter", dataset="VADER lexicon", finetuned_from=BASE_ID)


if __name__ == "__main__":
    main()
