"""Train by preferences with TRL's DPOTrainer: of two words, say the one that people rated higher.

    pip install ".[demo,trl]"            # in a checkout
    python examples/dpo.py               # HuggingFaceTB/SmolLM2-135M-Instruct from the Hub
    python examples/dpo.py --smoke       # a tiny Llama with random weights, 300 pairs

DPO compares with the model as it was before. That is the same model without its adapter: no second one is loaded.
"""

import random

from datasets import Dataset
from offline import base_for, options, ratings
from transformers import AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer

from hf_lora import LoRAConfig, LoRAModel


def main() -> None:
    """Train on pairs, measure how often held-out pairs are told apart, save."""
    given = options(__doc__, model="HuggingFaceTB/SmolLM2-135M-Instruct")
    set_seed(0)
    words = [(text, label) for text, label in ratings() if text.isalpha()]
    random.Random(0).shuffle(words)
    liked, disliked = ([text for text, label in words if label == wanted] for wanted in (1, 0))
    pairs = list(zip(liked, disliked, strict=False))[: 300 if given.smoke else None]
    base = base_for(given, "llama", [word for pair in pairs for word in pair])
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = Dataset.from_list(
        [{"prompt": "A nice word:", "chosen": f" {better}", "rejected": f" {worse}"} for better, worse in pairs]
    ).train_test_split(0.2, seed=0)
    config = LoRAConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = LoRAModel.from_pretrained(base, config)
    arguments = DPOConfig(
        given.output, num_train_epochs=3, learning_rate=2e-3 if given.smoke else 5e-5, per_device_train_batch_size=8,
        bf16=False, max_length=64, save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = DPOTrainer(
        model, args=arguments, train_dataset=rows["train"], eval_dataset=rows["test"], processing_class=tokenizer
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"loss: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    for name in ("accuracies", "margins"):
        print(f"{name}: {before[f'eval_rewards/{name}']:.3f} before, {after[f'eval_rewards/{name}']:.3f} after")
    trainer.save_model()
    trainer.create_model_card(model_name="dpo", dataset_name="VADER lexicon")
    print(f"adapters of the loaded model: {list(LoRAModel.from_pretrained(given.output).peft_config)}")


if __name__ == "__main__":
    main()
