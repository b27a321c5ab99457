"""The model card of a Trainer's LoRAModel: what the Trainer knows, handed to `hf_lora.card`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..facts import TrainingFacts

__all__ = ["facts_of", "write_cards"]


def facts_of(trainer: Any, **given: Any) -> TrainingFacts:
    """Return what a Trainer knows of its run, and what its user says of it (`create_model_card`'s arguments)."""
    from transformers.modelcard import extract_hyperparameters_from_trainer

    found = {key: _plain(value) for key, value in extract_hyperparameters_from_trainer(trainer).items()}
    if trainer.args.bf16:
        found["mixed_precision_training"] = "bfloat16"
    return TrainingFacts(found, _latest_metrics(trainer.state.log_history), **given)


def write_cards(model: Any, folder: Path, facts: TrainingFacts, repo_id: str | None = None) -> None:
    """Write or update the card of every adapter of a model, in the folder that they were saved to."""
    from ..card import write_card
    from ..filenames import CARD_NAME, WEIGHTS_NAMES
    from ..formats.files import read_tensors
    from ..published import places_of

    for name, inner in places_of(list(model.peft_config)).items():
        place, config = folder / inner, model.peft_config[name]
        weights = place / WEIGHTS_NAMES[0]
        tensors = read_tensors(weights) if weights.is_file() else model.get_adapter_state_dict(name)
        write_card(place / CARD_NAME, model, config, tensors, facts, repo_id=repo_id)


def _latest_metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return the numbers of the last evaluation in a Trainer's log, but for how long it took."""
    for log in reversed(history):
        found = {k.removeprefix("eval_"): v for k, v in log.items() if k.startswith("eval_")}
        if found:
            took = ("runtime", "_per_second")
            return {k: float(v) for k, v in found.items() if isinstance(v, (int, float)) and not k.endswith(took)}
    return {}


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else str(value)
