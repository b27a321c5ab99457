"""Translate with T5: numbers in English words into German ones, "forty-two" into "zweiundvierzig".

    python examples/t5_translation.py            # t5-small from the Hub
    python examples/t5_translation.py --smoke    # a tiny T5 with random weights, a third of the numbers

The numbers to test with are not among those to train on. BLEU counts words, chrF letters.
"""

import random

from offline import base_for, numbers, options
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train, translate held-out numbers, measure them."""
    given = options(__doc__, model="google-t5/t5-small")
    set_seed(0)
    english, german = numbers("English"), numbers("German")
    pairs = [(english[number], german[number]) for number in english]
    random.Random(0).shuffle(pairs)
    pairs = pairs[:200] if given.smoke else pairs
    base = base_for(given, "t5", [text for pair in pairs for text in pair])
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [tokenizer(f"translate English to German: {one}", text_target=other) for one, other in pairs]
    test = len(rows) // 5
    # Random weights have to learn what words are as well.
    more = {"modules_to_save": ["embed_tokens"]} if given.smoke else {}
    config = LoRAConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_2_SEQ_LM", **more)
    model = LoRAModel.from_pretrained(base, config)
    arguments = Seq2SeqTrainingArguments(
        given.output, num_train_epochs=8, learning_rate=5e-3 if given.smoke else 1e-3, per_device_train_batch_size=16,
        predict_with_generate=True, generation_max_length=24, save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows[test:],
        eval_dataset=rows[:test],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=metrics("sacrebleu", "chrf", "exact_match", processing_class=tokenizer),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"loss: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    print(f"chrF {before['eval_chrf']:.2f}, then {after['eval_chrf']:.2f}")
    print(f"exactly right: {after['eval_exact_match']:.3f} of the held-out numbers")
    trainer.save_model()
    trainer.create_model_card(model_name="t5_translation", dataset="numbers in words")

    loaded = LoRAModel.from_pretrained(given.output)
    for one, other in pairs[:2]:
        asked = tokenizer(f"translate English to German: {one}", return_tensors="pt")
        said = tokenizer.decode(loaded.generate(**asked, max_length=24)[0], skip_special_tokens=True)
        print(f"{one}: {said!r}, right: {other!r}")


if __name__ == "__main__":
    main()
