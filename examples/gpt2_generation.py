"""Teach GPT-2 a form of answer: "wonderful ->" is continued with " positive", as people rated the word.

    python examples/gpt2_generation.py            # gpt2 from the Hub
    python examples/gpt2_generation.py --smoke    # a tiny GPT-2 with random weights, no network

The fused projection of every layer (c_attn: query, key and value) gets an adapter. With adapters disabled the model
is GPT-2 again, bit for bit.
"""

import argparse
import random
from importlib import resources

from offline import gpt2
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel

LEXICON = resources.files("vaderSentiment") / "vader_lexicon.txt"


def lines() -> list[str]:
    """Return a line for each word that people rated: the word, an arrow and the sentiment."""
    rows = [line.split("\t") for line in LEXICON.read_text("utf-8").splitlines()]
    rated = {row[0].lower(): "positive" if float(row[1]) > 0 else "negative" for row in rows if row[0].isalpha()}
    return [f"{word} -> {sentiment}" for word, sentiment in rated.items()]


def main() -> None:
    """Train, generate with the adapter and without it, save, load."""
    parser = argparse.ArgumentParser(description="A GPT-2 learns to answer in one word.")
    parser.add_argument("--model", default="gpt2", help="a causal language model of the Hub, or a folder")
    parser.add_argument("--output", default="outputs/gpt2_generation")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, a tenth of the words")
    options = parser.parse_args()

    set_seed(0)
    texts = lines()[:: 10 if options.smoke else 1]
    base = gpt2(f"{options.output}/base", texts) if options.smoke else options.model
    random.Random(0).shuffle(texts)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    encoded = [tokenizer(text + tokenizer.eos_token) for text in texts]
    rows = [{**row, "labels": row["input_ids"]} for row in encoded]  # the end of a text is learned, padding is not
    test = len(rows) // 10

    # The tiny model has random weights, so that its embeddings have to be learned as well.
    more = {"modules_to_save": ["wte"]} if options.smoke else {}
    model = LoRAModel.from_pretrained(base, LoRAConfig(r=8, task_type="CAUSAL_LM", **more))
    arguments = TrainingArguments(
        options.output,
        num_train_epochs=8 if options.smoke else 2,
        learning_rate=2e-3,
        per_device_train_batch_size=16,
        save_strategy="no",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows[test:],
        eval_dataset=rows[:test],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    print(f"loss on held-out words: {trainer.evaluate()['eval_loss']:.3f}")
    model.save_pretrained(options.output)

    loaded = LoRAModel.from_pretrained(options.output)
    for word in ("wonderful", "catastrophe"):
        prompt = tokenizer(f"{word} ->", return_tensors="pt")
        ask = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        adapted = tokenizer.decode(loaded.generate(**prompt, **ask)[0], skip_special_tokens=True)
        with loaded.adapters_disabled():
            plain = tokenizer.decode(loaded.generate(**prompt, **ask)[0], skip_special_tokens=True)
        print(f"with the adapter: {adapted!r}; without: {plain!r}")


if __name__ == "__main__":
    main()
