"""What happens around training: loading, switching, merging, a forward of one token, importing.

GPT-2 124M, r=16, 48 adapted layers. Ratios are to the cell's first arm: a floor where there is one (floors.py, or the
base without adapters), else PEFT. An adapter is loaded beside another (the 2nd) and beside 39 (the 40th), and deleted
again outside the timed region; setting up and undoing a merge is outside as well. The fingerprint of the base, which
loading checks and saving writes, is set against one reading of all adapted weights, which a checksum could not spare.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.model import provenance

from . import floors, imports
from .measure import Arm, Findings, Options, Row, compare, installed, print_times

TARGETS = ["c_attn", "c_fc", "attn.c_proj", "mlp.c_proj"]
CONFIG = LoRAConfig(r=16, lora_alpha=32, target_modules=TARGETS, init_lora_weights=False)
MANY, NEW = 40, "new"  # adapters on a model, named a0, a1, ...; the one that is loaded and deleted
TINY = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=0)
IMPORT_ROUNDS = 5  # at most: each starts three processes


def _peft(base: nn.Module, folder: str) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(base, folder, adapter_name="a0")


def _hf_lora(base: nn.Module, folder: str) -> Any:
    return LoRAModel.from_pretrained(folder, base_model=base, adapter_name="a0")


LIBRARIES: Mapping[str, Callable[[nn.Module, str], Any]] = {"PEFT": _peft, "hf_lora": _hf_lora}
Models = Mapping[str, Any]  # library -> its model
Arms = dict[str, Arm]


def run(options: Options) -> Findings:
    """Time each operation, print its table and return one row an arm."""
    smoke = options.scale == "smoke"
    rows = list(on_device(options))
    for ground, statements in imports.SMOKE if smoke else imports.CELLS:
        rounds = min(options.rounds, IMPORT_ROUNDS)
        rows += _told(f"import, after `{ground}`", imports.measure(ground, statements, rounds))
    return Findings(rows, [])


def on_device(options: Options) -> Iterator[Row]:
    """Time all but the import, print the tables and yield one row an arm."""
    smoke = options.scale == "smoke"
    torch.manual_seed(0)
    base: nn.Module = GPT2LMHeadModel(TINY if smoke else GPT2Config())
    base.to(options.device).eval()
    with tempfile.TemporaryDirectory() as folder:
        LoRAModel.from_model(copy.deepcopy(base), CONFIG).save_pretrained(folder)
        for title, arms in _cells(base, folder, 3 if smoke else MANY):
            if options.budget.over():
                return
            yield from _told(title, compare(arms, options.device, options.rounds, options.budget))


def _told(title: str, rows: list[Row]) -> list[Row]:
    print_times(title, rows)
    return [{"cell": title, **row} for row in rows]


def _cells(base: nn.Module, folder: str, many: int) -> Iterator[tuple[str, Arms]]:
    """Yield every cell with its arms; the models go from one to the next, and get adapters on the way."""
    models = _models(base, folder)
    yield "fingerprint of the base", _fingerprint(models["hf_lora"])
    yield "load the 2nd adapter", _load(models, base, folder)
    yield "merge", _merge(models, base)
    yield "unmerge", _unmerge(models, base)
    yield "merge_and_unload", _merge_for_good(models, base)
    _load_up_to(models, folder, range(1, many - 1))
    yield f"load adapter {many}", _load(models, base, folder)
    _load_up_to(models, folder, range(many - 1, many))
    yield f"set_adapter among {many}", _switch(models)
    _load_up_to(models, folder, range(many, many + 1))
    yield "a forward of one token", _forward(base, _models(base, folder), models, many)


def _models(base: nn.Module, folder: str) -> Models:
    return {name: make(copy.deepcopy(base), folder).eval() for name, make in installed(LIBRARIES).items()}


def _load_up_to(models: Models, folder: str, numbers: range) -> None:
    for model in models.values():
        for number in numbers:
            model.load_adapter(folder, f"a{number}")
        model.set_adapter("a0")


def _fingerprint(model: Any) -> Arms:
    layers, weights = model._lora.layers, provenance.adapted(model._lora, "a0")
    whole = [layers[module]._parameters[parameter] for module, parameter in weights]
    return {
        "floor: sum up every adapted weight": Arm(lambda: whole, lambda whole: [w.sum() for w in whole]),
        "hf_lora": Arm(lambda: layers, lambda layers: provenance.observe(layers, weights)),
    }


def _load(models: Models, base: nn.Module, folder: str) -> Arms:
    def restore(model: Any) -> None:
        model.delete_adapter(NEW)
        model.set_adapter("a0")

    load = methodcaller("load_adapter", folder, NEW)
    arms = {"floor: read the file, copy": floors.reading(folder, next(base.parameters()).device)}
    arms |= {name: Arm(partial(models.__getitem__, name), load, restore) for name in models}
    if "PEFT" in models:
        sparing = methodcaller("load_adapter", folder, NEW, low_cpu_mem_usage=True)
        arms["PEFT, low_cpu_mem_usage"] = Arm(lambda: models["PEFT"], sparing, restore)
    return arms


def _merge(models: Models, base: nn.Module) -> Arms:
    merge, unmerge = methodcaller("merge_adapter"), methodcaller("unmerge_adapter")
    own = {name: Arm(partial(models.__getitem__, name), merge, unmerge) for name in models}
    return {**floors.merging(base, CONFIG.r), **own}


def _unmerge(models: Models, base: nn.Module) -> Arms:
    def merged(model: Any) -> Any:
        model.merge_adapter()
        return model

    own = {name: Arm(partial(merged, model), methodcaller("unmerge_adapter")) for name, model in models.items()}
    return {**floors.unmerging(base, CONFIG.r), **own}


def _merge_for_good(models: Models, base: nn.Module) -> Arms:
    merge = methodcaller("merge_and_unload")
    own = {name: Arm(partial(copy.deepcopy, model), merge) for name, model in models.items()}
    return {**floors.merging(base, CONFIG.r), **own}


def _switch(models: Models) -> Arms:
    def at_first(model: Any) -> Any:
        model.set_adapter("a0")
        return model

    there, back = methodcaller("set_adapter", "a1"), methodcaller("set_adapter", "a0")
    return {name: Arm(partial(at_first, model), there, back) for name, model in models.items()}


def _forward(base: nn.Module, one: Models, more: Models, idle: int) -> Arms:
    token = torch.zeros(1, 1, dtype=torch.long, device=next(base.parameters()).device)

    def forward(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(input_ids=token, use_cache=False).logits

    arms = {"base": Arm(lambda: base, forward)}
    for name in one:
        arms[name] = Arm(partial(one.__getitem__, name), forward)
        arms[f"{name}, {idle} idle adapters more"] = Arm(partial(more.__getitem__, name), forward)
    return arms
