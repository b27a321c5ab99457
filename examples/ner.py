"""Find the errors, types and constants that Python's documentation speaks of: named entity recognition with a BERT.

    pip install ".[demo]"                # in a checkout
    python examples/ner.py               # a minute
    python examples/ner.py --smoke       # a twelfth of the texts

The documentation comes with Python, and its names tag the words. Only a word's first token has a label.
"""

from offline import BASE_ID, options, tagged
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train, measure precision, recall and F1 of whole entities, save, load."""
    given = options(__doc__)
    set_seed(0)
    rows = tagged()[:: 12 if given.smoke else 1]
    labels = sorted({tag for row in rows for tag in row["tags"]})
    tokenizer = AutoTokenizer.from_pretrained(given.model)

    def encoded(row: dict) -> dict:
        found = tokenizer(row["words"], is_split_into_words=True, truncation=True, max_length=128)
        words, numbers = found.word_ids(), []
        for before, word in zip([None, *words], words, strict=False):
            numbers.append(-100 if word is None or word == before else labels.index(row["tags"][word]))
        return {**found, "labels": numbers}

    rows = [encoded(row) for row in rows]
    test = len(rows) // 5
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="TOKEN_CLS")
    model = LoRAModel.from_pretrained(given.model, config, num_labels=len(labels), id2label=dict(enumerate(labels)))
    arguments = TrainingArguments(
        given.output, num_train_epochs=2, learning_rate=3e-3, per_device_train_batch_size=4, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows[test:],
        eval_dataset=rows[:test],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=metrics("seqeval"),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"F1 of entities: {before['eval_overall_f1']:.3f} before, {after['eval_overall_f1']:.3f} after")
    trainer.save_model()
    trainer.create_model_card(model_name="ner", dataset="Python's documentation", finetuned_from=BASE_ID)

    loaded = LoRAModel.from_pretrained(given.output)
    find = pipeline("token-classification", model=loaded, tokenizer=tokenizer, aggregation_strategy="first")
    for entity in find("Return a dict, or None. Raises KeyError if there is no such key, and OSError on failure."):
        print(f"{entity['word']}: {entity['entity_group']} ({entity['score']:.2f})")


if __name__ == "__main__":
    main()
