"""QLoRA: the base in four bits (NF4, bitsandbytes), float32 adapters on it; what that takes and what it learns.

    pip install ".[demo]" bitsandbytes    # in a checkout
    python examples/qlora.py              # a minute or two
    python examples/qlora.py --smoke      # a twentieth of the words

Nothing is prepared: `quantization_config` goes to `from_pretrained`, heads stay whole. With a causal model
(--model Qwen/Qwen2.5-0.5B) and a GPU the lines are the same.
"""

from offline import BASE_ID, encoded, options, parted, ratings
from transformers import (
    AutoModel,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Load in four bits, train, measure, save, load in four bits again."""
    given = options(__doc__)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    train, test = (encoded(part, tokenizer) for part in parted(ratings(every=20 if given.smoke else 1)))
    whole = AutoModel.from_pretrained(given.model).get_memory_footprint()
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(given.model, config, num_labels=2, quantization_config=four_bits)
    print(f"the base: {whole / 2**20:.1f} MiB before, with its adapter {model.get_memory_footprint() / 2**20:.1f} MiB")
    arguments = TrainingArguments(
        given.output, num_train_epochs=2, learning_rate=1e-3, per_device_train_batch_size=16, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy"),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"accuracy: {before['eval_accuracy']:.4f} before, {after['eval_accuracy']:.4f} after")
    trainer.save_model()  # the adapter in float32; it notes that its base was quantised
    trainer.create_model_card(model_name="qlora", dataset="VADER lexicon", finetuned_from=BASE_ID)

    loaded = LoRAModel.from_pretrained(given.output)  # in four bits again
    print(f"loaded: {loaded.get_memory_footprint() / 2**20:.1f} MiB, {loaded.config.quantization_config.quant_method}")


if __name__ == "__main__":
    main()
