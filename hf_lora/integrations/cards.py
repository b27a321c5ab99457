"""The model card of a Trainer's LoRAModel: what the Trainer knows, handed to `hub/card`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..hub.card.training_facts import TrainingFacts

__all__ = ["facts_of", "write_cards"]


def facts_of(trainer: Any, **given: Any) -> TrainingFacts:
    """Return what a Trainer knows of its run, and what its user says of it (`create_model_card`'s arguments)."""
    from transformers.modelcard import extract_hyperparameters_from_trainer

    from ..training.metrics import Metrics  # not above: it imports torch, which `import hf_lora` leaves alone

    found = {key: _plain(value) for key, value in extract_hyperparameters_from_trainer(trainer).items()}
    if trainer.args.bf16:
        found["mixed_precision_training"] = "bfloat16"
    several = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {}
    settings = trainer.compute_metrics.settings if isinstance(trainer.compute_metrics, Metrics) else {}
    return TrainingFacts(found, _metrics(trainer), settings, tuple(several), **given)


def write_cards(model: Any, folder: Path, facts: TrainingFacts, repo_id: str | None = None) -> None:
    """Write or update the card of every adapter of a model, in the folder that they were saved to."""
    from ..files.names import CARD_NAME, WEIGHTS_NAMES, places_of
    from ..files.tensors import read_tensors
    from ..hub.card.writing import write_card

    for name, inner in places_of(list(model.peft_config)).items():
        place, config = folder / inner, model.peft_config[name]
        place.mkdir(parents=True, exist_ok=True)  # TRL asks for cards before the first save
        weights = place / WEIGHTS_NAMES[0]
        tensors = read_tensors(weights) if weights.is_file() else model.get_adapter_state_dict(name)
        write_card(place / CARD_NAME, model, config, tensors, facts, repo_id=repo_id)


def _metrics(trainer: Any) -> dict[str, float]:
    """Return what was measured of the weights that the model has, over all data sets, but for how long it took.

    That is the last evaluation in the log; the best one's, where its weights were loaded after that.
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


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else str(value)
