"""Search the rank, the scaling, the targets and the learning rate of an adapter with Optuna and the stock Trainer.

    pip install ".[demo,search]"                     # in a checkout
    python examples/optuna_search.py                 # 12 trials, six minutes
    python examples/optuna_search.py --smoke         # 2 trials, a thirtieth of the words

Each trial is a run of the Trainer on a new adapter. The best trial's is kept.
"""

import optuna
from offline import BASE_ID, encoded, options, parted, ratings
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_lora import LoRAConfig, LoRAModel, LoRASearch, metrics
from hf_lora.training.search import Range

SPACE = {  # a list or tuple is a choice; left out, hf_lora.training.search.default_space takes its place
    "r": (4, 8, 16),
    "scaling": (1, 2),  # lora_alpha is r, or 2r
    "target_modules": ("auto", "all-linear", ["query", "key", "value"]),
    "learning_rate": Range(2e-4, 2e-2, log=True),
}


def main() -> None:
    """Search, show every trial, keep the best trial's adapter."""
    given = options(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    train, test = (encoded(part, tokenizer) for part in parted(ratings(every=30 if given.smoke else 1)))
    search = LoRASearch(given.model, LoRAConfig(task_type="SEQ_CLS"), space=SPACE, num_labels=2)
    arguments = TrainingArguments(
        given.output, num_train_epochs=1, per_device_train_batch_size=16, per_device_eval_batch_size=64, seed=0,
        eval_strategy="epoch", save_strategy="epoch", save_only_model=True, report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model_init=search.model_init,
        args=arguments,
        train_dataset=train,
        eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy"),
    )
    before = trainer.evaluate()
    best = trainer.hyperparameter_search(
        hp_space=search.hp_space,
        compute_objective=lambda measured: measured["eval_loss"],
        direction="minimize",
        backend="optuna",
        n_trials=2 if given.smoke else 12,
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    print(search.table())
    print(f"trial {best.run_id} trained {search.config_of(best).target_modules} with {search.arguments_of(best)}")
    print(f"loss: {before['eval_loss']:.3f} before, {best.objective:.3f} after")
    checkpoint = get_last_checkpoint(f"{given.output}/run-{best.run_id}")
    model = LoRAModel.from_pretrained(checkpoint)
    model.save_pretrained(given.output)
    best = Trainer(model, arguments, trainer.data_collator, eval_dataset=test, compute_metrics=metrics("accuracy"))
    best.evaluate()
    best.create_model_card(model_name="optuna_search", dataset="VADER lexicon", finetuned_from=BASE_ID)


if __name__ == "__main__":
    main()
