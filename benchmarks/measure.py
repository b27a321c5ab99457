"""Timing arms against each other: interleaved, the order turned every round, the median of the per-round ratios."""

from __future__ import annotations

import datetime
import importlib
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any, Literal, NamedTuple, TypeVar

import torch

import hf_lora

T = TypeVar("T")
Row = dict[str, Any]  # one arm in one cell: its names and its figures, as JSON takes them


class Budget:
    """Seconds that may be spent, from now on."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.perf_counter(), seconds

    def spent(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.start

    def over(self) -> bool:
        """Return whether they are spent."""
        return self.spent() >= self.seconds


@dataclass(frozen=True)
class Options:
    """How a question is to be asked.

    rounds: times that each arm is timed; scale: which cells, `smoke` for tests; budget: after which no round begins.
    """

    device: torch.device
    rounds: int = 15
    scale: Literal["smoke", "default", "full"] = "default"
    budget: Budget = field(default_factory=lambda: Budget(math.inf))


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
        stop = watch(device)
        result = self.run(subject)
        elapsed = stop()
        del result  # freed outside the timed region, for every arm alike
        self.restore(subject)
        return elapsed


def watch(device: torch.device) -> Callable[[], float]:
    """Start to measure and return what stops and gives the seconds: of CUDA events on a GPU, whose queue is empty."""
    if device.type != "cuda":
        start = time.perf_counter()
        return lambda: time.perf_counter() - start
    torch.cuda.synchronize(device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()

    def stop() -> float:
        end.record()
        torch.cuda.synchronize(device)
        return float(begin.elapsed_time(end)) / 1000

    return stop


def compare(
    arms: Mapping[str, Arm],
    device: torch.device,
    rounds: int,
    budget: Budget | None = None,
    against: Mapping[str, str] | None = None,
) -> list[Row]:
    """Time every arm once a round and return one row an arm; see `interleave`."""
    return interleave({name: partial(arm.seconds, device) for name, arm in arms.items()}, rounds, budget, against)


def interleave(
    timers: Mapping[str, Callable[[], float]],
    rounds: int,
    budget: Budget | None = None,
    against: Mapping[str, str] | None = None,
) -> list[Row]:
    """Return one row an arm: its median seconds, and its ratio to the first arm with quartiles.

    budget: after it, one round is made and no more. against: arms whose ratio is to another arm than the first.

    timers: what runs an arm once and returns its seconds. The first round does not count. The ratio is the median of
    the rounds' own ratios: a machine whose speed drifts moves all arms of a round alike.
    """
    names = list(timers)
    for name in names:
        timers[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        if turn and budget is not None and budget.over():
            break
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for name in order if turn % 2 else reversed(order):
            times[name].append(timers[name]())
    return [{"arm": name, **_summary(times[name], times[(against or {}).get(name, names[0])])} for name in names]


def _summary(times: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "seconds": round(statistics.median(times), 7),
        "ratio": round(median, 6),
        "ratio_low": round(low, 6),
        "ratio_high": round(high, 6),
    }


def installed(arms: Mapping[str, T]) -> dict[str, T]:
    """Return the arms without those of PEFT where it cannot be imported."""
    try:
        importlib.import_module("peft")
    except ImportError:
        return {name: arm for name, arm in arms.items() if not name.startswith("PEFT")}
    return dict(arms)


def machine(device: torch.device, packages: Sequence[str]) -> dict[str, Any]:
    """Return what figures depend on: when, which device and machine, versions (None for what is not installed)."""
    is_cuda = device.type == "cuda"
    versions: dict[str, str | None] = {"python": platform.python_version(), "hf_lora": hf_lora.__version__}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "memory": torch.cuda.get_device_properties(device).total_memory if is_cuda else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "cuda": torch.version.cuda,
        "versions": versions,
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
