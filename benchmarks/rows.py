"""Many adapters on one base: a batch whose rows have adapters of their own, loading a hundred, a hundred idle ones.

GPT-2 124M, r=8 on c_attn, no cache, logits of the last token. A batch of 20 rows with 20 adapters is set against the
same batch with one of them, PEFT's against PEFT's own. "Rows in another order" name the same adapters otherwise. A
hundred adapters of a file are loaded one after another, onto a model that has one; the floor reads the file and copies
it, a hundred times. Idle ones are selected by nobody: a forward of one token passes them.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel

from . import floors
from .measure import Arm, Findings, Options, Row, compare, installed, print_times

TARGETS, OWN = ["c_attn"], "own"
ONE, EACH, TURN, FLOOR = "one adapter", "a row each", "rows in another order", "floor: read the file, copy"
LOADING_ROUNDS = 3  # at most: PEFT takes a hundred adapters in ten seconds
AIMS = {1: 1.25, 16: 1.08}  # tokens -> what rows may cost beside one adapter


class Scale(NamedTuple):
    """So many rows, each with an adapter; so many adapters to load, and to lie idle; how large the model is."""

    rows: int
    many: int
    config: GPT2Config


TINY = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=0)
SMOKE, DEFAULT = Scale(3, 4, TINY), Scale(20, 100, GPT2Config())


class Cell(NamedTuple):
    """Arms to time, how often, which are set against another than the first, and what more is told of each."""

    title: str
    arms: dict[str, Arm]
    rounds: int
    against: dict[str, str] = {}
    figures: Callable[[str], dict[str, float]] = lambda arm: {}


def run(options: Options) -> Findings:
    """Measure, print the tables and return one row an arm."""
    scale = SMOKE if options.scale == "smoke" else DEFAULT
    torch.manual_seed(0)
    base: nn.Module = GPT2LMHeadModel(scale.config)
    base.to(options.device).eval()
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        _hf_lora(base).save_pretrained(folder, adapter_name=OWN)
        for cell in _cells(base, folder, scale, options):
            rows = compare(cell.arms, options.device, cell.rounds, options.budget, cell.against)
            print_times(cell.title, rows)
            found += [{"cell": cell.title, **row, **cell.figures(row["arm"])} for row in rows]
    return Findings(found, _summary(found))


def _cells(base: nn.Module, folder: str, scale: Scale, options: Options) -> Iterator[Cell]:
    models = {name: _with(make(base), scale.rows) for name, make in installed(MODELS).items()}
    ways = {f"{name}, {EACH}": f"{name}, {ONE}" for name in models}
    for tokens in AIMS:
        ids = torch.randint(scale.config.vocab_size, (scale.rows, tokens), device=options.device)
        title = f"{scale.rows} rows of {tokens} tokens, {scale.rows} adapters"
        yield Cell(title, dict(_by_row(models, ids)), options.rounds, ways)
    for model in models.values():
        _with(model, scale.many, scale.rows)
    idle = {f"{name}, {scale.many} idle": model for name, model in models.items()}
    lonely = {name: make(base) for name, make in installed(MODELS).items()}
    one = partial(_forward, ids=ids[:1, :1])
    arms = {name: Arm(partial(partial, one, model), lambda run: run()) for name, model in {**lonely, **idle}.items()}
    against = {name: name.partition(",")[0] for name in arms}
    yield Cell("a forward of one token", arms, 3 * options.rounds, against)
    loads = _Loads(base, folder, scale.many)
    rounds = min(options.rounds, LOADING_ROUNDS)
    yield Cell(f"load {scale.many} adapters", loads.arms(options.device), rounds, {}, loads.figures)


def _hf_lora(base: nn.Module) -> Any:
    config = LoRAConfig(r=8, target_modules=TARGETS, init_lora_weights=False)
    return LoRAModel.from_model(_beside(base), config, OWN).eval()


def _peft(base: nn.Module) -> Any:
    import peft

    return peft.get_peft_model(_beside(base), _peft_config(), OWN).eval()


def _peft_config() -> Any:
    import peft

    return peft.LoraConfig(r=8, target_modules=TARGETS, fan_in_fan_out=True, init_lora_weights=False)


MODELS: dict[str, Callable[[nn.Module], Any]] = {"hf_lora": _hf_lora, "PEFT": _peft}


def _beside(base: nn.Module) -> nn.Module:
    """Return a copy of a model with the same parameters and buffers."""
    tensors: Iterator[Tensor] = iter([*base.parameters(), *base.buffers()])
    return copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})


def _with(model: Any, count: int, start: int = 0) -> Any:
    """Give a model adapters named a0, a1, ... up to a count, its own still selected."""
    for number in range(start, count):
        if isinstance(model, LoRAModel):
            config = LoRAConfig(r=8, target_modules=TARGETS, init_lora_weights=False)
            model.add_adapter(config, f"a{number}")
        else:
            model.add_adapter(f"a{number}", _peft_config())
    model.set_adapter(OWN)
    return model.eval()


def _forward(model: Any, ids: Tensor, names: Sequence[str] | None = None) -> None:
    told = {} if names is None else {"adapter_names": [*names]}
    with torch.no_grad():
        model(input_ids=ids, use_cache=False, logits_to_keep=1, **told)


def _by_row(models: dict[str, Any], ids: Tensor) -> Iterator[tuple[str, Arm]]:
    names = [f"a{number}" for number in range(len(ids))]
    for name, model in models.items():
        for way, told in ((ONE, None), (EACH, names)):
            yield f"{name}, {way}", Arm(partial(partial, _forward, model, ids, told), lambda run: run())
    yield f"hf_lora, {TURN}", Arm(partial(partial, _forward, models["hf_lora"], ids, names[::-1]), lambda run: run())


class _Loads:
    """Loading many adapters, one after another, and how long each of them took."""

    def __init__(self, base: nn.Module, folder: str, many: int) -> None:
        self.base, self.folder, self.many = base, folder, many
        self.seconds: dict[str, list[list[float]]] = {}

    def arms(self, device: torch.device) -> dict[str, Arm]:
        """Return the floor, and the libraries, which load onto a model with one adapter."""
        floor = floors.reading(self.folder, device)
        arms = {FLOOR: Arm(floor.prepare, partial(self._each, FLOOR, lambda places, name: floor.run(places)))}
        for library, make in installed(MODELS).items():
            load = partial(self._each, library, lambda model, name: model.load_adapter(self.folder, name))
            arms[library] = Arm(partial(make, self.base), load)
        return arms

    def figures(self, arm: str) -> dict[str, float]:
        """Return the milliseconds of one of the first tenth and of one of the last."""
        tenth = max(1, self.many // 10)
        medians = [statistics.median(times) for times in zip(*self.seconds[arm][1:], strict=True)]
        first, last = statistics.median(medians[:tenth]), statistics.median(medians[-tenth:])
        return {"first_ms": round(1e3 * first, 3), "last_ms": round(1e3 * last, 3)}

    def _each(self, arm: str, load: Callable[[Any, str], object], subject: Any) -> None:
        times = []
        for number in range(self.many):
            start = time.perf_counter()
            load(subject, f"a{number}")
            times.append(time.perf_counter() - start)
        self.seconds.setdefault(arm, []).append(times)


def _summary(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each batch that has an aim, and one for each arm that loads."""
    told = []
    for row in rows:
        aim = next((aim for tokens, aim in AIMS.items() if f" rows of {tokens} tokens" in row["cell"]), None)
        if aim is not None and row["arm"] == f"hf_lora, {EACH}":
            told.append(f"{row['cell']}: {row['ratio']:.3f} of one adapter's time; the aim is {aim:.2f} at most.")
        if "first_ms" in row:
            told.append(f"{row['cell']}, {row['arm']}: {row['first_ms']} ms each at first, {row['last_ms']} at last.")
    return told
