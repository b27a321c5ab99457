"""Reinforcement learning with TRL's GRPOTrainer: a reward of your own, here the share of vowels in what is said.

    pip install ".[demo,trl]"               # in a checkout
    python examples/trl_grpo.py             # HuggingFaceTB/SmolLM2-135M-Instruct from the Hub
    python examples/trl_grpo.py --smoke     # a tiny Llama with random weights, 30 steps

A LoRAModel goes into TRL's Trainers as it is. A divergence (beta > 0) is measured against the model without its
adapter. What is trained and saved is the adapter alone.
"""

from datasets import Dataset
from offline import base_for, conversations, options
from transformers import AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer

from hf_lora import LoRAConfig, LoRAModel


def vowels(completions: list[str], **kwargs: object) -> list[float]:
    """Return the share of vowels among each text's letters."""
    return [sum(letter in "aeiou" for letter in text.lower()) / max(len(text), 1) for text in completions]


def main() -> None:
    """Train, compare the rewards of the first and the last steps, save."""
    given = options(__doc__, model="HuggingFaceTB/SmolLM2-135M-Instruct")
    set_seed(0)
    asked = [question for question, _ in conversations()[:200]]
    base = base_for(given, "llama", asked)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoRAConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = LoRAModel.from_pretrained(base, config)
    arguments = GRPOConfig(
        given.output, max_steps=30 if given.smoke else 200, learning_rate=2e-2 if given.smoke else 4e-5,
        per_device_train_batch_size=16, num_generations=8, max_completion_length=12, beta=0.01, logging_steps=1,
        bf16=False, save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model,
        reward_funcs=vowels,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": asked}),
        processing_class=tokenizer,
    )
    trainer.train()
    rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    before, after = (sum(part) / len(part) for part in (rewards[:5], rewards[-5:]))
    print(f"reward, mean of five steps: {before:.3f} before, {after:.3f} after")
    trainer.save_model()
    trainer.create_model_card(model_name="trl_grpo")
    print(f"adapters of the loaded model: {list(LoRAModel.from_pretrained(given.output).peft_config)}")


if __name__ == "__main__":
    main()
