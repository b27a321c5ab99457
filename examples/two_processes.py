"""Train one adapter in two processes, with the stock Trainer and accelerate, and load it in one.

    pip install ".[demo]"                                               # in a checkout
    python examples/two_processes.py                                    # starts two processes on the CPU
    accelerate launch --num_processes 2 examples/two_processes.py       # on two GPUs; gpu/ has FSDP2 and DeepSpeed

Nothing in the training says that there are two: each process gets its share of every batch, gradients of the adapter
(and of nothing else) are averaged, and the first process writes. What it writes is what one process would.
"""

import argparse
import os
from pathlib import Path

from accelerate import debug_launcher
from offline import BASE_ID, encoded, options, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel


def train(given: argparse.Namespace) -> None:
    """Train on the words that people rated; every process runs this."""
    set_seed(0)  # the same fresh adapter and head in each
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    data = encoded(ratings(), tokenizer)
    test = 100 if given.smoke else 1000
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    arguments = TrainingArguments(
        given.output,
        max_steps=15 if given.smoke else 150,
        learning_rate=1e-3,
        per_device_train_batch_size=16,  # 32 in both together
        average_tokens_across_devices=False,  # a classifier's loss is a mean already
        ddp_find_unused_parameters=False,  # each step uses all of the adapter
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(
        model=LoRAModel.from_pretrained(given.model, config, num_labels=2),
        args=arguments,
        train_dataset=data[:-test],
        eval_dataset=data[-test:],
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(model_name="two_processes", dataset="VADER lexicon", finetuned_from=BASE_ID)
    if trainer.is_world_process_zero():
        print(f"{arguments.world_size} processes")
        print(f"loss: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    given = options(__doc__)
    if "LOCAL_RANK" in os.environ:  # `accelerate launch` has started this one
        train(given)
    else:
        debug_launcher(train, (given,), num_processes=2)
        loaded = LoRAModel.from_pretrained(given.output)  # in one process: the base, and the adapter whole
        print(f"loaded from {sorted(path.name for path in Path(given.output).iterdir())}")
        print(loaded.targets_report())
