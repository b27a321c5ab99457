"""Timing arms against each other: interleaved, the order turned every round, the median of the per-round ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

Row = dict[str, Any]  # one arm in one cell: its names and its figures, as JSON takes them


@dataclass(frozen=True)
class Options:
    """How a question is to be asked. rounds: times that each arm is timed; scale: which cells, `smoke` for tests."""

    device: torch.device
    rounds: int = 15
    scale: Literal["smoke", "default", "full"] = "default"


class Findings(NamedTuple):
    """What a question found: a row an arm, and sentences that sum them up."""

    rows: list[Row]
    summary: list[str]


def _nothing(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Arm:
    """One contestant: only `run` is timed. It and `restore` get what `prepare` returns."""

    prepare: Callable[[], Any]
    run: Callable[[Any], object]
    restore: Callable[[Any], object] = _nothing

    def seconds(self, device: torch.device) -> float:
        """Return how long one run takes, in seconds, the device's queue included."""
        subject = self.prepare()
        _wait(device)
        start = time.perf_counter()
        result = self.run(subject)
        _wait(device)
        elapsed = time.perf_counter() - start
        del result  # freed outside the timed region, for every arm alike
        self.restore(subject)
        return elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(arms: Mapping[str, Arm], device: torch.device, rounds: int) -> list[Row]:
    """Time every arm once a round and return one row an arm; see `interleave`."""
    return interleave({name: partial(arm.seconds, device) for name, arm in arms.items()}, rounds)


def interleave(timers: Mapping[str, Callable[[], float]], rounds: int) -> list[Row]:
    """Return one row an arm: its median seconds, and its ratio to the first arm with quartiles.

    timers: what runs an arm once and returns its seconds. The first round does not count. The ratio is the median of
    the rounds' own ratios: a machine whose speed drifts moves all arms of a round alike.
    """
    names = list(timers)
    for name in names:
        timers[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for name in order if turn % 2 else reversed(order):
            times[name].append(timers[name]())
    return [{"arm": name, **_summary(times[name], times[names[0]])} for name in names]


def _summary(times: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "seconds": round(statistics.median(times), 7),
        "ratio": round(median, 6),
        "ratio_low": round(low, 6),
        "ratio_high": round(high, 6),
    }


def print_times(title: str, rows: Sequence[Row]) -> None:
    """Print one comparison: milliseconds, and the ratio to the first arm with its quartiles."""
    print(f"\n{title}")
    for row in rows:
        print(
            f"  {row['arm']:<36}{1000 * row['seconds']:>10.3f} ms{row['ratio']:>#11.4g}  "
            f"({row['ratio_low']:#.4g} to {row['ratio_high']:#.4g})",
            flush=True,
        )
