"""Tune a chat model with TRL's SFTTrainer: a LoRAConfig goes where TRL takes PEFT's.

    pip install ".[demo,trl]"            # in a checkout
    python examples/chat.py              # HuggingFaceTB/SmolLM2-135M-Instruct from the Hub
    python examples/chat.py --smoke      # a tiny Llama with random weights, a twelfth of the questions

The questions are about Python's library and its documentation answers them. The loss is of the answers alone, which
TRL does with a prompt and a completion in a chat's form.
"""

from datasets import Dataset
from offline import base_for, conversations, options
from transformers import AutoTokenizer, pipeline, set_seed
from trl import SFTConfig, SFTTrainer

from hf_lora import LoRAConfig, LoRAModel


def main() -> None:
    """Train, measure, save, load, chat."""
    given = options(__doc__, model="HuggingFaceTB/SmolLM2-135M-Instruct")
    set_seed(0)
    pairs = conversations()[:: 12 if given.smoke else 1]
    base = base_for(given, "llama", [text for pair in pairs for text in pair])
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            for question, answer in pairs
        ]
    ).train_test_split(0.2, seed=0)
    # Random weights have to learn what words are as well.
    more = {"modules_to_save": ["embed_tokens"]} if given.smoke else {}
    arguments = SFTConfig(
        given.output, num_train_epochs=2, learning_rate=2e-3, per_device_train_batch_size=8, bf16=False,
        max_length=256, save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=base,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        processing_class=tokenizer,
        peft_config=LoRAConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", **more),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"loss of the answers: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    accuracies = (found["eval_mean_token_accuracy"] for found in (before, after))
    print("tokens guessed right: {:.3f} before, {:.3f} after".format(*accuracies))
    trainer.save_model()
    trainer.create_model_card(model_name="chat", dataset_name="Python's documentation")

    loaded = LoRAModel.from_pretrained(given.output)
    chat = pipeline("text-generation", model=loaded, tokenizer=tokenizer)
    asked = [{"role": "user", "content": "What does math.gcd do?"}]
    print(chat(asked, max_new_tokens=24, do_sample=False)[0]["generated_text"][-1]["content"])


if __name__ == "__main__":
    main()
