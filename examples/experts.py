"""Adapt the experts of a mixture: every expert's matrices get factors of their own, and the router stays as it is.

    python examples/experts.py            # allenai/OLMoE-1B-7B-0924 from the Hub; a GPU
    python examples/experts.py --smoke    # a tiny OLMoE with random weights, a twelfth of the texts

Transformers keeps a layer's experts in one tensor, and "all-linear" adapts it. No expert's weight is made with its
adapter inside: each token takes the product with the factors of its own experts.
"""

from offline import base_for, documented, options
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel


def main() -> None:
    """Train on texts, measure held-out ones, save, load."""
    given = options(__doc__, model="allenai/OLMoE-1B-7B-0924")
    set_seed(0)
    texts = [text for _, text in documented()[:: 12 if given.smoke else 1]]
    base = base_for(given, "olmoe", texts)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [tokenizer(text, truncation=True, max_length=64) for text in texts]
    test = len(rows) // 5
    # Random weights have to learn what words are as well.
    more = {"modules_to_save": ["embed_tokens"]} if given.smoke else {}
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **more)
    model = LoRAModel.from_pretrained(base, config)
    print(model.targets_report())
    arguments = TrainingArguments(
        given.output, num_train_epochs=1, learning_rate=2e-3, per_device_train_batch_size=8, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows[test:],
        eval_dataset=rows[:test],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"loss: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    trainer.save_model()
    trainer.create_model_card(model_name="experts", dataset="Python's documentation")

    loaded = LoRAModel.from_pretrained(given.output)
    again = Trainer(loaded, arguments, eval_dataset=rows[:test], data_collator=trainer.data_collator).evaluate()
    print(f"loss of the loaded model: {again['eval_loss']:.3f}")


if __name__ == "__main__":
    main()
