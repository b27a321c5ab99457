"""Looking at an adapter without its base: whether loading opens it, and what its config and its weights' heads say.

Of a repo of the Hub the heads alone are fetched, so that values which are not finite are found on this machine only.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import AdapterFileError, ConfigError, HubError, LoRAError
from ...files import hub_files
from ...files.names import WEIGHTS_NAME, WEIGHTS_NAMES
from ...files.sources import Source
from ...files.strict_json import read_json
from ...files.tensors import TensorEntry, head_of, head_size, notes_of, read_head
from ...files.transaction import find_config
from ...variants.table import formula_named, scaling_of
from .. import adapterhub
from ..contents import Contents
from ..notes import BASE_NOTE, read_base_note
from ..opening import open_adapter
from .findings import Finding, of_base, of_coverage, of_tensors
from .layout import Layout, layout_of, ranks_of
from .report import Inspection

_FIRST = 1 << 16  # bytes of a file on the Hub, which hold the head of nearly every adapter
_MOST = 100_000_000  # bytes of a head; the format's own limit


@dataclass(frozen=True)
class Looked:
    """What is seen of an adapter without its base.

    files: of the place, with their sizes in bytes; weights: those that hold tensors. config: adapter_config.json as it
    is written; form: whose it is. notes: hf_lora's, in the weights' file. contents: what loading reads, None where it
    refuses; findings: why it does, and of pickles.
    """

    source: Source
    files: Mapping[str, int]
    weights: Sequence[str]
    config: Mapping[str, Any]
    form: str
    notes: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    contents: Contents | None
    findings: tuple[Finding, ...]

    @cached_property
    def layout(self) -> Layout:
        """The tensors, sorted."""
        return layout_of(self.tensors)


@contextmanager
def looked_at(name: str | os.PathLike[str], **hub_kwargs: Any) -> Iterator[Looked]:
    """Give what is seen of an adapter inside a `with` block. Raises what `inspect_adapter` raises."""
    source = Source.of(name, hub_kwargs)
    files = _files(source)
    with ExitStack() as stack:
        if not source.is_local:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            source = _Heads(source.name, source.hub, files, Path(folder))
        yield _looked_at(source, files)


def inspect_adapter(name: str | os.PathLike[str], **hub_kwargs: Any) -> Inspection:
    """Return what a directory, a .safetensors file or a repo of the Hub holds, without loading the base.

    What loading refuses is a finding. Of weights on the Hub only the heads are fetched.
    hub_kwargs: revision, subfolder, token, cache_dir, force_download, local_files_only.
    Raises AdapterFileError where there is no adapter or nothing of it can be read, HubError.
    """
    with looked_at(name, **hub_kwargs) as seen:
        return _inspected(seen)


@dataclass(frozen=True)
class _Heads(Source):
    """A repo of the Hub of whose .safetensors files the heads alone are fetched: their tensors are on "meta".

    sizes: of its files. folder: where each head is written, with nothing behind it, in a file of the whole one's size.
    """

    sizes: Mapping[str, int]
    folder: Path

    def find(self, file: str) -> Path | None:
        if not file.endswith(".safetensors"):
            return super().find(file)
        path, size = self.folder / file, self.sizes.get(file)
        if size is None:
            return None
        if not path.exists():
            head = hub_files.fetch_range(self.name, file, 0, min(_FIRST, size), **self.hub)
            needed = min(head_size(head), size, _MOST)
            if needed > len(head):
                head += hub_files.fetch_range(self.name, file, len(head), needed, **self.hub)
            path.write_bytes(head)
            os.truncate(path, size)
        return path

    def tensors(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if path.suffix != ".safetensors":
            return super().tensors(path)
        with head_of(path) as file:
            tensors = {name: file.get_tensor(name).to("meta") for name in sorted(file.keys())}
            return tensors, notes_of(file.metadata() or {})


def _looked_at(source: Source, files: Mapping[str, int]) -> Looked:
    path = None if source.is_file else find_config(source)
    config = {} if path is None else read_json(path)
    weights, pickles = _weights(source, files)
    if path is None and not weights:
        open_adapter(source, {}, required=True)  # says what is there instead
    form, heads = _format(config), list[tuple[dict[str, TensorEntry], dict[str, Any]]]()
    try:
        heads = [_head(source, file) for file in weights]
    except AdapterFileError:  # loading says what is wrong with it
        if path is None:
            raise
    contents, refused = _opened(source, "weights" if path is not None else "config")
    tensors = {key: entry for entries, _ in heads for key, entry in entries.items()}
    if contents is not None and (pickles or form == "AdapterHub"):  # under PEFT's names
        tensors = {key: _entry(tensor) for key, tensor in contents.tensors.items()}
    notes = heads[0][1] if heads else {}
    return Looked(source, files, weights, config, form, notes, tensors, contents, (*refused, *pickles))


def _inspected(seen: Looked) -> Inspection:
    config, layout, tensors = seen.config, seen.layout, seen.tensors
    r, alpha = _number(config.get("r")), _number(config.get("lora_alpha"))
    refused = [finding for finding in seen.findings if finding.code != "pickle"]
    return Inspection(
        name=seen.source.name,
        format=seen.form or layout.names or "unknown",
        **_origin(config, seen.notes),
        task=str(config["task_type"]) if config.get("task_type") else None,
        variant=_variant(config, layout),
        r=r,
        alpha=alpha,
        scaling=scaling_of(config).of(alpha, r) if r and r > 0 and alpha is not None else None,
        ranks=dict(sorted(Counter(rank for parts in layout.adapted.values() for rank in {*ranks_of(parts)}).items())),
        targets=tuple(layout.targets()),
        saved={module: sum(prod(entry.shape) for entry in own) for module, own in layout.saved.items()},
        tensors=len(tensors),
        parameters=sum(prod(entry.shape) for entry in tensors.values()),
        dtypes=dict(sorted(Counter(entry.dtype for entry in tensors.values()).items())),
        size=sum(seen.files[file] for file in seen.weights),
        findings=(
            *refused,
            *_findings(config, seen.form, layout, seen.contents),
            *(finding for finding in seen.findings if finding.code == "pickle"),
        ),
    )


def _opened(source: Source, otherwise: str) -> tuple[Contents | None, list[Finding]]:
    """Return what loading reads, None where it refuses, and why it refuses. Raises HubError."""
    found: list[Finding] = []
    for ignore_unknown in (False, True):
        try:
            contents = open_adapter(source, {}, True, ignore_unknown=ignore_unknown)
            assert contents is not None
            read_base_note(contents.notes.get(BASE_NOTE))
            return contents, [finding._replace(code="unknown-keys") for finding in found]
        except HubError:
            raise
        except LoRAError as error:
            text = str(error).replace(f"{source.folder}/", "") if isinstance(source, _Heads) else str(error)
            code = "config" if isinstance(error, ConfigError) else otherwise
            found += [Finding(code, text, True)] if text not in [finding.text for finding in found] else []
            if code != "config":
                break
    return None, found


def _findings(config: Mapping[str, Any], form: str, layout: Layout, contents: Contents | None) -> Iterator[Finding]:
    """Yield what is to know of config and tensors; of AdapterHub's config its own reader says what is wrong."""
    if form == "AdapterHub":
        yield from of_tensors(layout, None, may_be_merged=True) if contents is not None else ()
        return
    parsed = None if contents is None else contents.config
    if "peft_type" in config:
        yield from of_base(config.get("base_model_name_or_path"))
    if layout.adapted or layout.saved:
        yield from of_tensors(layout, parsed, layout.names == "loralib" or bool(config.get("enable_lora")))
        yield from of_coverage(layout, parsed)


def _files(source: Source) -> dict[str, int]:
    """Return the files of a place (not those in folders below) with their sizes in bytes."""
    top = Path(source.name, source.hub.get("subfolder", ""))
    try:
        if source.is_local:
            inside = top.iterdir() if top.is_dir() else [top] if top.is_file() else []
            return {path.name: path.stat().st_size for path in sorted(inside) if path.is_file()}
    except OSError as error:
        raise AdapterFileError(f"{top} cannot be looked into: {error}") from None
    if not hub_files.is_repo_id(source.name):
        raise AdapterFileError(f"{source.missing}.")
    every = hub_files.list_files(source.name, **source.hub)
    return {file: size for file, size in every.items() if "/" not in file}


def _weights(source: Source, files: Mapping[str, int]) -> tuple[list[str], list[Finding]]:
    """Return the safetensors files that hold an adapter's tensors, and what to know where a pickle holds them."""
    if source.is_file:
        if not source.name.endswith(".safetensors"):
            raise AdapterFileError(
                f"{source.name} is no .safetensors file, and a pickle is not opened to look at it; name its folder."
            )
        return [*files], []
    names = [file for name in WEIGHTS_NAMES for file in (name, f"{name}.index.json")]  # in the order of loading
    found = next((file for file in (*names, *adapterhub.WEIGHTS) if file in files), "")
    if found.endswith(".safetensors"):
        return [found], []
    if found == f"{WEIGHTS_NAME}.index.json":
        return [file for file in files if file.startswith("adapter_model-") and file.endswith(".safetensors")], []
    if found:
        name = found.removesuffix(".index.json")
        text = f"{name} is a pickle: hf_lora reads it as data, but another tool that opens it may run its code"
        return [], [Finding("pickle", text)]
    return [], []


def _head(source: Source, file: str) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """Return the head of a safetensors file. Raises AdapterFileError, HubError."""
    path = Path(source.name) if source.is_file else source.find(file)
    if path is None:
        raise AdapterFileError(f"{file} of {source.name} is not there any more.")
    return read_head(path)


def _entry(tensor: Tensor) -> TensorEntry:
    """Return what a head would say of a tensor."""
    name = str(tensor.dtype).removeprefix("torch.").replace("uint", "u").replace("int", "i").replace("float", "f")
    return TensorEntry(name.upper(), tuple(tensor.shape))


def _origin(config: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return base, provenance and versions, from the config and from what hf_lora noted in the weights' file."""
    noted = _object(notes.get("base"))
    mapped = _object(config.get("auto_mapping"))
    base = {key: noted.get(key) for key in ("id", "revision", "commit", "class", "model_type")}
    base["id"] = config.get("base_model_name_or_path") or base["id"]
    base["revision"] = config.get("revision") or base["revision"]
    base["class"] = base["class"] or mapped.get("base_model_class")
    versions = {"peft": config.get("peft_version"), "hf_lora": noted.get("hf_lora")}
    return {
        "base": {key: str(value) for key, value in base.items() if value},
        "provenance": "fingerprint" in noted,
        "versions": {tool: str(version) for tool, version in versions.items() if version},
    }


def _format(config: Mapping[str, Any]) -> str:
    """Return whose config this is, "" where there is none."""
    if "peft_type" in config:
        row = formula_named(config["peft_type"])
        return f"{'hf_lora' if row is not None and not row.in_peft else 'PEFT'} ({config['peft_type']})"
    return "AdapterHub" if isinstance(config.get("config"), Mapping) else "unknown" if config else ""


def _variant(config: Mapping[str, Any], layout: Layout) -> str:
    """Return the formula, the scaling's paper and the start in words, "" where it is no LoRA."""
    if formula_named(config.get("peft_type", "LORA")) is None:
        return ""
    init, scaling = config.get("init_lora_weights"), scaling_of(config)
    words = [layout.formula(config).title, scaling.paper.short if scaling.paper else ""]
    words.append("with trained biases" if config.get("lora_bias") is True else "")
    words.append(f"started as {init}" if isinstance(init, str) else "")
    return ", ".join(filter(None, words))


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
