"""A Trainer's evaluation with hf_lora's metrics: they learn of the model, and no logits over a vocabulary are kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["prepares_metrics"]


def prepares_metrics(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.evaluation_loop, for Trainers whose compute_metrics is a Metrics.

    In `evaluate()` what they need of the logits takes their place, unless the user has a function for that; `predict()`
    gives its predictions to the user and keeps them whole.
    """

    @functools.wraps(original)
    def evaluation_loop(self: Any, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        from ..training.metrics import Metrics  # not above: it imports torch, which `import hf_lora` leaves alone

        metrics = self.compute_metrics
        if not isinstance(metrics, Metrics):
            return original(self, dataloader, description, *args, **kwargs)
        generates = bool(getattr(self.args, "predict_with_generate", False))
        metrics.begin(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), generates)
        if description != "Evaluation" or self.preprocess_logits_for_metrics is not None:
            return original(self, dataloader, description, *args, **kwargs)
        self.preprocess_logits_for_metrics = metrics.preprocess_logits_for_metrics
        try:
            return original(self, dataloader, description, *args, **kwargs)
        finally:
            self.preprocess_logits_for_metrics = None

    return evaluation_loop
