"""Two runs side by side: what was set otherwise, what was measured, and whether the difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import AdapterFileError
from ...files.strict_json import read_json
from .arguments import chosen_metric
from .record import METRICS, SETTINGS
from .settings import RunSettings

__all__ = ["RunComparison", "compare_runs", "is_run"]

# Settings that say where a run's files go and no more.
_PLACES = ("output", "push", "private", "base_id", "language", "license")
_SHARES = ("accuracy", "exact_match")  # of the rows that are right: their chance is the binomial distribution's
_Z = 1.96  # of a difference's standard error: chance exceeds it once in twenty

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class RunComparison:
    """Two runs. settings: those that differ; results: by split, the numbers by metric; course: best step, time, size.

    metric: by which they are compared, on `split`. better: the name of the better run, None where they are equal.
    chance: what one seed can tell of that.
    """

    names: tuple[str, str]
    settings: dict[str, Pair]
    results: dict[str, dict[str, Pair]]
    course: dict[str, Pair]
    metric: str
    split: str
    better: str | None
    difference: float
    chance: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        values = self.results[self.split][self.metric]
        if self.better is None:
            return f"Both have the {self.split} {self.metric} {values[0]:.6g}. {self.chance}"
        side = "; ".join(f"{name} {value:.6g}" for name, value in zip(self.names, values, strict=True))
        return f"{self.better} is better by {self.difference:.6g} of {self.split} {self.metric} ({side}). {self.chance}"


def is_run(folder: Path) -> bool:
    """Return whether a folder holds the record of a run."""
    return (folder / METRICS).is_file() and (folder / SETTINGS).is_file()


def compare_runs(one: Path, other: Path) -> RunComparison:
    """Return how two finished runs differ. Raises AdapterFileError where one is not, or no metric is in common."""
    records = [_record(folder) for folder in (one, other)]
    settings = [RunSettings.load(folder / SETTINGS, {}) for folder in (one, other)]
    splits = [split for split in ("test", "eval") if all(split in record for record in records)]
    results = {split: dict(_pairs(*(record[split] for record in records))) for split in splits}
    chosen = [chosen_metric(each) for each in settings]
    metrics = [name for name, _ in chosen] + [name for split in splits for name in results[split]]
    found = [(s, m) for m in metrics for s in splits if all(_is_number(v) for v in results[s].get(m, (None, None)))]
    if not found:
        raise AdapterFileError(f"{one} and {other} have no metric in common; measure both with `hf-lora evaluate`.")
    split, metric = found[0]
    greater = dict(chosen).get(metric, metric != "loss")
    values = results[split][metric]
    gain = (values[1] - values[0]) * (1 if greater else -1)
    better = None if gain == 0 else str((one, other)[gain > 0])
    return RunComparison(
        (str(one), str(other)), dict(_differing(*settings)), results, dict(_course(*records)), metric, split, better,
        abs(gain), _chance(metric, values, records, settings, split),
    )  # fmt: skip


def _record(folder: Path) -> dict[str, Any]:
    found = read_json(folder / METRICS)
    if not found.get("finished"):
        raise AdapterFileError(
            f"{folder}: that run is not finished; go on with it by `hf-lora train --resume --output {folder}`."
        )
    return found


def _differing(one: RunSettings, other: RunSettings) -> Iterator[tuple[str, Pair]]:
    for each in fields(RunSettings):
        pair = getattr(one, each.name), getattr(other, each.name)
        if each.name not in _PLACES and pair[0] != pair[1]:
            yield each.name, pair


def _pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Pair]]:
    for name in dict.fromkeys((*one, *other)):
        yield name, (one.get(name), other.get(name))


def _course(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Pair]]:
    """Yield when the best weights were there, and what the runs took."""
    places = {
        "best step": ("best", "step"), "steps": ("steps",), "epochs": ("epochs",),
        "trained parameters": ("parameters", "trained"), "seconds of training": ("seconds", "training"),
    }  # fmt: skip
    for name, path in places.items():
        yield name, (_inside(one, path), _inside(other, path))


def _inside(record: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _chance(metric: str, values: Pair, records: list[Any], settings: list[RunSettings], split: str) -> str:
    """Say what the difference of two runs, one seed each, can tell."""
    if not _same_rows(records, settings, split):
        return "They were measured on other rows, so the numbers do not compare: evaluate both on one file."
    rows = _inside(records[0], ("data", split, "rows"))
    if metric in _SHARES and rows:
        shares = [
            (value * rows + 1) / (rows + 2) for value in values
        ]  # so that none is certain: Agresti and Caffo 2000
        spread = _Z * math.sqrt(sum(share * (1 - share) for share in shares) / (rows + 2))
        if abs(values[1] - values[0]) <= spread:
            return (
                f"One seed cannot tell which is better: on {rows:,} rows chance alone makes differences of up to "
                f"{spread:.2g} (19 times in 20). Repeat both with other seeds (--seed), or test on more rows."
            )
        return (
            f"That is more than the choice of rows makes by chance ({spread:.2g} on {rows:,} rows, 19 times in 20); "
            "what the seed of the training makes, only more seeds tell."
        )
    return f"One seed cannot tell how much of a difference in {metric} is chance: repeat both with others (--seed)."


def _same_rows(records: list[Any], settings: list[RunSettings], split: str) -> bool:
    """Return whether two runs were measured on the same rows: one file, or the same share of one file."""
    facts = [_inside(record, ("data", split)) or {} for record in records]
    if any("sha256" in fact for fact in facts):
        return facts[0].get("sha256") == facts[1].get("sha256") is not None
    drawn = [(s.seed, s.eval_share, s.test_share, s.limit, s.test, s.eval, s.skip_bad_rows) for s in settings]
    sources = [_inside(record, ("data", "train", "sha256")) for record in records]
    return drawn[0] == drawn[1] and sources[0] == sources[1] is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
