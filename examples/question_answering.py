"""Answer "What does X return?" by a part of X's documentation: extractive question answering with a BERT.

    pip install ".[demo]"                               # in a checkout
    python examples/question_answering.py               # a minute or two
    python examples/question_answering.py --smoke       # a sixteenth of the questions

The texts come with Python; the answer is what follows "returns" in them. The model learns where it begins and ends.
"""

import torch
from offline import BASE_ID, options, questions
from transformers import AutoTokenizer, DataCollatorWithPadding, EvalPrediction, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel


def exact(evaluated: EvalPrediction) -> dict[str, float]:
    """Return the share of answers whose first and last tokens are both right."""
    found = [scores.argmax(-1) == right for scores, right in zip(*evaluated, strict=True)]
    return {"exact": float((found[0] & found[1]).mean())}


def main() -> None:
    """Train, measure exact answers, save, load, ask."""
    given = options(__doc__)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given.model)

    def encoded(row: dict) -> dict:
        found = tokenizer(row["question"], row["context"])
        start = row["context"].index(row["answer"])
        end = start + len(row["answer"]) - 1
        return {
            **found,
            "start_positions": found.char_to_token(start, sequence_index=1),
            "end_positions": found.char_to_token(end, sequence_index=1),
        }

    asked = questions()[:: 16 if given.smoke else 1]
    rows = [encoded(row) for row in asked]
    test = len(rows) // 5
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="QUESTION_ANS")
    model = LoRAModel.from_pretrained(given.model, config)
    arguments = TrainingArguments(
        given.output, num_train_epochs=2, learning_rate=3e-3, per_device_train_batch_size=4, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows[test:],
        eval_dataset=rows[:test],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=exact,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"exact answers: {before['eval_exact']:.3f} before, {after['eval_exact']:.3f} after")
    trainer.save_model()
    trainer.create_model_card(model_name="question_answering", dataset="Python's documentation", finetuned_from=BASE_ID)

    loaded = LoRAModel.from_pretrained(given.output).eval()
    for row in asked[:3]:
        pair = tokenizer(row["question"], row["context"], return_tensors="pt")
        with torch.no_grad():
            said = loaded(**pair)
        tokens = pair["input_ids"][0, said.start_logits.argmax() : said.end_logits.argmax() + 1]
        print(f"{row['question']} {tokenizer.decode(tokens)!r}, right: {row['answer']!r}")


if __name__ == "__main__":
    main()
