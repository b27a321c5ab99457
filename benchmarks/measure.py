"""Timing arms against each other: interleaved, the order turned every round, the median of the per-round ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes, in seconds, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(arms: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Time every arm once a round and return, by arm: median seconds, and the ratio to the first arm.

    The ratio is the median of the rounds' own ratios, with its quartiles: a machine whose speed drifts moves all
    arms of a round alike.
    """
    names = list(arms)
    for name in names:  # warm up
        arms[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for name in order if turn % 2 else reversed(order):
            times[name].append(seconds(arms[name], device))
    return {name: _summary(times[name], times[names[0]]) for name in names}


def _summary(times: list[float], reference: list[float]) -> dict[str, float]:
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {
        "seconds": round(statistics.median(times), 6),
        "ratio": round(median, 3),
        "ratio_low": round(low, 3),
        "ratio_high": round(high, 3),
    }


def print_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print one comparison: milliseconds and the ratio to the first arm with its quartiles."""
    print(f"\n{title}")
    for name, row in rows.items():
        print(
            f"  {name:<28}{1000 * row['seconds']:>10.2f} ms{row['ratio']:>9.3f}  "
            f"({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        )
