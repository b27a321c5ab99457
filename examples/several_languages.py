"""Give one base several languages, an adapter each: learned one after another, used together in one batch.

    python examples/several_languages.py            # gpt2 from the Hub
    python examples/several_languages.py --smoke    # a tiny GPT-2 with random weights, a third of the numbers

Each adapter learns to write numbers in the words of its language, "42 = zweiundvierzig". Each is measured on held-out
numbers of every language before and after. A language that comes changes nothing of those that are there.
"""

import random

from offline import base_for, numbers, options
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel

LANGUAGES = ("German", "Spanish", "Dutch")


def main() -> None:
    """Train an adapter a language, measure all of them, answer three rows in three languages."""
    given = options(__doc__, model="gpt2")
    set_seed(0)
    texts = {name: [f"{number} = {word}" for number, word in numbers(name).items()] for name in LANGUAGES}
    for rows in texts.values():
        random.Random(0).shuffle(rows)
    base = base_for(given, "gpt2", [text for rows in texts.values() for text in rows])
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    train, test = {}, {}
    for name, rows in texts.items():
        encoded = [tokenizer(text + tokenizer.eos_token) for text in rows[: 200 if given.smoke else None]]
        encoded = [{**row, "labels": row["input_ids"]} for row in encoded]
        test[name], train[name] = encoded[:40], encoded[40:]
    # Random weights have to learn what words are as well.
    more = {"modules_to_save": ["wte"]} if given.smoke else {}
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **more)
    arguments = TrainingArguments(
        given.output, num_train_epochs=3, learning_rate=3e-3, per_device_train_batch_size=16, save_strategy="no",
        report_to="none",
    )  # fmt: skip

    def trainer_of(name: str) -> Trainer:
        """Return a Trainer of one language's adapter, which measures it on all languages."""
        model.set_adapter(name)
        return Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer), train[name], test)

    model = LoRAModel.from_pretrained(base, config, adapter_name=LANGUAGES[0])
    for name in LANGUAGES[1:]:
        model.add_adapter(config, name)
    first = trainer_of(LANGUAGES[0]).evaluate()  # a fresh adapter changes nothing: this is the base
    alone = {}
    for name in LANGUAGES:
        trainer = trainer_of(name)
        trainer.train()
        alone[name] = trainer.evaluate()
        before, after = (found[f"eval_{name}_loss"] for found in (first, alone[name]))
        print(f"loss in {name}: {before:.3f} before, {after:.3f} after")
    trainer.save_model()  # all three, a folder each
    trainer.create_model_card(model_name="several_languages", dataset="numbers in words")
    for name in LANGUAGES:
        again = trainer_of(name).evaluate()
        assert all(again[f"eval_{other}_loss"] == alone[name][f"eval_{other}_loss"] for other in LANGUAGES)
        print(f"{name}'s adapter: " + ", ".join(f"{again[f'eval_{other}_loss']:.3f} on {other}" for other in LANGUAGES))

    asked = tokenizer(["42 ="] * 3, return_tensors="pt")
    said = model.generate(**asked, adapter_names=list(LANGUAGES), max_new_tokens=12, do_sample=False)
    print(tokenizer.batch_decode(said, skip_special_tokens=True))


if __name__ == "__main__":
    main()
