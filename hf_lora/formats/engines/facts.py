"""What the engines' rules ask of an adapter: facts of its config and of its tensors' names, without any weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...config.keys import PRESETS
from ...config.lora_config import LoRAConfig
from ...errors import AdapterFileError
from ...files.privacy import hub_id
from ...files.sources import HUB_KWARGS
from ...variants.initial import INITS
from ...variants.row import Row
from ...variants.table import LORA, scaling_of
from ..inspection import Looked
from ..inspection.layout import Parts, ranks_of
from ..keys import unwrapped
from ..notes import BASE_NOTE

_HEADS = ("embed_out", "lm_head", "output_projection")
_TIED = frozenset({"gemma", "gemma2", "gemma3_text", "gpt2"})  # whose config need not say so
_NUMBER = re.compile(r"\.\d+\.")
_TABLES = ("embed_tokens", "embed_in", "tok_embeddings", "word_embeddings", "wte")


@dataclass(frozen=True)
class Facts:
    """An adapter as other tools meet it. model_type, base_class: the base's, "" where nobody says. layers: how many its
    base has, 0 where nobody says. tied: whether its table of tokens is its output head as well, as far as its config
    or its type tells. config: adapter_config.json as it is written."""

    looked: Looked
    config: LoRAConfig
    model_type: str
    base_class: str
    layers: int
    tied: bool = False

    @cached_property
    def formula(self) -> Row:
        """The formula that its tensors show."""
        return self.looked.layout.formula(self.looked.config)

    @property
    def is_method(self) -> bool:
        """Whether it is a method of its own, and no LoRA by its config."""
        return self.looked.config.get("peft_type") != LORA.peft_type

    @property
    def has_own_tensors(self) -> bool:
        """Whether it is LoRA by its config, with tensors that plain LoRA has not."""
        return not self.is_method and bool(self.formula.stored.keys() - LORA.stored.keys())

    @property
    def is_sum(self) -> bool:
        """Whether it is the sum of the weight and a product, which plain LoRA can be."""
        return not self.formula.adapter.exclusive

    @property
    def has_other_scaling(self) -> bool:
        """Whether B A is scaled by something else than alpha / r."""
        return bool(scaling_of(self.looked.config).switch) and any(self.config.rank_of(n) > 1 for n in self.modules)

    @property
    def needs_start(self) -> bool:
        """Whether its factors were taken out of the base, and what they began as is in no file."""
        start = self.looked.config.get("init_lora_weights", True)
        known = isinstance(start, bool | str) and start in INITS
        return not self.is_method and known and INITS[start].computed_again

    @cached_property
    def modules(self) -> list[str]:
        """The adapted modules."""
        return [unwrapped(path)[0] for path in self.looked.layout.adapted]

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The last parts of the adapted modules' names."""
        return frozenset(_last(name) for name in self.modules)

    @property
    def has_other_ranks(self) -> bool:
        """Whether a layer has another rank than the config's r."""
        return any(self.config.rank_of(name) != self.config.r for name in self.modules)

    @property
    def has_false_ranks(self) -> bool:
        """Whether tensors are of another rank than the config says of their layer."""
        pairs = {} if self.is_method or self.has_stacks else self.looked.layout.adapted
        return any(
            {*ranks_of(parts)} != {self.config.rank_of(unwrapped(path)[0])}
            for path, parts in pairs.items()
            if "lora_A" in parts
        )

    @property
    def has_other_alphas(self) -> bool:
        """Whether a layer has another alpha than the config's lora_alpha."""
        return any(self.config.alpha_of(name) != self.config.lora_alpha for name in self.modules)

    @property
    def rank(self) -> int:
        """The largest rank of its tensors; experts' are counted as one."""
        if self.has_stacks:
            return max(self.config.r, *self.config.rank_pattern.values(), 1)
        return max((rank for parts in self.looked.layout.adapted.values() for rank in ranks_of(parts)), default=0)

    @property
    def has_biases(self) -> bool:
        """Whether biases train."""
        return self.config.lora_bias or self.config.bias != "none"

    @property
    def has_key_bias(self) -> bool:
        """Whether the bias of a k_proj is in the file."""
        return any(key.endswith(".k_proj.bias") for key in self.looked.tensors)

    @property
    def has_rows(self) -> bool:
        """Whether rows of a token table train."""
        return bool(self.config.trainable_token_indices)

    @property
    def has_expression(self) -> bool:
        """Whether the targets are a regular expression."""
        spec = self.config.target_modules
        return isinstance(spec, str) and spec not in PRESETS

    @property
    def adapts_tables(self) -> bool:
        """Whether the table of tokens or the output head has factors."""
        return self.adapts_head or any("lora_embedding_" in key for key in self.looked.tensors)

    @property
    def adapts_head(self) -> bool:
        """Whether the output head has factors."""
        return bool(self.kinds & {*_HEADS})

    @property
    def classifies(self) -> bool:
        """Whether the base has a classification head."""
        return self.base_class.endswith("ForSequenceClassification")

    def saves(self, what: str) -> bool:
        """Return whether parts in full are tables and output heads, norms, or other heads."""
        return what in {_part(name) for name in self.config.modules_to_save or ()}

    @property
    def saves_in_layers(self) -> bool:
        """Whether parts in full lie inside the numbered layers."""
        parts = {_last(name) for name in self.config.modules_to_save or ()}
        return any(_NUMBER.search(key) and key.split(".")[-2] in parts for key in self.looked.tensors)

    @property
    def has_experts(self) -> bool:
        """Whether experts have factors, in stacks or one by one."""
        return self.has_stacks or any(".experts." in name for name in self.modules)

    @property
    def has_stacks(self) -> bool:
        """Whether stacks of experts have factors."""
        return bool(self.config.target_parameters)

    @property
    def lacks_layers(self) -> bool:
        """Whether a target is adapted in some of the base's layers alone."""
        if self.config.layers_to_transform is not None:
            return True
        targets = self.looked.layout.targets()
        return any(t.layers and len(t.layers) < max(t.of, self.layers) for t in targets)

    @property
    def transposed(self) -> str:
        """Which layers store their weight as (in, out): none (""), some, or some that are all square."""
        shapes = [shape for target in self.looked.layout.targets() for shape in target.shapes]
        are_square = all(len({*shape}) == 1 for shape in shapes)
        return ("square" if are_square else "some") if self.config.fan_in_fan_out else ""

    def lacks(self, beside: Mapping[str, tuple[str, ...]]) -> bool:
        """Return whether a layer has factors and one that an engine wants beside it has none, by their last names."""
        names = {*self.modules}
        return any(other not in names for name in names for other in companions(name, beside))


def companions(name: str, beside: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the layers that an engine wants factors of beside those of one. beside: by the last part of its name."""
    last = _last(name)
    return [f"{name.removesuffix(last)}{other}" for other in beside.get(last, ())]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _part(name: str) -> str:
    last = _last(name)
    if last in _HEADS or last in _TABLES:
        return "table"
    return "norm" if "_layernorm" in name or re.search(r"(^|\.)norm", name) else "head"


def facts_of(looked: Looked, base_model: str | None = None) -> Facts:
    """Return what the rules ask of an adapter. base_model: the base, where it lies elsewhere.

    Raises AdapterFileError where loading refuses the adapter, or it is not in PEFT's layout.
    """
    if looked.contents is None:
        told = next((finding.text for finding in looked.findings if finding.fatal), "it cannot be read")
        raise AdapterFileError(f"{looked.source.name}: {told}")
    if "peft_type" not in looked.config:
        raise AdapterFileError(
            f"{looked.source.name} is an adapter of {looked.form or 'another layout'}, which these engines do not "
            "read: load it and save_pretrained() it first."
        )
    config = LoRAConfig.from_dict(dict(looked.config), looked.source.name, True)
    facts = Facts(looked, config, *_base(looked, base_model or config.base_model_name_or_path))
    if not facts.is_method and (path := next((p for p, parts in looked.layout.adapted.items() if _halved(parts)), "")):
        raise AdapterFileError(
            f"{looked.source.name}: of {unwrapped(path)[0]} there is one of lora_A and lora_B without the other, or of "
            "another rank; the file is not whole, and engines differ in whether they tell. Save or download the "
            "adapter again."
        )
    return facts


def _halved(parts: Parts) -> bool:
    return ("lora_A" in parts) != ("lora_B" in parts) or len({*ranks_of(parts)}) > 1


def _base(looked: Looked, name: str | None) -> tuple[str, str, int, bool]:
    """Return (model type, class, number of layers, tied) of the base, as far as notes and its config tell."""
    note, mapping = looked.notes.get(BASE_NOTE), looked.config.get("auto_mapping")
    note = note if isinstance(note, Mapping) else {}
    found: Mapping[str, Any] = {}
    if name and (looked.source.is_local or hub_id(name) is not None):  # nothing of the Hub leads to a path here
        from transformers import PreTrainedConfig  # not above: it takes seconds

        try:
            given = {key: value for key, value in looked.source.hub.items() if key in HUB_KWARGS[:4]}
            found = PreTrainedConfig.get_config_dict(name, **given)[0]
        except (OSError, ValueError):  # it is not here, or nobody reaches the Hub
            found = {}
    text = found.get("text_config")
    sizes = {**found, **(text if isinstance(text, Mapping) else {})}
    layers = next((n for key in ("num_hidden_layers", "n_layer") if isinstance(n := sizes.get(key), int)), 0)
    classes = [note.get("class"), *(v for k, v in (mapping or {}).items() if k == "base_model_class")]
    named = next((str(each) for each in [*classes, *(found.get("architectures") or [])] if each), "")
    kind = str(note.get("model_type") or found.get("model_type") or "")
    return kind, named, layers, bool(sizes.get("tie_word_embeddings", kind in _TIED))
