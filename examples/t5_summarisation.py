"""Summarise with T5: the first line of a documentation string says in short what the rest of it tells.

    python examples/t5_summarisation.py            # t5-small from the Hub
    python examples/t5_summarisation.py --smoke    # a tiny T5 with random weights, a twelfth of the texts

The texts come with Python. Encoder and decoder get adapters; ROUGE is of what is generated.
"""

from offline import base_for, options, summaries
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train, generate the summaries of held-out texts, measure them."""
    given = options(__doc__, model="google-t5/t5-small")
    set_seed(0)
    pairs = summaries()[:: 12 if given.smoke else 1]
    base = base_for(given, "t5", [text for pair in pairs for text in pair])
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [tokenizer(f"summarize: {text}", text_target=line) for text, line in pairs]
    test = len(rows) // 5
    # Random weights have to learn what words are as well.
    more = {"modules_to_save": ["embed_tokens"]} if given.smoke else {}
    config = LoRAConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_2_SEQ_LM", **more)
    model = LoRAModel.from_pretrained(base, config)
    arguments = Seq2SeqTrainingArguments(
        given.output, num_train_epochs=4, learning_rate=5e-3 if given.smoke else 1e-3, per_device_train_batch_size=8,
        predict_with_generate=True, generation_max_length=32, save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows[test:],
        eval_dataset=rows[:test],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=metrics("rouge", processing_class=tokenizer),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"loss: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    print(f"ROUGE-1 {before['eval_rouge1']:.3f}, then {after['eval_rouge1']:.3f}")
    trainer.save_model()
    trainer.create_model_card(model_name="t5_summarisation", dataset="Python's documentation")

    loaded = LoRAModel.from_pretrained(given.output)
    for row, (_, line) in zip(rows[:2], pairs, strict=False):
        asked = tokenizer.pad({"input_ids": [row["input_ids"]]}, return_tensors="pt")
        said = tokenizer.decode(loaded.generate(**asked, max_length=32)[0], skip_special_tokens=True)
        print(f"right: {line!r}, generated: {said!r}")


if __name__ == "__main__":
    main()
