"""LoRA first, full fine-tuning after it: merge the adapter into the base and train every weight on, at a low rate.

    pip install ".[demo]"                            # in a checkout
    python examples/lora_then_full.py                # a minute or two
    python examples/lora_then_full.py --smoke        # a twentieth of the words

What merge_and_unload() returns is a plain BERT: its checkpoints hold the whole model again.
"""

from offline import BASE_ID, encoded, options, parted, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train an adapter and save it, merge it, train all weights, compare."""
    given = options(__doc__)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    train, test = (encoded(part, tokenizer) for part in parted(ratings(every=20 if given.smoke else 1)))

    def trained(model: PreTrainedModel, stage: str, learning_rate: float, folder: str) -> Trainer:
        arguments = TrainingArguments(
            folder, num_train_epochs=1, learning_rate=learning_rate, per_device_train_batch_size=16,
            save_strategy="no", report_to="none",
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=test,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics("accuracy"),
        )
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{stage}: {count:,} parameters trained, accuracy {after['eval_accuracy']:.4f}")
        print(f"loss, {stage}: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
        trainer.save_model()
        return trainer

    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(given.model, config, num_labels=2)
    trainer = trained(model, "LoRA", 1e-3, given.output)  # saves the adapter
    trainer.create_model_card(model_name="lora_then_full", dataset="VADER lexicon", finetuned_from=BASE_ID)

    plain = model.merge_and_unload()
    assert not isinstance(plain, LoRAModel)
    assert all(p.requires_grad for p in plain.parameters()), "merge_and_unload() makes every weight trainable again"
    trained(plain, "all weights", 2e-5, f"{given.output}/full")  # saves the whole model


if __name__ == "__main__":
    main()
