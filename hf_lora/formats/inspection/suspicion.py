"""What is odd about an adapter, as far as its config, the heads of its files and their names tell.

Each finding has a code for programs and a sentence for people. Nothing is loaded, so that what only values show (a
zero lora_B, a number that is not finite) is not found here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...config.expressions import may_hang
from ...config.fields import Fields
from ...config.keys import INERT, UNSUPPORTED
from ...variants.table import FORMULAS, switches
from ...wording import some
from .layout import Layout, Target

__all__ = ["KNOWN_KEYS", "Finding", "is_number", "of_base", "of_config", "of_files", "of_layout"]

KNOWN_KEYS = frozenset({f.name for f in dataclasses.fields(Fields)} - {"other"} | {"peft_type", *UNSUPPORTED, *INERT})
_EMPTY: tuple[Any, ...] = (None, False, {}, [], "")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_SECRET = re.compile(r"(^|/)(training_args\.bin|\.env|token|\.netrc|\.git-credentials)$")
_FOLDER = re.compile(
    r"(models?|checkpoints?|outputs?|results?|runs?|weights|pretrained|ckpts?|data|tmp|content)/", re.I
)
_PLACEHOLDER = re.compile(
    r"(?i)(your|<|path/to|placeholder|changeme|^(base_?|my_?|the_?)?model(_name)?$|^none$|^null$|^base$)"
)
_TABLES = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|shared|tok_embeddings|lm_head|embed_out)$")
_SEQ_CLS_HEADS = ["classifier", "score"]  # PEFT lists both, whichever of them the model has
_HUGE_RANK, _HUGE_TABLE = 512, 16_384
_BEYOND = 1e100


class Finding(NamedTuple):
    """One odd thing: its kind, for programs, and a sentence."""

    code: str
    text: str


def of_base(base: Any) -> Iterator[Finding]:
    """Yield what is odd about the name of the base."""
    if base is None or base == "":
        yield Finding("base-unknown", "the config names no base; it must be given by hand (base_model=...)")
    elif not isinstance(base, str):
        yield Finding("base-unknown", f"base_model_name_or_path is {base!r}, no name")
    elif _PLACEHOLDER.search(base):
        yield Finding("base-placeholder", f"the base {base!r} looks like a placeholder")
    elif base.startswith(("/", ".", "~", "\\")) or base.count("/") > 1 or "\\" in base or re.match(r"[A-Za-z]:", base):
        yield Finding("base-local", f"the base {base!r} is a path on somebody's machine")
    elif _FOLDER.match(base):
        yield Finding("base-local", f"the base {base!r} looks like somebody's folder rather than a repo of the Hub")


def of_config(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is odd about an adapter_config.json of PEFT's LoRA."""
    r, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    if not is_number(r) or r < 1 or int(r) != r:
        yield Finding("rank", f"r is {r!r}, which is no rank")
    elif r > _HUGE_RANK:
        yield Finding("rank", f"r is {r}, more than {_HUGE_RANK}")
    if not is_number(alpha) or alpha <= 0:
        yield Finding(
            "alpha", f"lora_alpha is {alpha!r}" + (", so that the adapter adds nothing" if alpha == 0 else "")
        )
    dropout = config.get("lora_dropout", 0.0)
    if not is_number(dropout) or not 0 <= dropout < 1:
        yield Finding("dropout", f"lora_dropout is {dropout!r}, no probability in [0, 1)")
    if config.get("inference_mode") is False:
        yield Finding("inference-mode", "inference_mode is false: saved by hand, or by a run that was cut off")
    if config.get("fan_in_fan_out") not in (None, True, False):
        yield Finding("setting", f"fan_in_fan_out is {config['fan_in_fan_out']!r}")
    for key in UNSUPPORTED.keys() & config.keys():
        if config[key] is not None and config[key] != UNSUPPORTED[key]:
            yield Finding("not-built", f"{key}={_short(config[key])} asks for something that hf_lora does not build")
    known = KNOWN_KEYS | {*switches()}
    unknown = sorted(k for k in config.keys() - known if config[k] not in _EMPTY)
    if unknown:
        yield Finding("unknown-keys", f"keys that no LoRA of PEFT's has: {some(unknown)}")
    for key in ("target_modules", "modules_to_save"):
        names = config.get(key)
        if isinstance(names, list) and len(set(map(str, names))) < len(names):
            yield Finding("duplicates", f"{key} names some modules twice: {some(map(str, names))}")
    if not config.get("target_modules") and not config.get("target_parameters"):
        yield Finding(
            "targets", f"target_modules is {config.get('target_modules')!r}: only the file says what is adapted"
        )


def of_layout(layout: Layout, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield where a file's tensors do not agree with each other, or with the config."""
    if not layout.adapted:
        yield Finding("no-adapter", "the file holds no low-rank tensors")
    yield from _pairs(layout, config)
    yield from _targets(layout, config)
    yield from _coverage(layout.targets(), config.get("layers_to_transform"))
    yield from _saved(layout, config)
    yield from _dtypes(layout)
    yield from _formulas(layout, config)


def _formulas(layout: Layout, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield where the tensors that a formula has of its own and the config's switch for it do not agree."""
    for row in FORMULAS.values():
        held, asked = layout.holding(row), config.get(row.switch, False)
        if row.own_tensor and (bool(held) != bool(asked) or 0 < len(held) < len(layout.adapted)):
            what = f"{len(held)} of {len(layout.adapted)} layers have {row.own_tensor}"
            yield Finding(row.name, f"{what}, but {row.switch} is {asked!r}")


def _pairs(layout: Layout, config: Mapping[str, Any]) -> Iterator[Finding]:
    alone, uneven, other = [], [], []
    experts = bool(config.get("target_parameters"))
    for one in layout.adapted.values():
        if not {"lora_A", "lora_B"} <= one.parts.keys():
            alone.append(f"{one.module} has only {' and '.join(sorted(one.parts))}")
        elif len(one.ranks) != 1:
            uneven.append(f"{one.module} ({' and '.join(map(str, sorted(one.ranks)))})")
        else:
            (rank,), wanted = one.ranks, _by_pattern(config.get("rank_pattern"), one.module, config.get("r", 8))
            fits = rank == wanted or (experts and is_number(wanted) and wanted > 0 and rank % wanted == 0)
            if not fits and layout.names == "PEFT":
                other.append(f"{one.module} ({rank}, not {wanted})")
    if alone:
        yield Finding("missing-pair", f"{len(alone)} layers lack half of a pair: {some(alone)}")
    if uneven:
        yield Finding("rank", f"A and B differ in rank in {some(uneven)}")
    if other:
        yield Finding("rank", f"{len(other)} layers have another rank than the config says: {some(other)}")


def _targets(layout: Layout, config: Mapping[str, Any]) -> Iterator[Finding]:
    modules = {one.module for one in layout.adapted.values()}
    wanted, parameters = config.get("target_modules"), config.get("target_parameters")
    owners = [str(name).rpartition(".")[0] for name in parameters] if isinstance(parameters, list) else []
    if isinstance(wanted, str):
        if wanted in ("all-linear", "auto", "attention"):
            return
        if may_hang(wanted):
            yield Finding("targets", f"target_modules {_short(wanted)} could take for ever on a long name")
            return
        try:
            expression = re.compile(wanted)
        except re.error as error:
            yield Finding("targets", f"target_modules {_short(wanted)} is no regular expression: {error}")
            return
        outside = sorted(m for m in modules if not expression.fullmatch(m))
        unmatched = [wanted] if modules and len(outside) == len(modules) else []
    elif isinstance(wanted, list) and wanted:
        names = [str(name) for name in wanted]
        unmatched = [n for n in names if not any(_ends(m, n) for m in modules)]
        outside = sorted(m for m in modules if not any(_ends(m, n) for n in names))
    else:
        return
    if modules and unmatched:
        yield Finding("targets", f"targets without a tensor in the file: {some(unmatched)}")
    outside = [m for m in outside if not any(_ends(m, owner) for owner in owners) and m not in layout.tokens]
    if outside and unmatched != [wanted]:
        yield Finding("targets", f"{len(outside)} adapted layers that the config does not name: {some(outside)}")


def _coverage(targets: Sequence[Target], layers: Any) -> Iterator[Finding]:
    """Yield which layers lack a target that others have.

    A layer of another build (linear attention, a state space, experts) holds a target that these others lack: that is
    not odd, nor is what recurs.
    """
    listed = layers if isinstance(layers, list) else [layers]
    chosen = None if layers is None else {number for number in listed if isinstance(number, int)}
    uneven = []
    for target in targets:
        stack = target.name.partition("*")[0]
        others = [set(t.layers) for t in targets if t.name.partition("*")[0] == stack]
        elsewhere = set().union(*(held for held in others if not held & set(target.layers)))
        absent = [i for i in target.absent if i not in elsewhere and (chosen is None or i in chosen)]
        if target.layers and absent and not _is_regular(target.layers, target.of):
            numbers = some(absent, 8)
            uneven.append(f"{target.name} lacks {numbers} of {target.of}")
    if uneven:
        yield Finding("coverage", f"layers left out: {some(uneven, between='; ')}")


def _saved(layout: Layout, config: Mapping[str, Any]) -> Iterator[Finding]:
    listed = config.get("modules_to_save")
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    held = [
        m
        for m, parameters in layout.saved.items()
        if set(parameters) != {"bias"} or config.get("bias") in (None, "none")
    ]
    unlisted = sorted({m for m in held if not any(_ends(m, n) or _inside(m, n) for n in names)})
    if unlisted:
        yield Finding("saved", f"modules saved whole that the config does not list: {some(unlisted)}")
    lacking = [n for n in dict.fromkeys(names) if not any(_ends(m, n) or _inside(m, n) for m in layout.saved)]
    if lacking and set(lacking) < set(_SEQ_CLS_HEADS) <= set(names):
        lacking = []
    if lacking and (layout.adapted or layout.saved):
        yield Finding("saved", f"modules_to_save without a tensor in the file: {some(lacking)}")
    for module, parameters in layout.saved.items():
        for parameter, entry in parameters.items():
            if len(entry.shape) == 2 and (_TABLES.search(module) or max(entry.shape) >= _HUGE_TABLE):
                size = (entry.end - entry.begin) / 1e6
                yield Finding(
                    "whole-table", f"{module}.{parameter} is saved whole: {_times(entry.shape)}, {size:,.1f} MB"
                )


def _dtypes(layout: Layout) -> Iterator[Finding]:
    entries = [e for one in layout.adapted.values() for e in one.parts.values()]
    found = sorted({e.dtype for e in entries})
    if len(found) > 1:
        yield Finding("dtype", f"the low-rank tensors are of several dtypes: {', '.join(found)}")
    if odd := [d for d in found if d not in ("F32", "F16", "BF16", "F64")]:
        yield Finding("dtype", f"low-rank tensors in {', '.join(odd)}, which nobody trains")
    empty = sorted(path for path, one in layout.adapted.items() if any(0 in e.shape for e in one.parts.values()))
    if empty:
        yield Finding(
            "empty", f"{len(empty)} layers have empty tensors (a sharded run that saved its shards?): {some(empty)}"
        )


def of_files(files: Mapping[str, int], weights: Iterable[str]) -> Iterator[Finding]:
    """Yield which files beside an adapter's own do not belong there. files: name -> size in bytes."""
    own = set(weights)
    secret = sorted(f for f in files if _SECRET.search(f))
    if secret:
        yield Finding("secret", f"{', '.join(secret)} may hold a token in clear")
    pickles = sorted(f for f in files if f.endswith(_PICKLES) and f not in secret)
    if pickles:
        yield Finding("pickle", f"pickles, which can run code when they are opened: {some(pickles)}")
    whole = sorted(
        f for f in files if re.fullmatch(r"(model|pytorch_model)[\w.-]*\.(safetensors|bin)", f) and f not in own
    )
    if whole:
        yield Finding("base-weights", f"weights of a whole model lie beside the adapter: {some(whole)}")


def _by_pattern(patterns: Any, name: str, default: Any) -> Any:
    """Return the value of the first pattern that the end of a name matches, on whole dotted words (PEFT's rule)."""
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        try:
            if not may_hang(pattern) and re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error:
            continue
    return default


def _is_regular(layers: Sequence[int], of: int) -> bool:
    """Return whether some layers recur with a period, as in models that mix kinds of layers."""
    held = set(layers)
    periods = range(2, min(of // 2, 16) + 1)
    return any(all((i in held) == (i % period in held) for i in range(of)) for period in periods)


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith("." + name)


def _inside(module: str, name: str) -> bool:
    return f".{name}." in f".{module}."


def is_number(value: Any) -> bool:
    """Return whether a value is a number that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _BEYOND


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
