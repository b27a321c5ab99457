"""LoRA first, full fine-tuning after it: merge the adapter into the base and train every weight on, at a low rate.

    pip install ".[demo]"                            # in a checkout
    python examples/lora_then_full.py                # about three minutes on two cores
    python examples/lora_then_full.py --smoke        # a tenth of the words

What merge_and_unload() returns is a plain BERT: its checkpoints hold the whole model again.
"""

from offline import BASE, encoded, options, parted, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train an adapter and save it, merge it, train all weights, compare."""
    given = options("A BERT learns the sentiment of words in two stages.", "lora_then_full", "a tenth of the words")
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    train, test = (encoded(part, tokenizer) for part in parted(ratings(every=10 if given.smoke else 1)))

    def trained(model: PreTrainedModel, stage: str, learning_rate: float) -> None:
        arguments = TrainingArguments(
            f"{given.output}/{stage}", num_train_epochs=1, learning_rate=learning_rate, per_device_train_batch_size=32,
            save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=test,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics("accuracy"),
        )
        trainer.train()
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{stage}: {count:,} parameters trained, accuracy {trainer.evaluate()['eval_accuracy']:.4f}")

    model = LoRAModel.from_pretrained(BASE, LoRAConfig(r=8, lora_alpha=16, task_type="SEQ_CLS"), num_labels=2)
    trained(model, "lora", 2e-3)
    model.save_pretrained(given.output)  # the adapter alone

    plain = model.merge_and_unload()
    assert not isinstance(plain, LoRAModel)
    assert all(p.requires_grad for p in plain.parameters()), "merge_and_unload() makes every weight trainable again"
    trained(plain, "full", 2e-5)
    plain.save_pretrained(f"{given.output}/full")  # the whole model


if __name__ == "__main__":
    main()
