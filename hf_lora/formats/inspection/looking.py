"""Looking at an adapter without loading it: what its config and the heads of its files say, and what is odd.

No base is touched, no tensor is read and torch is not imported: of a file on the Hub its first bytes are fetched.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import AdapterFileError, ConfigError
from ...files import hub_files
from ...files.names import CONFIG_NAME, WEIGHTS_NAME
from ...files.privacy import is_repo_id
from ...files.safetensors_header import TensorEntry, header_size, read_header
from ...files.sources import Source
from ...variants.table import scaling_of
from ...wording import some
from .inspected import Inspection
from .layout import Layout, layout_of
from .suspicion import Finding, is_number, of_base, of_config, of_files, of_layout

__all__ = ["Inspection", "inspect_adapter"]

_INDEX = f"{WEIGHTS_NAME}.index.json"
_FIRST, _LARGEST_JSON = 1 << 16, 1 << 24  # bytes
_VARIANTS = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "loftq": "LoftQ",
    "eva": "EVA",
    "corda": "CorDA",
    "gaussian": "gaussian",
}


def inspect_adapter(name: str | os.PathLike[str], **hub_kwargs: Any) -> Inspection:
    """Return what a directory, a .safetensors file or a repo of the Hub holds, without loading it.

    hub_kwargs: revision, subfolder, token, cache_dir, force_download, local_files_only.
    Raises AdapterFileError or ConfigError where there is no adapter or it cannot be read, HubError.
    """
    name = os.fspath(name)
    place = _Place(Source.of(name, hub_kwargs))
    found: list[Finding] = []
    config = place.config(found)
    files = place.files
    weights = _weights(place, files, found)
    if config is None and not weights:
        inside = f", but adapters in {some(place.below(), 8)}; name one of them" if place.below() else ""
        raise AdapterFileError(f"{name} holds no {CONFIG_NAME} and no {WEIGHTS_NAME}{inside or ': no adapter'}.")
    tensors: dict[str, TensorEntry] = {}
    notes: dict[str, Any] = {}
    for file in weights:
        header = place.header(file)
        found += [Finding("twice", f"{key} lies in several files") for key in tensors.keys() & header.tensors.keys()]
        tensors |= header.tensors
        notes |= _notes(header.metadata, len(header.tensors) if len(weights) == 1 else None, found)
    layout = layout_of(tensors)
    found += _found(config, layout, bool(weights), files, weights)
    return _inspection(name, config or {}, layout, tensors, files, weights, notes, found)


def _found(
    config: Mapping[str, Any] | None, layout: Layout, read: bool, files: Mapping[str, int], weights: Iterable[str]
) -> Iterator[Finding]:
    """Yield what is odd, where the format is known well enough to tell."""
    if config is None:
        yield Finding("no-config", f"there is no {CONFIG_NAME}: nothing says the scaling, or which base this is for")
    elif "peft_type" not in config:
        yield Finding(
            "not-peft", f"the config has no peft_type, so it is not PEFT's; its keys: {', '.join(sorted(config))[:120]}"
        )
    elif config["peft_type"] != "LORA":
        yield Finding("not-lora", f"the adapter is PEFT's {config['peft_type']!r}; hf_lora reads LORA adapters")
    if config is not None and "peft_type" in config:
        yield from of_base(config.get("base_model_name_or_path"))
    if config is not None and config.get("peft_type") == "LORA":
        yield from of_config(config)
        if read:
            yield from of_layout(layout, config)
    yield from of_files(files, weights)


def _inspection(
    name: str,
    config: Mapping[str, Any],
    layout: Layout,
    tensors: Mapping[str, TensorEntry],
    files: Mapping[str, int],
    weights: tuple[str, ...],
    notes: Mapping[str, Any],
    found: list[Finding],
) -> Inspection:
    noted = _object(notes.get("base"))
    low_rank = config.get("peft_type") == "LORA" or bool(layout.adapted)
    r, alpha, dropout = (_number(config.get(key)) if low_rank else None for key in ("r", "lora_alpha", "lora_dropout"))
    return Inspection(
        name=name,
        format=_format(config, layout),
        versions={
            k: str(v) for k, v in {"peft": config.get("peft_version"), "hf_lora": noted.get("hf_lora")}.items() if v
        },
        base=_base(config, noted),
        task=str(config["task_type"]) if config.get("task_type") else None,
        variant=_variant(config, layout) if low_rank else "",
        r=r,
        alpha=alpha,
        scaling=None if not r or r < 0 or alpha is None else scaling_of(config).of(alpha, r),
        dropout=dropout,
        ranks=dict(sorted(Counter(rank for one in layout.adapted.values() for rank in one.ranks).items())),
        targets=tuple(layout.targets()),
        saved={m: sum(math.prod(e.shape) for e in p.values()) for m, p in layout.saved.items()}
        | {f"{m} (rows)": math.prod(e.shape) for m, e in layout.tokens.items()},
        tensors=len(tensors),
        parameters=sum(math.prod(e.shape) for e in tensors.values()),
        dtypes=dict(sorted(Counter(e.dtype for e in tensors.values()).items())),
        size=sum(files.get(file, 0) for file in weights),
        weights=weights,
        provenance=_provenance(noted),
        findings=tuple(found),
    )


def _base(config: Mapping[str, Any], noted: Mapping[str, Any]) -> dict[str, str]:
    """Return id, revision, commit, class and model type of the base, those that are known."""
    base = {
        "id": config.get("base_model_name_or_path") or noted.get("id"),
        "revision": config.get("revision") or noted.get("revision"),
        "commit": noted.get("commit"),
        "class": noted.get("class") or _object(config.get("auto_mapping")).get("base_model_class"),
        "model_type": noted.get("model_type"),
    }
    return {key: str(value) for key, value in base.items() if value}


class _Place:
    """Where the files lie, read no further than asked."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.top = Path(source.name, source.hub.get("subfolder", ""))

    @cached_property
    def files(self) -> dict[str, int]:
        """The files there (in their folder alone) with their sizes in bytes."""
        try:
            if self.source.is_file:
                return {self.top.name: self.top.stat().st_size}
            if self.source.is_local:
                inside = self.top.iterdir() if self.top.is_dir() else ()
                return {p.name: p.stat().st_size for p in sorted(inside) if p.is_file()}
        except OSError as error:
            raise AdapterFileError(f"{self.top} cannot be looked into: {error}") from None
        if not is_repo_id(self.source.name):
            raise AdapterFileError(f"{self.source.missing}.")
        every = hub_files.list_files(self.source.name, **self.source.hub)
        return {file: size for file, size in every.items() if "/" not in file}

    def below(self) -> list[str]:
        """Return the folders of a local directory that hold adapters."""
        return sorted(path.parent.name for path in self.top.glob(f"*/{CONFIG_NAME}")) if self.top.is_dir() else []

    def config(self, found: list[Finding]) -> dict[str, Any] | None:
        """Return the adapter_config.json, None where there is none. Raises AdapterFileError."""
        path = None if self.source.is_file else self.source.find(CONFIG_NAME)
        return None if path is None else self.json(path, found)

    def json(self, path: Path, found: list[Finding]) -> dict[str, Any]:
        """Return the object that a JSON file holds; keys that it holds twice are findings."""
        twice: list[str] = []

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            twice.extend(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
            return dict(pairs)

        try:
            with open(path, "rb") as file:
                raw = file.read(_LARGEST_JSON + 1)
            if len(raw) > _LARGEST_JSON:
                raise ValueError(f"it is larger than {_LARGEST_JSON} bytes")
            value = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
        except (ValueError, OSError, RecursionError) as error:
            raise AdapterFileError(f"{path.name} of {self.source.name} cannot be read as JSON: {error}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{path.name} of {self.source.name} holds a JSON {type(value).__name__}, not an object.")
        found += [Finding("duplicates", f"{path.name} has the key {key!r} twice") for key in twice]
        return value

    def header(self, file: str) -> Any:
        """Return the head of a safetensors file. Raises AdapterFileError, HubError."""
        size, where = self.files[file], f"{file} of {self.source.name}"
        head = self._bytes(file, 0, min(_FIRST, size))
        needed = header_size(head, size, where)
        if needed > len(head):
            head += self._bytes(file, len(head), needed)
        return read_header(head, size, where)

    def _bytes(self, file: str, start: int, stop: int) -> bytes:
        if not self.source.is_local:
            return hub_files.fetch_range(self.source.name, file, start, stop, **self.source.hub)
        try:
            with open(self.top if self.source.is_file else self.top / file, "rb") as content:
                content.seek(start)
                return content.read(stop - start)
        except OSError as error:
            raise AdapterFileError(f"{file} of {self.source.name} cannot be read: {error}") from None


def _weights(place: _Place, files: Mapping[str, int], found: list[Finding]) -> tuple[str, ...]:
    """Return the safetensors files that hold an adapter's tensors; empty where there are none to look into."""
    if place.source.is_file:
        if not place.source.name.endswith(".safetensors"):
            raise AdapterFileError(
                f"{place.source.name} is no .safetensors file: a pickle is not opened to look at it."
            )
        return tuple(files)
    own = tuple(f for f in ("adapter_model.safetensors", "adapter.safetensors") if f in files)[:1]
    shards = tuple(f for f in files if f.startswith("adapter_model-") and f.endswith(".safetensors"))
    if own and shards:
        found.append(Finding("twice", f"{own[0]} lies beside {len(shards)} shards of an adapter"))
    if shards and _INDEX not in files and not own:
        found.append(Finding("shards", f"{len(shards)} shards lie there without their {_INDEX}"))
    if not own and not shards:
        found.append(
            Finding("no-weights", "there is no adapter_model.safetensors, so that nothing of the weights is seen")
        )
    return own or shards


def _notes(metadata: Mapping[str, str], tensors: int | None, found: list[Finding]) -> dict[str, Any]:
    """Return what hf_lora noted in a file's metadata."""
    if "hf_lora" not in metadata:
        return {}
    try:
        notes = json.loads(metadata["hf_lora"])
    except (ValueError, RecursionError):
        notes = None
    if not isinstance(notes, dict):
        found.append(Finding("notes", "the notes of hf_lora in the file's metadata are damaged"))
        return {}
    if tensors is not None and notes.get("tensors", tensors) != tensors:
        found.append(Finding("notes", f"the file holds {tensors} tensors, {notes['tensors']!r} were saved in it"))
    return notes


def _provenance(noted: Mapping[str, Any]) -> str:
    known = noted.get("fingerprint")
    if not isinstance(known, Mapping) or not isinstance(known.get("grids"), str):
        return ""
    count = len(known["grids"])
    return f"fingerprint of {count - known['grids'].count('.')} weights"


def _format(config: Mapping[str, Any], layout: Layout) -> str:
    if "peft_type" in config:
        return f"PEFT ({config['peft_type']})"
    if isinstance(config.get("config"), Mapping) and "model_name" in config:
        return "AdapterHub"
    if "lora_parameters" in config or "adapter_path" in config:
        return "MLX"
    return "unknown" if config else layout.names or "unknown"


def _variant(config: Mapping[str, Any], layout: Layout) -> str:
    init = config.get("init_lora_weights")
    words = [layout.formula(config).title, scaling.paper.short if (scaling := scaling_of(config)).paper else ""]
    words.append("with trained biases" if config.get("lora_bias") is True else "")
    words.append(f"started as {_VARIANTS.get(init.split('_')[0], init)}" if isinstance(init, str) else "")
    return ", ".join(filter(None, words))


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
