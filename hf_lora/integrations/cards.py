"""The model card of a Trainer's LoRAModel: what the Trainer knows, handed to `hub/card`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..files.names import CARD_NAME, WEIGHTS_NAME, places_of
from ..files.tensors import read_tensors
from ..hub.card.metadata import listed
from ..hub.card.writing import write_card
from .trained_model import measures


def facts_of(
    trainer: Any,
    *,
    model_name: str | None = None,
    tasks: str | list[str] | None = None,
    dataset: str | list[str] | None = None,
    dataset_tags: str | list[str] | None = None,
    dataset_args: str | list[str] | None = None,
    **given: Any,
) -> tuple[ModelCardData, dict[str, Any]]:
    """Return what a Trainer and its user say of a run: the metadata with the results, and the hyperparameters.

    The arguments are those of `Trainer.create_model_card`: dataset_tags are ids of the Hub, dataset their names in
    words, dataset_args their configurations.
    """
    from transformers.modelcard import extract_hyperparameters_from_trainer  # not above: only a card needs it

    hyperparameters, args = dict(extract_hyperparameters_from_trainer(trainer)), trainer.args
    optimizer = str(
        getattr(args.optim, "value", args.optim)
    )  # Transformers writes "Use OptimizerNames.ADAMW_TORCH with"
    betas = f"betas={(args.adam_beta1, args.adam_beta2)}, epsilon={args.adam_epsilon}" if "adam" in optimizer else None
    hyperparameters["optimizer"] = ", ".join(filter(None, (optimizer, betas, args.optim_args)))
    if 0 < hyperparameters.get("lr_scheduler_warmup_steps", 0) < 1:  # a share of the steps
        hyperparameters["lr_scheduler_warmup_ratio"] = hyperparameters.pop("lr_scheduler_warmup_steps")
    if args.bf16:
        hyperparameters["mixed_precision_training"] = "bfloat16"
    if "distributed_type" in hyperparameters and args.device.type == "cpu":
        hyperparameters["distributed_type"] = "multi-CPU"  # which Transformers calls "multi-GPU" as well
    tags, names = listed(dataset_tags), listed(dataset)
    about = {
        "task_type": next(iter(listed(tasks)), ""),
        "dataset_type": (tags or names or [""])[0],
        "dataset_name": (names or tags or [""])[0],
        "dataset_config": next(iter(listed(dataset_args)), None),
    }
    data = ModelCardData(datasets=tags or None, **given)
    # Set here: the constructor refuses results of a model without a name.
    data["model_name"], data["eval_results"] = model_name, list(_results(trainer, about))
    return data, hyperparameters


def write_cards(
    model: Any, folder: Path, facts: tuple[ModelCardData, dict[str, Any]], repo_id: str | None = None
) -> None:
    """Write or update the card of every adapter of a model, in the folder that they were saved to."""
    for name, inner in places_of(list(model.peft_config)).items():
        place, config = folder / inner, model.peft_config[name]
        place.mkdir(parents=True, exist_ok=True)  # TRL asks for cards before the first save
        weights = place / WEIGHTS_NAME
        tensors = read_tensors(weights) if weights.is_file() else model.get_adapter_state_dict(name)
        write_card(place / CARD_NAME, model, config, tensors, *facts, repo_id=repo_id, adapter_name=name)


def measured(trainer: Any) -> dict[str, float]:
    """Return what was measured of the weights that the model has, over all data sets, but for how long it took.

    That is the last evaluation in the log; the best one's, where its weights were loaded after that. The names are the
    log's, without "eval_".
    """
    history, state = trainer.state.log_history, trainer.state
    evaluations = [(at, log) for at, log in enumerate(history) if any(key.startswith("eval_") for key in log)]
    if not evaluations:
        return {}
    last, step = evaluations[-1][0], evaluations[-1][1].get("step")
    end = max((at for at, log in enumerate(history) if "train_runtime" in log), default=-1)
    if end > last and trainer.args.load_best_model_at_end and state.best_global_step:
        step = state.best_global_step
    since = end if end < last else -1  # what was measured after the training is not of the same weights as before
    found = {k: v for at, log in evaluations if at > since and log.get("step") == step for k, v in log.items()}
    took = ("runtime", "_per_second", "model_preparation_time")
    return {
        key.removeprefix("eval_"): float(value)
        for key, value in found.items()
        if key.startswith("eval_") and isinstance(value, (int, float)) and not key.endswith(took)
    }


def _results(trainer: Any, about: dict[str, Any]) -> Iterator[EvalResult]:
    splits = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else ()
    settings, names = (
        getattr(trainer.compute_metrics, key) if measures(trainer) else {} for key in ("settings", "names")
    )
    for whole, value in measured(trainer).items():
        split = max((s for s in splits if whole.startswith(f"{s}_")), key=len, default=None)
        key = whole if split is None else whole[len(split) + 1 :]
        # The Hub knows a metric by its module's name, and one of several results of it by a name beside.
        kind = "rouge" if key.startswith("rouge") else names.get(key, key)
        name = None if kind == key else key.replace("rouge", "ROUGE-")
        yield EvalResult(
            metric_type=kind, metric_name=name, metric_value=value, metric_args=settings.get(key), dataset_split=split,
            **about,
        )  # fmt: skip
