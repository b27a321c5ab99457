"""Teach GPT-2 a form of answer: "wonderful ->" is continued with " positive", as people rated the word.

    python examples/gpt2_generation.py            # gpt2 from the Hub
    python examples/gpt2_generation.py --smoke    # a tiny GPT-2 with random weights, a tenth of the words

The fused projection of every layer (c_attn: query, key and value) gets an adapter. With adapters disabled the model
is GPT-2 again, bit for bit.
"""

import random

from offline import base_for, options, ratings
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel


def main() -> None:
    """Train, generate with the adapter and without it, save, load."""
    given = options(__doc__, model="gpt2")
    set_seed(0)
    rated = [(text, label) for text, label in ratings() if text.isalpha()][:: 10 if given.smoke else 1]
    texts = [f"{word} -> {'positive' if label else 'negative'}" for word, label in rated]
    random.Random(0).shuffle(texts)
    base = base_for(given, "gpt2", texts)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    encoded = [tokenizer(text + tokenizer.eos_token) for text in texts]
    rows = [{**row, "labels": row["input_ids"]} for row in encoded]  # the end of a text is learned, padding is not
    test = len(rows) // 10

    # The tiny model has random weights, so that its embeddings have to be learned as well.
    more = {"modules_to_save": ["wte"]} if given.smoke else {}
    model = LoRAModel.from_pretrained(base, LoRAConfig(r=8, task_type="CAUSAL_LM", **more))
    arguments = TrainingArguments(
        given.output, num_train_epochs=2, learning_rate=2e-3, per_device_train_batch_size=16, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows[test:],
        eval_dataset=rows[:test],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"loss on held-out words: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    trainer.save_model()
    trainer.create_model_card(model_name="gpt2_generation", dataset="VADER lexicon")

    loaded = LoRAModel.from_pretrained(given.output)
    for word in ("wonderful", "catastrophe"):
        prompt = tokenizer(f"{word} ->", return_tensors="pt")
        ask = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        adapted = tokenizer.decode(loaded.generate(**prompt, **ask)[0], skip_special_tokens=True)
        with loaded.adapters_disabled():
            plain = tokenizer.decode(loaded.generate(**prompt, **ask)[0], skip_special_tokens=True)
        print(f"with the adapter: {adapted!r}; without: {plain!r}")


if __name__ == "__main__":
    main()
