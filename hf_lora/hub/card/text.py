"""The text that hf_lora generates for a card: the template, filled with what is known of an adapter."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor

from ..._version import __version__
from ...config.lora_config import LoRAConfig
from ...errors import some
from ...files.privacy import hub_id, public_setting
from ...formats.notes import described_recipe
from ...kinds.quantised import count
from ...variants.table import scaling_of
from . import generated
from .metadata import label, papers_of
from .subject import CardSubject, labels_of, peft_class, peft_refusal, vllm_rank

# In an installed package, and in a checkout.
_TEMPLATES = (Path(__file__).parent / "adapter.md", Path(__file__).parents[3] / "model_cards/templates/adapter.md")
_SHOWN = 12


def text_of(
    subject: CardSubject,
    tensors: Mapping[str, Tensor],
    weights: Path,
    name: str | None,
    hyperparameters: Mapping[str, Any],
    results: Sequence[EvalResult],
    before: str,
) -> str:
    """Return a card's generated text.

    weights: the adapter's file, whose size is told where it is there. name: the model's, None for none. before: what
    was generated for these weights: what is known at the end of a training alone is taken over where there is no news.
    """
    template = next(path for path in _TEMPLATES if path.is_file())
    card = ModelCard.from_template(
        ModelCardData(),
        template_path=str(template),
        title=_title(subject, name, before),
        subject=subject,
        address=subject.repo or "path/or/repo-of-this-adapter",
        base=subject.base or "path/or/repo-of-its-base",
        parameters=_parameters(subject.model, tensors),
        peft_class=peft_class(subject),
        peft_refusal=peft_refusal(subject),
        labels=labels_of(subject.model),
        vllm_rank=vllm_rank(subject),
        results=_results(results) or generated.section(before, "Results"),
        training=_training(hyperparameters) or generated.section(before, "Training"),
        adapter=_adapter(weights, subject, tensors),
        versions={"hf_lora": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
        papers=papers_of(subject.config),
    )
    return card.text.strip("\n") + "\n"


def repo_in(text: str) -> str | None:
    """Return the repo that a generated text loads the adapter from."""
    found = re.search(r'LoRAModel\.from_pretrained\("([^"]+)"', text)
    return hub_id(found[1]) if found else None


def _title(subject: CardSubject, name: str | None, before: str) -> str:
    known = re.match(r"# (.+): a LoRA adapter", before)
    name = _cell(name) if name else known[1] if known else (subject.repo or "").rpartition("/")[2]
    what = f"{name}: a LoRA adapter" if name else "LoRA adapter"
    return f"{what} for {subject.base}" if subject.base else what


def _parameters(model: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return how many parameters this adapter has, and their share of its and the base's (which may be elsewhere)."""
    adapters = {id(p) for layer in model._lora.layers.values() for p in layer.adapters.parameters()}
    base = sum(count(p) for p in model.parameters() if id(p) not in adapters)
    own = sum(tensor.numel() for tensor in tensors.values())
    share = f", {own / (base + own):.2%} of the model's {base + own:,d}" if base else ""
    return f"{own:,d} parameters{share}"


def _results(results: Iterable[EvalResult]) -> str | None:
    rows = [
        (label(r), _number(r.metric_value), " ".join(filter(None, (r.dataset_name, r.dataset_split)))) for r in results
    ]
    return _table(("metric", "value", "data"), rows) if rows else None


def _training(hyperparameters: Mapping[str, Any]) -> str | None:
    settings = {key: public_setting(key, value) for key, value in hyperparameters.items()}
    rows = [(f"`{key}`", str(value)) for key, value in settings.items() if value is not None]
    return _table(("setting", "value"), rows) if rows else None


def _adapter(weights: Path, subject: CardSubject, tensors: Mapping[str, Tensor]) -> str:
    c, record = subject.config, subject.model._lora.records.get(subject.name)
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    on_disk = f" ({weights.stat().st_size:,d} bytes on disk)" if weights.is_file() else ""
    rows = [
        ("variant", ", ".join(paper.short for paper in papers_of(c).values())),
        ("combined of", described_recipe(None if record is None else record.origin.recipe)),
        ("rank `r`", str(c.r)),
        ("`lora_alpha`", f"{c.lora_alpha:g}"),
        ("scaling", f"{c.scaling_of(''):.4g} ({scaling_of(c).said})"),
        ("ranks of their own", _patterns(c.rank_pattern)),
        ("alphas of their own", _patterns(c.alpha_pattern)),
        ("dropout", f"{c.lora_dropout:g}"),
        ("targets", _names(c.target_modules)),
        ("not adapted", _names(c.exclude_modules)),
        ("target parameters", _names(c.target_parameters)),
        ("trained in full", _names(c.modules_to_save)),
        ("token rows trained", _token_rows(c)),
        ("biases trained", "" if c.bias == "none" and not c.lora_bias else "of B" if c.lora_bias else c.bias),
        ("initialisation", c.init_lora_weights if isinstance(c.init_lora_weights, str) else ""),
        ("tensors", f"{len(tensors)}, {', '.join(sorted(kinds))}"),
        ("size", f"{size:,d} bytes of tensors{on_disk}"),
    ]
    return _table(("", ""), [row for row in rows if row[1]])


def _names(spec: str | Sequence[str] | None) -> str:
    return some([f"`{name}`" for name in ([spec] if isinstance(spec, str) else spec or ())], _SHOWN)


def _patterns(patterns: Mapping[str, float]) -> str:
    return some([f"`{name}`: {value:g}" for name, value in patterns.items()], _SHOWN)


def _token_rows(config: LoRAConfig) -> str:
    tokens = config.trainable_token_indices
    tables = tokens.values() if isinstance(tokens, Mapping) else [tokens or ()]
    count = sum(len(rows) for rows in tables)
    return str(count) if count else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (head, ("---",) * len(head), *rows))


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def _cell(text: str) -> str:
    """Return a text that stays on its line and in its cell, and opens no comment."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
