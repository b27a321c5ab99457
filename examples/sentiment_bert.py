"""Tune a pretrained BERT on people's sentiment ratings with LoRA and the stock Trainer, save it, load it again.

    pip install ".[demo]"                            # in a checkout
    python examples/sentiment_bert.py                # a minute
    python examples/sentiment_bert.py --smoke        # a fifteenth of the words

The model (MiniLM-L6) and the ratings (the VADER lexicon) come inside Python packages, so that nothing is downloaded.
With a model of the Hub the lines are the same: --model bert-base-uncased.
"""

from offline import BASE_ID, encoded, options, parted, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, pipeline, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train, measure, save, load."""
    given = options(__doc__)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    train, test = (encoded(part, tokenizer) for part in parted(ratings(every=15 if given.smoke else 1)))
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    labels = {0: "negative", 1: "positive"}
    model = LoRAModel.from_pretrained(given.model, config, num_labels=2, id2label=labels)
    model.print_trainable_parameters()
    arguments = TrainingArguments(
        given.output, num_train_epochs=2, learning_rate=1e-3, per_device_train_batch_size=16, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy", "f1"),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"accuracy: {before['eval_accuracy']:.4f} before, {after['eval_accuracy']:.4f} after")
    print(f"F1: {before['eval_f1']:.4f} before, {after['eval_f1']:.4f} after")
    trainer.save_model()  # the adapter, not the base
    trainer.create_model_card(model_name="sentiment_bert", dataset="VADER lexicon", finetuned_from=BASE_ID)

    loaded = LoRAModel.from_pretrained(given.output)  # finds its base by itself
    classify = pipeline("text-classification", model=loaded, tokenizer=tokenizer)
    for word in ("wonderful", "catastrophe", "a cosy evening"):
        print(f"{word}: {classify(word)[0]['label']}")


if __name__ == "__main__":
    main()
