"""What the card's template asks for, as text: about the adapter, its training, its results; None where not known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData
from torch import Tensor

from ..._version import __version__
from ...config.lora_config import LoRAConfig
from ...files.names import WEIGHTS_NAMES
from ...files.privacy import is_private, public_name, public_setting
from ...layers.specialising import base_of
from ...variants.papers import Paper
from ...variants.table import LORA, scaling_of
from .measured import measured
from .metadata import papers_of
from .snippets import CardSubject, snippets
from .training_facts import TrainingFacts

__all__ = ["KEPT", "fill", "values"]

# Parts that only a training run or a user knows: without news they stay as they are.
KEPT = ("training", "results")
_SHOWN = 12


def values(
    path: Path,
    subject: CardSubject,
    tensors: Mapping[str, Tensor],
    facts: TrainingFacts | None,
    data: ModelCardData | None,
) -> dict[str, str | None]:
    """Return the template's values by name. path: where the card goes, beside the adapter's files."""
    papers = papers_of(subject.config)
    return {
        "title": _title(subject),
        "about": _about(subject, tensors),
        "results": _results(facts, data),
        "training": _training(facts),
        "adapter": _adapter(path, subject, tensors),
        "versions": _versions(subject.config),
        "papers": "\n".join(f"* {_cited(paper)}" for paper in papers.values()),
        "bibtex": "\n".join(paper.bibtex(name) for name, paper in papers.items()),
        **snippets(subject),
    }


def fill(templates: Mapping[str, str], found: Mapping[str, str | None]) -> dict[str, str]:
    """Return the card's parts; one that lacks a value is empty, and one of KEPT left out."""
    result = {}
    for name, text in templates.items():
        if all(found[key] is not None for key in re.findall(r"\$\{(\w+)\}", text)):
            result[name] = Template(text).substitute(found)
        elif name not in KEPT:
            result[name] = ""
    return result


def _title(subject: CardSubject) -> str:
    name = subject.name or (subject.repo or "").rpartition("/")[2]
    of_base = f" for {subject.base}" if subject.base else ""
    return f"{_cell(name)}: a LoRA adapter{of_base}" if name else f"LoRA adapter{of_base}"


def _about(subject: CardSubject, tensors: Mapping[str, Tensor]) -> str:
    base = (
        f"[{subject.base}](https://huggingface.co/{subject.base})" if subject.base else "a base that is not named here"
    )
    what = f"`{base_of(type(subject.model)).__name__}`"
    task = f" ({subject.task.tag})" if subject.task and subject.task.tag else ""
    count, every = _counts(subject.model, tensors)
    share = f", {count / every:.2%} of the model's {every:,d}" if count < every else ""  # the base may be elsewhere
    paper = papers_of(subject.config)[LORA.name].link
    return (
        f"A low-rank adapter ([LoRA]({paper})) for {base} as {what}{task}. It holds what was trained, "
        f"{count:,d} parameters{share}; everything else comes from the base."
    )


def _results(facts: TrainingFacts | None, data: ModelCardData | None) -> str | None:
    found: list[EvalResult] = list(data.get("eval_results") or ()) if data is not None else []
    rows = [
        (
            _cell(r.metric_name or r.metric_type),
            _number(r.metric_value),
            _cell(" ".join(filter(None, (public_name(r.dataset_name), r.dataset_split)))),
        )
        for r in found
        if not is_private(str(r.metric_value))
    ]
    known = {r.metric_type for r in found}
    ours = [result for result in measured(facts) if result.type not in known] if facts else []
    rows += [(_cell(str(result)), _number(result.value), _cell(result.split or "")) for result in ours]
    if not rows:
        return None
    if not any(row[2] for row in rows):
        return _table(("metric", "value"), [row[:2] for row in rows])
    return _table(("metric", "value", "data"), rows)


def _training(facts: TrainingFacts | None) -> str | None:
    settings = {} if facts is None else {k: public_setting(k, v) for k, v in facts.hyperparameters.items()}
    rows = [(f"`{_cell(key)}`", _cell(str(value))) for key, value in settings.items() if value is not None]
    return _table(("setting", "value"), rows) if rows else None


def _adapter(path: Path, subject: CardSubject, tensors: Mapping[str, Tensor]) -> str:
    c = subject.config
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    scaling = c.scaling_of("")
    rows = [
        ("variant", ", ".join(paper.short for paper in papers_of(c).values())),
        ("rank `r`", str(c.r)),
        ("`lora_alpha`", f"{c.lora_alpha:g}"),
        ("scaling", f"{scaling:.4g} ({scaling_of(c).said})"),
        ("ranks of their own", _patterns(c.rank_pattern)),
        ("alphas of their own", _patterns(c.alpha_pattern)),
        ("dropout", f"{c.lora_dropout:g}"),
        ("targets", _names(c.target_modules)),
        ("not adapted", _names(c.exclude_modules)),
        ("target parameters", _names(c.target_parameters)),
        ("trained in full", _names(c.modules_to_save)),
        ("token rows trained", _token_rows(c)),
        ("biases trained", "" if c.bias == "none" and not c.lora_bias else "of B" if c.lora_bias else c.bias),
        ("initialisation", _cell(str(c.init_lora_weights)) if isinstance(c.init_lora_weights, str) else ""),
        ("tensors", f"{len(tensors)}, {', '.join(sorted(kinds))}"),
        ("size", _size(path, tensors)),
    ]
    return _table(("", ""), [row for row in rows if row[1]])


def _versions(config: LoRAConfig) -> str:
    peft = config.other.get("peft_version")
    rows = [
        ("hf_lora", __version__),
        ("transformers", transformers.__version__),
        ("torch", str(torch.__version__)),
        ("file format", "PEFT (`adapter_config.json`, `adapter_model.safetensors`)"),
        ("first saved by PEFT", _cell(str(peft)) if peft and not is_private(str(peft)) else ""),
    ]
    return _table(("", ""), [row for row in rows if row[1]])


def _cited(paper: Paper) -> str:
    first = paper.authors.partition(",")[0]
    others = " et al." if " and " in paper.authors else ""
    return f"{first}{others} {paper.year}, [{paper.title}]({paper.link})"


def _counts(model: Any, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many parameters this adapter has, and how many it and the base have together."""
    adapters = {id(p) for layer in model._lora.layers.values() for p in layer.adapters.parameters()}
    base = sum(p.numel() for p in model.parameters() if id(p) not in adapters)
    count = sum(tensor.numel() for tensor in tensors.values())
    return count, base + count


def _size(path: Path, tensors: Mapping[str, Tensor]) -> str:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    file = path.parent / WEIGHTS_NAMES[0]
    on_disk = f" ({file.stat().st_size:,d} bytes on disk)" if file.is_file() else ""
    return f"{size:,d} bytes of tensors{on_disk}"


def _names(spec: str | Sequence[str] | None) -> str:
    names = [spec] if isinstance(spec, str) else list(spec or ())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{_cell(name)}`" for name in names[:_SHOWN]) + more


def _patterns(patterns: Mapping[str, float]) -> str:
    shown = ", ".join(f"`{_cell(name)}`: {value:g}" for name, value in list(patterns.items())[:_SHOWN])
    span = f" and {len(patterns) - _SHOWN} more, " if len(patterns) > _SHOWN else ""
    return shown + (f"{span}{min(patterns.values()):g} to {max(patterns.values()):g}" if span else "")


def _token_rows(config: LoRAConfig) -> str:
    tokens = config.trainable_token_indices
    tables = tokens.values() if isinstance(tokens, Mapping) else [tokens or ()]
    count = sum(len(rows) for rows in tables)
    return str(count) if count else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return _cell(str(value))
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def _cell(text: str) -> str:
    """Return a text that stays within a table's cell and opens no comment or code."""
    text = " ".join(text.split()).replace("<", "&lt;").replace("`", "'")
    return text.replace("|", "\\|")
