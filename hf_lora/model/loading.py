"""Reading saved adapters, and copying them into the ones that a model has, in place: for resuming a training."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterFileError, AdapterMismatchError, AdapterNameError, AdapterStateError, full_name, some
from ..files.names import CONFIG_NAME, WEIGHTS_NAME, WEIGHTS_NAMES
from ..files.sources import HUB_KWARGS
from ..files.transaction import settled
from ..formats.contents import Contents
from ..formats.names import fit_names
from ..formats.opening import open_adapter
from ..formats.peft import read_sites
from ..layers.distributed import fill, refuse_partitions
from ..layers.layer import base_modules
from ..layers.state import AdapterState
from ..targets.site import Site
from ..variants.adapter import Adapter
from . import provenance
from .hints import refuse_unknown
from .selecting import check_known

_OF_LOADING = ("adapter_name", "is_trainable", "lora_config", "check_base", "ignore_unknown", "hotswap")


def check_options(kwargs: Mapping[str, Any]) -> None:
    """Raise ArgumentError for kwargs of `load_adapter` that do not say where on the Hub a file lies."""
    refuse_unknown("load_adapter()", kwargs, (*_OF_LOADING, *HUB_KWARGS))


def opened(
    name: str | os.PathLike[str], lora_config: LoRAConfig | None = None, ignore_unknown: bool = False, /, **kwargs: Any
) -> Contents:
    """Read an adapter that has to be there, as `LoRAModel.load_adapter` does; kwargs: where on the Hub it lies.

    Raises ArgumentError for other kwargs, AdapterFileError where there is no adapter.
    """
    check_options(kwargs)
    files = open_adapter(name, kwargs, True, lora_config, ignore_unknown)
    assert files is not None
    return files


def load_weights(model: Any, directory: Path) -> None:
    """Copy saved adapters into the ones of the same names that are here, in place (`LoRAModel.load_weights`)."""
    if not directory.exists():  # a name of the Hub is none of a directory
        raise AdapterFileError(f"{directory} does not exist; load_weights reads a directory of this machine.")
    for name, folder in _places(model._lora.records, directory).items():
        if folder is None:
            raise AdapterNameError(f"{directory} holds no folder of the adapter {name!r}; it cannot be resumed.")
        files = opened(folder)
        copy_in(model, model._lora, files.config, files.tensors, name)


def missing_weights(model: Any, directory: Path) -> list[str]:
    """Return the files that `load_weights` would miss in a directory, by their paths in it; nothing is read."""
    missing = []
    for name, folder in _places(model._lora.records, directory).items():
        place = Path("" if folder == directory else name)
        if folder is None or settled(folder) is None:
            missing.append(os.fspath(place / CONFIG_NAME))
        if folder is None or not any((folder / file).is_file() for file in WEIGHTS_NAMES):
            missing.append(os.fspath(place / WEIGHTS_NAME))
    return missing


def _places(names: Iterable[str], directory: Path) -> dict[str, Path | None]:
    """Return where in a saved directory each adapter of a model lies; None where it does not."""
    # One that was saved with others lies in a folder of its name, one that was saved alone, and "default", at the top.
    # Where both are there the newer one counts: a file does not say which name it was saved by.
    names, places = list(names), dict[str, Path | None]()
    for name in names:
        alone = len(names) == 1 or name == "default"
        candidates = [directory / name, *([directory] if alone else [])]
        found = [place for place in candidates if settled(place) is not None]
        places[name] = max(found, key=_written) if found else directory if alone else None
    return places


def _written(place: Path) -> int:
    """Return when an adapter's weights were written, in nanoseconds; 0 where there are none."""
    return max((path.stat().st_mtime_ns for name in WEIGHTS_NAMES if (path := place / name).is_file()), default=0)


def copy_in(
    model: nn.Module, state: AdapterState, config: LoRAConfig, tensors: Mapping[str, Tensor], name: str
) -> None:
    """Copy a file's tensors into an adapter that is already there, in place, so that optimizers go on holding it.

    Raises AdapterMismatchError where the file holds another set of parameters; nothing is copied then.
    """
    check_known(state, [name])
    refuse_partitions(model)
    modules = dict(base_modules(model))
    config, tensors, places = fit_names(modules, config, tensors)
    found = read_sites(modules, config.copy(lora_dropout=0.0), tensors, places)
    targets = []
    for site, values in found:
        layer = state.layers.get(site.module)
        adapter = None if layer is None else layer.carried(name).get(site.key)
        if adapter is None:
            raise AdapterStateError(
                f"the file adapts {site.module}.{site.parameter}, the adapter {name!r} on the model does not; "
                "load it under another name."
            )
        targets.append((site, adapter, values))
    check_same(state, name, targets)
    check_dtypes(targets)
    targets = [(s, a, provenance.check_taken(a, v, s.module) if a.is_computed_again else v) for s, a, v in targets]
    with torch.no_grad():
        for _, adapter, values in targets:
            for attribute, tensor in values.items():
                fill(getattr(adapter, attribute), tensor)
            if adapter.leads and not adapter.tensors().keys() <= values.keys():
                adapter.draw()
            adapter.restart()


def check_dtypes(found: Iterable[tuple[Site, Adapter, Mapping[str, Tensor]]]) -> None:
    """Raise AdapterMismatchError where a file holds integers for what is trained, or numbers for what counts."""
    odd = [
        f"{site.module}.{site.parameter}: {attribute} holds {tensor.dtype}"
        for site, adapter, values in found
        for attribute, tensor in values.items()
        if tensor.is_floating_point() != getattr(adapter, attribute).is_floating_point()
    ]
    if odd:
        raise AdapterMismatchError(
            f"{len(odd)} tensors of the adapter's file are of a type that cannot stand for what is trained: "
            f"{some(odd, 6, '; ')}. Save its weights as floating-point numbers."
        )


def check_same(state: AdapterState, name: str, targets: Sequence[tuple[Site, Adapter, Mapping[str, Tensor]]]) -> None:
    """Raise AdapterMismatchError where a file's adapter is another one than that of a name: numbers alone say less."""
    problems = [problem for site, adapter, values in targets for problem in _changes(site, adapter, values)]
    held = {id(adapter) for _, adapter, _ in targets}
    problems += [
        f"the file lacks {full_name(module, adapter.parameter)}"
        for module, _, _, adapter in state.carried(name)
        if id(adapter) not in held
    ]
    if problems:
        raise AdapterMismatchError(
            f"the file is no state of the adapter {name!r}: {some(problems, 6, '; ')}. Give the adapter the "
            "config it was saved with, or load the file under another name."
        )


def _changes(site: Site, adapter: Adapter, values: Mapping[str, Tensor]) -> list[str]:
    """Return in what a file's adapter differs from one that is there, besides its numbers."""
    if site.shares:  # a tied table's, which is looked at where it is held
        return []
    where, gone = f"{site.module}.{site.parameter}", site.row.adapter.left_out(site)
    sizes = {attribute: size for attribute, size in adapter.sizes().items() if attribute not in gone}
    found = {attribute: tuple(tensor.shape) for attribute, tensor in values.items()}
    if found != sizes:
        return [f"{where} is {found} in the file, {sizes} on the model"]
    return [f"{where}{difference}" for difference in adapter.conflicts(site)]
