"""Train one adapter in two processes, with the stock Trainer and accelerate, and load it in one.

    pip install ".[demo]"                                       # in a checkout
    python examples/two_processes.py                            # starts itself twice on the CPU
    accelerate launch --num_processes 2 examples/two_processes.py       # on two GPUs; gpu/ has FSDP2 and DeepSpeed

Nothing in the training says that there are two: each process gets its share of every batch, gradients of the adapter
(and of nothing else) are averaged, and the first process writes. What it writes is what one process would.
"""

import os
import subprocess
import sys
from pathlib import Path

from offline import BASE, encoded, options, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel


def start_twice() -> None:
    """Run this file in two processes that find each other; `accelerate launch` starts one on the CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, __file__, *sys.argv[1:]], env=environment, check=True)


def train(output: str, steps: int, on_cpu: bool) -> None:
    """Train on the words that people rated; every process runs this."""
    set_seed(0)  # the same fresh adapter and head in each
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    data = encoded(ratings(), tokenizer)
    config = LoRAConfig(r=8, lora_alpha=16, lora_dropout=0.05, task_type="SEQ_CLS")
    arguments = TrainingArguments(
        output,
        max_steps=steps,
        learning_rate=2e-3,
        per_device_train_batch_size=16,  # 32 in both together
        average_tokens_across_devices=False,  # a classifier's loss is a mean already
        ddp_find_unused_parameters=False,  # each step uses all of the adapter
        save_strategy="no",
        report_to="none",
        use_cpu=on_cpu,
    )
    trainer = Trainer(
        model=LoRAModel.from_pretrained(BASE, config, num_labels=2),
        args=arguments,
        train_dataset=data[:-500],
        eval_dataset=data[-500:],
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(output)
    if trainer.is_world_process_zero():
        print(f"{arguments.world_size} processes, loss on words that were not trained on: {loss:.4f}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    given = options("Two processes train one adapter.", "two_processes", "ten steps")
    if "LOCAL_RANK" in os.environ:
        train(given.output, 10 if given.smoke else 150, bool(os.environ.get("ACCELERATE_USE_CPU")))
    else:
        start_twice()
        loaded = LoRAModel.from_pretrained(given.output)  # in one process: the base, and the adapter whole
        print(f"loaded from {sorted(p.name for p in Path(given.output).iterdir())}")
        print(loaded.targets_report())
