"""Many adapters, few of them resident: requests for adapters by Zipf's law, through an AdapterCache.

A request is a forward of four rows of different adapters. The k-th of the registered adapters is asked for with weight
1 / k. Every arm answers the same requests: the floor with adapters that are all resident already; the cache, whose
adapters come from disk at first and from CPU memory where that holds them; and, one adapter after another, loading
each with `load_adapter` and deleting it again. Then what a forward takes in one thread while another makes the cache
load without a pause.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import AdapterCache, LoRAConfig, LoRAModel

from .measure import Arm, Findings, Options, compare, print_times

ROWS, TOKENS = 4, 16  # of a request
FILES = 20  # different ones on disk, each under several names


@dataclass(frozen=True)
class Cell:
    """So many adapters registered, resident, and in CPU memory; one run answers so many requests."""

    registered: int = 1000
    resident: int = 32
    on_host: int = 200
    requests: int = 100
    layers: int = 4
    hidden: int = 256

    @property
    def title(self) -> str:
        """What the cell is called in tables and files."""
        return f"{self.registered} registered, {self.resident} resident, {self.on_host} in CPU memory"

    def build(self, device: torch.device) -> LoRAModel:
        """Return a model with one adapter that is never asked for."""
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=self.layers, n_embd=self.hidden, n_head=2, vocab_size=1000, n_positions=64, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        base: nn.Module = GPT2LMHeadModel(config)
        lora = LoRAConfig(r=8, target_modules=["c_attn", "c_fc", "c_proj"], init_lora_weights=False)
        return LoRAModel.from_model(base.to(device).eval(), lora, "own")


SMOKE = Cell(12, 4, 6, 3, layers=1, hidden=16)


def run(options: Options) -> Findings:
    """Measure, print the tables and return one row an arm."""
    cell = SMOKE if options.scale == "smoke" else Cell()
    with tempfile.TemporaryDirectory() as top:
        for number in range(FILES):
            cell.build(options.device).save_pretrained(Path(top, str(number)), adapter_name="own")
        contest = _Contest(cell, top, options.device)
        rows = compare(contest.arms(), options.device, options.rounds, options.budget)
        print_times(cell.title, rows)
        figures = contest.figures()
        beside = compare(contest.beside(), options.device, options.rounds, options.budget)
        print_times(f"{cell.title}: one request of resident adapters", beside)
    title = f"{cell.title}: one request of resident adapters"
    found = [*({"cell": cell.title, **row} for row in rows), *({"cell": title, **row} for row in beside)]
    found = [{**row, **figures} if row["arm"] == "hf_lora, cache" else row for row in found]
    return Findings(found, [", ".join(f"{name}: {value}" for name, value in figures.items())])


class _Contest:
    """The models, the requests, and how long acquiring took."""

    def __init__(self, cell: Cell, top: str, device: torch.device) -> None:
        self.cell, self.names = cell, [f"a{i}" for i in range(cell.registered)]
        self.paths = {name: Path(top, str(i % FILES)) for i, name in enumerate(self.names)}
        self.ids = torch.randint(1000, (ROWS, TOKENS), device=device)
        self.full, self.plain, model = cell.build(device), cell.build(device), cell.build(device)
        for name in self.names[: cell.resident]:
            self.full.load_adapter(self.paths[name], name)
        size = sum(t.nbytes for t in model.get_adapter_state_dict("own").values())
        self.cache = AdapterCache(model, max_adapters=cell.resident, max_host_bytes=cell.on_host * size)
        for name, path in self.paths.items():
            self.cache.register(name, path)
        self.choose = random.Random(0)
        self.weights = [1 / k for k in range(1, cell.registered + 1)]
        self.hits: list[float] = []
        self.misses: list[float] = []

    def arms(self) -> dict[str, Arm]:
        """Return what answers a run's requests."""
        ways: dict[str, Callable[[Sequence[str]], Any]] = {
            "floor: all resident": lambda names: self.answer(self.full, self._resident(names)),
            "hf_lora, cache": self._cached,
            "hf_lora, load and delete": partial(self._one_by_one, self.plain),
        }
        return {title: Arm(self._requests, partial(self._all, way)) for title, way in ways.items()}

    def beside(self) -> dict[str, Arm]:
        """Return one request alone, and beside a thread that makes the cache load without a pause."""
        names = self.names[:ROWS]

        def ask(_: object) -> None:
            with self.cache.using(names):
                self.answer(self.cache.model, names)

        @contextmanager
        def loading() -> Iterator[None]:
            stop = threading.Event()

            def load() -> None:
                while not stop.is_set():
                    with self.cache.using(self.choose.choice(self.names)):
                        pass

            thread = threading.Thread(target=load)
            thread.start()
            yield
            stop.set()
            thread.join()

        def enter() -> Any:
            block = loading()
            block.__enter__()
            return block

        return {
            "nothing loads": Arm(lambda: None, ask),
            "another thread loads": Arm(enter, ask, lambda block: block.__exit__(None, None, None)),
        }

    def figures(self) -> dict[str, Any]:
        """Return the cache's own counts, and medians of what acquiring took."""
        info = self.cache.info()
        return {
            "hit_rate": round(info.hits / (info.hits + info.misses), 4),
            "from_host": round(info.from_host / max(info.misses, 1), 4),
            "acquire_all_resident_ms": round(1e3 * statistics.median(self.hits or [0]), 4),
            "acquire_per_missing_ms": round(1e3 * statistics.median(self.misses or [0]), 4),
            "resident_bytes": info.bytes,
            "host_bytes": info.host_bytes,
        }

    def answer(self, model: Any, names: Sequence[str]) -> None:
        """Answer one request."""
        with torch.no_grad():
            model(self.ids, adapter_names=[*names])

    def _requests(self) -> list[list[str]]:
        return [self.choose.choices(self.names, self.weights, k=ROWS) for _ in range(self.cell.requests)]

    def _all(self, way: Callable[[Sequence[str]], Any], requests: Sequence[Sequence[str]]) -> None:
        for names in requests:
            way(names)

    def _resident(self, names: Sequence[str]) -> list[str]:
        return [self.names[int(name[1:]) % self.cell.resident] for name in names]

    def _cached(self, names: Sequence[str]) -> None:
        before, start = self.cache.info().misses, time.perf_counter()
        with self.cache.using(names):
            took, missed = time.perf_counter() - start, self.cache.info().misses - before
            (self.misses if missed else self.hits).append(took / max(missed, 1))
            self.answer(self.cache.model, names)

    def _one_by_one(self, model: Any, names: Sequence[str]) -> None:
        for name in dict.fromkeys(names):
            model.load_adapter(self.paths[name], name)
        self.answer(model, names)
        model.set_adapter("own")
        model.delete_adapter([*dict.fromkeys(names)])
