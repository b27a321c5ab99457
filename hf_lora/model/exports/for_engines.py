"""Converting an adapter for an engine: what its rules would refuse or compute wrongly is mended, or refused here."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import EngineError
from ...files.disk import free_place, made_whole
from ...files.names import CONFIG_NAME, WEIGHTS_NAME
from ...files.strict_json import read_json
from ...files.tensors import read_noted, write_tensors
from ...files.transaction import commit
from ...formats.engines.checking import Checked, base_named, check_for, checked, engine_named
from ...formats.engines.factors import MERGES
from ...formats.engines.gguf import write_gguf
from ...formats.engines.heads import split, without_parts
from ...formats.engines.mlx import write_mlx
from ...formats.engines.rules import CONVERT, REFACTOR, Engine, filled
from ...formats.inspection import looked_at
from ...formats.keys import PREFIX, split_key, unwrapped
from ...kinds.table import KINDS
from ...variants.table import COPIES
from ..approximating import Approximation
from ..loading import check_options, opened
from ..saving import save_adapters
from .by_name import factors_of, padding, widened
from .plain import NAME, plain_model

_PAIR = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Converted:
    """What was written. lost: by layer, where a rank was asked for. checked: what the engine makes of it, None where
    the files are of its own layout. split: the base's parameters that were written into a file of their own."""

    path: Path
    lost: Approximation | None
    checked: Checked | None
    split: tuple[str, ...] = ()


def convert_for(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    engine: str,
    *,
    rank: int | None = None,
    max_rank: int | None = None,
    base_model: str | os.PathLike[str] | None = None,
    split_head: str | os.PathLike[str] | None = None,
    **hub_kwargs: Any,
) -> Converted:
    """Write an adapter so that an engine loads it as it is meant.

    adapter: a folder or Hub id. output: the folder to make, for "llama.cpp" a file .gguf; it must not be there yet.
    engine: as `check_for` takes it. rank: the most that the result may have; the best approximation of that rank is
    written, and the result tells what it loses. Without it the result is exact. max_rank: what the engine's server was
    started with. base_model: the base, where it lies elsewhere; its config alone is read, unless the adapter took its
    start out of it. split_head: a file .safetensors to make of the parts trained in full (modules_to_save), by names
    of the base's parameters, for engines that take factors alone. hub_kwargs: as `inspect_adapter` takes them.

    What is written is plain LoRA with lora_alpha = r: the scaling is in B, a start in factors of twice the rank, fused
    experts are one by one. Raises EngineError for what has to be merged into the base, and what loading raises.
    """
    row = engine_named(engine)
    path = free_place(output, ".gguf" if row.layout == "gguf" else "")
    head = None if split_head is None else free_place(split_head, ".safetensors")
    base = base_named(base_model)
    check_options(hub_kwargs)
    with looked_at(adapter, **hub_kwargs) as looked:
        _refuse(checked(looked if head is None else without_parts(looked), engine, base=base), rank)
        files = looked.contents if looked.source.is_local else None
    files = files or opened(adapter, **hub_kwargs)  # of the Hub the heads alone were looked at
    files, parts = (files, {}) if head is None else split(files)
    model, lost = plain_model(files, base, rank)
    if head is not None:  # of this task PEFT looks for a head in the file
        model._lora.records[NAME].config = model._lora.records[NAME].config.copy(task_type=None)
    with ExitStack() as stack:
        if head is not None:
            write_tensors(stack.enter_context(made_whole(head)), parts, {"format": "pt"})
        found = _write(stack.enter_context(made_whole(path)), model, row)
        checks = check_for(found, engine, max_rank=max_rank, base_model=base) if row.layout == "peft" else None
    return Converted(path, lost, checks, tuple(parts))


def _write(place: Path, model: Any, row: Engine) -> Path:
    """Write an engine's file or folder, and return where."""
    if row.layout == "peft":
        save_adapters(model, place, NAME)
        _fit(place, model, row)
    elif row.layout == "gguf":
        write_gguf(place, _alone(model, row), model.config)
    else:
        place.mkdir()
        write_mlx(place, _alone(model, row), model.config)
    return place


def _refuse(found: Checked, rank: int | None) -> None:
    """Raise EngineError for what converting does not mend. rank: whether it may be approximated."""
    mended = {CONVERT, ""} | ({REFACTOR} if rank is not None else set())
    if left := [each for each in found.told if each.verdict != "not known" and each.mends not in mended]:
        reasons = "; ".join(f"{each.said}: {each.why}" for each in left)
        raise EngineError(f"{found.engine} cannot be given {found.name}: {reasons}. {left[0].cure}")


def _alone(model: Any, row: Engine) -> Any:
    """Return a plain adapter's factors. Raises EngineError where it holds more, which the engine has no place for."""
    held = [(module, adapter) for module, _, _, adapter in model._lora.carried(NAME)]
    more = [module for module, adapter in held if not adapter.low_rank or adapter.changes_bias]
    if more:
        raise EngineError(
            f"the adapter holds more than factors ({more[0]}), for which {row.title} has no place; {MERGES}."
        )
    return factors_of(model)


def _fit(folder: Path, model: Any, row: Engine) -> None:
    """Write a saved plain adapter anew where an engine wants experts one by one, factors of zeros or another rank."""
    stacks = {module for module, _, _, a in model._lora.carried(NAME) if a.low_rank and KINDS[a.kind].stacked}
    splits = row.by_expert and bool(stacks)
    if not (splits or row.every_layer or row.beside or row.fills):
        return
    factors = factors_of(model)
    added = padding(model, factors, row.every_layer, row.beside)
    if splits:
        added |= {name: each for name, each in factors.items() if ".experts." in name}
    values = read_json(folder / CONFIG_NAME)
    rank = filled(values["r"]) if row.fills else values["r"]
    if rank != values["r"]:
        added = {name: widened(each, rank) for name, each in (factors | added).items()}
    if not added:
        return
    tensors, notes = read_noted(folder / WEIGHTS_NAME)
    tensors = {key: each for key, each in tensors.items() if not (splits and _module(key) in stacks)}
    for name, each in added.items():
        tensors |= {f"{PREFIX}{name}{leaf}": t for leaf, t in zip(_PAIR, (each.a, each.b), strict=True)}
    values = {key: value for key, value in values.items() if key != "target_parameters"}
    ends = {_module(key).rpartition(".")[2] for key in tensors if _is_factor(key)}
    values |= {"r": rank, "lora_alpha": rank, "target_modules": sorted({row.targets.get(end, end) for end in ends})}
    commit(folder, json.dumps(values, indent=2).encode(), _ordered(tensors), {**notes, "tensors": len(tensors)})


def _module(key: str) -> str:
    return unwrapped(split_key(key)[0])[0]


def _is_factor(key: str) -> bool:
    return split_key(key)[2] not in COPIES


def _ordered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensors[key] for key in sorted(tensors)}
