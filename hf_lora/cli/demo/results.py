"""What the demo was asked and what it measured, as one JSON file beside the adapter."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ...errors import AdapterFileError

__all__ = ["RESULTS_NAME", "DemoOptions", "DemoResults", "Scores"]

RESULTS_NAME = "demo_results.json"


@dataclass(frozen=True)
class DemoOptions:
    """What to run: passes over the training entries, seed of split and training, rank, and how many entries.

    entries: at most so many of the lexicon's, evenly picked; None for all.
    """

    epochs: float = 1.0
    seed: int = 0
    r: int = 8
    entries: int | None = None


@dataclass(frozen=True)
class Scores:
    """Accuracy and F1 on the held-out entries, both in [0, 1]."""

    accuracy: float
    f1: float


@dataclass(frozen=True)
class DemoResults:
    """The demo's measurements: counts of entries and parameters, sizes in bytes, the training's time in seconds."""

    options: DemoOptions
    train_entries: int
    held_out_entries: int
    majority: float
    before: Scores
    after: Scores
    trainable: int
    total: int
    adapter_bytes: int
    base_bytes: int
    seconds: float

    def save(self, directory: Path) -> None:
        """Write the results into a directory."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        (directory / RESULTS_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> DemoResults:
        """Read the results of a directory. Raises AdapterFileError where it holds none that can be read."""
        path = directory / RESULTS_NAME
        try:
            values = json.loads(path.read_text("utf-8"))
            nested = {"options": DemoOptions, "before": Scores, "after": Scores}
            return cls(**{k: nested[k](**v) if k in nested else v for k, v in values.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise AdapterFileError(
                f"{directory} holds no readable {RESULTS_NAME} ({type(error).__name__}); "
                "run `hf-lora demo --output` with it first."
            ) from error

    def __str__(self) -> str:
        before, after = self.before, self.after
        adapter, base = self.adapter_bytes / 1e6, self.base_bytes / 1e6
        return "\n".join(
            (
                "             accuracy      F1",
                f"majority       {self.majority:.4f}",
                f"before         {before.accuracy:.4f}  {before.f1:.4f}",
                f"after          {after.accuracy:.4f}  {after.f1:.4f}",
                "",
                f"parameters   {self.trainable:,} of {self.total:,} trained ({self.trainable / self.total:.2%})",
                f"size         adapter {adapter:.2f} MB, base {base:.1f} MB (1 : {base / adapter:.0f})",
                f"time         {self.seconds:.0f} s of training, {self.options.epochs:g} epoch(s)",
            )
        )
