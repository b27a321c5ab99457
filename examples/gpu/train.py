"""Train an adapter of a causal LM on several GPUs: DDP, FSDP2 or DeepSpeed, chosen by accelerate's config.

    accelerate launch --num_processes 2 examples/gpu/train.py                                    # DDP
    accelerate launch --config_file examples/gpu/fsdp2.yaml examples/gpu/train.py
    accelerate launch --config_file examples/gpu/zero2.yaml examples/gpu/train.py
    accelerate launch --config_file examples/gpu/zero3.yaml examples/gpu/train.py
    ... --resume                                                                   # goes on from the last checkpoint

Not run by the tests: these need GPUs. The same engines are tested on the CPU, with two processes of a tiny model.
The model is loaded and adapted before TrainingArguments exist: ZeRO-3 partitions what it is given, adapters included,
but what it has partitioned already takes none.
"""

import argparse

from datasets import load_dataset
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel


def main() -> None:
    """Train, save the adapter whole, whatever it was spread over."""
    parser = argparse.ArgumentParser(description="An adapter of a causal LM, on several GPUs.")
    parser.add_argument("--model", default="Qwen/Qwen2.5-7B")
    parser.add_argument("--output", default="outputs/gpu")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    config = LoRAConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = LoRAModel.from_pretrained(options.model, config, dtype="bfloat16")
    texts = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="train").filter(lambda row: row["text"])
    data = texts.map(lambda row: tokenizer(row["text"], truncation=True, max_length=512), remove_columns=["text"])

    arguments = TrainingArguments(
        options.output,
        per_device_train_batch_size=8,
        learning_rate=2e-4,
        bf16=True,
        max_steps=200,
        save_steps=50,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(options.output)


if __name__ == "__main__":
    main()
