"""Learn one task after another: what is forgotten, what replay saves, and adapters of their own, which forget nothing.

    pip install ".[demo]"                    # in a checkout
    python examples/continual.py             # a minute or two
    python examples/continual.py --smoke     # a part of both

First the sentiment of words, then of emoticons, in three ways: the adapter goes on; the adapter goes on with a tenth
of the old rows among the new (replay); a second adapter learns the new task beside the first. Each is measured on both
tasks, before and after.
"""

from offline import BASE_ID, encoded, options, parted, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train on words; then on emoticons, in three ways."""
    given = options(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    words = [(text, label) for text, label in ratings() if text.isalpha()][:: 20 if given.smoke else 1]
    emoticons = [(text, label) for text, label in ratings() if not text.isalnum() and len(text) < 5]
    emoticons = emoticons[:: 4 if given.smoke else 1]
    train, test = {}, {}
    for task, texts in (("words", words), ("emoticons", emoticons)):
        train[task], test[task] = (encoded(part, tokenizer) for part in parted(texts))

    def trainer_of(model: LoRAModel, rows: list[dict], epochs: int = 2) -> Trainer:
        arguments = TrainingArguments(
            given.output, num_train_epochs=epochs, learning_rate=1e-3, per_device_train_batch_size=16,
            save_strategy="no", report_to="none",
        )  # fmt: skip
        return Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=test,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics("accuracy"),
        )

    def measured(trainer: Trainer) -> tuple[float, float]:
        found = trainer.evaluate()
        return found["eval_words_accuracy"], found["eval_emoticons_accuracy"]

    set_seed(0)
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(given.model, config, num_labels=2)
    trainer = trainer_of(model, train["words"])
    trainer.train()
    trainer.save_model()
    trainer.evaluate()
    trainer.create_model_card(model_name="continual", dataset="VADER lexicon", finetuned_from=BASE_ID)
    before = measured(trainer)
    replayed = [*train["emoticons"], *train["words"][::10]]
    ways = {"going on": train["emoticons"], "with replay": replayed, "a second adapter": train["emoticons"]}
    for way, rows in ways.items():
        set_seed(0)
        model = LoRAModel.from_pretrained(given.output, is_trainable=True)
        if way == "a second adapter":
            model.add_adapter(config, "emoticons")
            model.set_adapter("emoticons")
        trainer = trainer_of(model, rows, epochs=4)
        trainer.train()
        after = list(measured(trainer))
        if way == "a second adapter":
            model.set_adapter("default")  # the first one again
            after[0] = measured(trainer)[0]
            assert after[0] == before[0], "an adapter that does not train stays as it is"
        print(f"emoticons, {way}: {before[1]:.3f} before, {after[1]:.3f} after")
        print(f"words, {way}: {before[0]:.3f}, then {after[0]:.3f}")


if __name__ == "__main__":
    main()
