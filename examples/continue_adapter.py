"""Train an adapter on words, save it, load it again and continue it on emoticons: what it learns, what it forgets.

pip install ".[demo]"                            # in a checkout
python examples/continue_adapter.py              # about two minutes on two cores
python examples/continue_adapter.py --smoke      # a twentieth of the words, one epoch
"""

from offline import BASE, encoded, options, parted, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train on one part, save, load, continue on the other; measure both parts each time."""
    given = options("An adapter goes on learning from new data.", "continue_adapter", "a twentieth of the words")
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rated = ratings()
    words = [(text, label) for text, label in rated if text.isalpha()][:: 20 if given.smoke else 1]
    emoticons = [(text, label) for text, label in rated if not text.isalpha()]
    train, test = {}, {}
    for part, texts in (("words", words), ("emoticons", emoticons)):
        train[part], test[part] = (encoded(half, tokenizer) for half in parted(texts))

    def trained(model: LoRAModel, part: str, epochs: int) -> None:
        arguments = TrainingArguments(
            given.output, num_train_epochs=epochs, learning_rate=2e-3, per_device_train_batch_size=32,
            per_device_eval_batch_size=64, save_strategy="no", report_to="none",
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train[part],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics("accuracy"),
        )
        trainer.train()
        scores = {name: trainer.evaluate(rows)["eval_accuracy"] for name, rows in test.items()}
        print(f"after {part}: " + ", ".join(f"{score:.3f} on {name}" for name, score in scores.items()))

    config = LoRAConfig(r=8, lora_alpha=16, lora_dropout=0.05, task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(BASE, config, num_labels=2)
    trained(model, "words", 1)
    model.save_pretrained(f"{given.output}/words")

    # is_trainable: an adapter is loaded for inference otherwise, and training it is an error that says so.
    model = LoRAModel.from_pretrained(f"{given.output}/words", is_trainable=True)
    trained(model, "emoticons", 1 if given.smoke else 10)
    model.save_pretrained(given.output)


if __name__ == "__main__":
    main()
