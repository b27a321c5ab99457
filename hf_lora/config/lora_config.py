"""LoRAConfig: PEFT's fields and defaults, validated when made, read from and written to adapter_config.json."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AdapterFileError, ArgumentError, ConfigError
from ..files.disk import write_atomically
from ..files.names import CONFIG_NAME
from ..files.sources import place_of
from ..files.strict_json import read_json
from ..files.transaction import settled
from ..variants.table import FORMULAS, formula_named, formula_of, scaling_of, settings
from .file_keys import FileKeys, unreadable, version_of
from .keys import ALWAYS, FREE, INERT, NO_TARGETS, UNSUPPORTED, Fields
from .rules import is_layers, is_names, problems_of
from .words import as_json, unknown_settings


@dataclass
class LoRAConfig(Fields):
    """What an adapter is: its rank, its targets, its variant.

    Field names, defaults and meanings are PEFT's (`peft.LoraConfig`), so that `adapter_config.json` is the same file.

    r: rank. lora_alpha: numerator of the scaling, alpha/r (`use_rslora`: alpha/sqrt(r)).
    target_modules: "auto" (query and value, or the fused qkv), "attention", "all-linear", a list of names or of
        dotted name endings, or a regular expression that the full name must match. Left out, it is "auto", or
        nothing where target_parameters are given.
    target_parameters: name endings of raw 2-D or 3-D parameters (fused experts).
    lora_dropout: probability in [0, 1) with which an element of a layer's input is dropped for the adapter; nothing is
        dropped of an embedding's, which is indices. bias: which biases train along. modules_to_save: modules trained in
        full.
    init_lora_weights: True (A kaiming, B zero), False (random), "gaussian", "pissa", "pissa_niter_N" (N up to 128),
        "olora", "orthogonal", "milora", "mica", or from data (`data=` where the adapter is added) "eva",
        "lora_ga", "loftq"; docs/variants.md says what each is for.
    eva_config, lora_ga_config, loftq_config: the settings of those, PEFT's.
    seed: of the numbers that the start draws; left out, it is drawn from torch's random state, and the adapter's config
        then has it. The same seed makes the same bits on any device, whatever else was drawn. It is noted in the file
        of the weights; adapter_config.json has no place for it.
    layers_to_transform: the numbers of the layers to adapt, all unless given. Negative ones count from the end (the
        last two: [-2, -1]); adding the adapter makes them the ones that PEFT's files know.
    rank_pattern, alpha_pattern: regular expression on the end of a module's name -> its own r, alpha.
    fan_in_fan_out: accepted and written for other tools; the layer itself says how its weight lies.
    ensure_weight_tying: what modules_to_save names of a tied weight is one copy for all of its names, as in PEFT;
        otherwise each name has a copy of its own. Trained rows stay tied in any case, products are refused.
    other: further keys of an adapter_config.json, kept and written back; among them the switches and settings of
        formulas (`variants.table`), which can be given and read by their names.

    Raises ConfigError, with every problem it found.

    >>> LoRAConfig(r=16, target_modules=["q_proj", "v_proj"]).scaling_of("model.layers.0.self_attn.q_proj")
    0.5
    >>> LoRAConfig(r=0)
    Traceback (most recent call last):
    ...
    hf_lora.errors.ConfigError: LoRAConfig: r=0, but the rank must be a positive integer; 8 is the usual start.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> LoRAConfig:
        """Make an empty config, which `__init__` fills. Raises ArgumentError for settings that there are not."""
        if unknown := kwargs.keys() - {*_NAMES, *settings()}:
            raise ArgumentError(f"LoRAConfig: {unknown_settings(unknown)}")
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in (settings().keys() & kwargs.keys()) - _NAMES}
        super().__init__(*args, **kwargs)
        usual = settings()
        other = {**self.other, **{key: as_json(value) for key, value in own.items()}}
        self.other = {key: value for key, value in other.items() if key not in usual or value != usual[key]}
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        """Return a formula's own setting, at its default where the config says nothing of it."""
        if "other" in self.__dict__ and name in (known := settings()):
            return self.other.get(name, known[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __post_init__(self) -> None:
        for name in _NAMES:
            setattr(self, name, as_json(getattr(self, name)))
        if self.target_modules is None and not self.target_parameters:
            self.target_modules = "auto"
        if self.target_modules == NO_TARGETS:
            self.target_modules = []
        for name in ("target_modules", "exclude_modules", "target_parameters", "modules_to_save", "layers_pattern"):
            value = getattr(self, name)
            if is_names(value) and not isinstance(value, str):
                setattr(self, name, sorted(value) if isinstance(value, set | frozenset) else list(dict.fromkeys(value)))
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            setattr(self, name, dict(value) if isinstance(value, Mapping) else {} if value is None else value)
        if problems := problems_of(self):
            raise ConfigError("LoRAConfig: " + " ".join(problems))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field. Raises ConfigError where an adapter was made of this config, which would stay as it is."""
        is_own = name not in _NAMES and name in settings()
        if "_attached" in self.__dict__ and (is_own or name in _NAMES - FREE) and value != getattr(self, name):
            raise ConfigError(
                f"{name}={value!r}: the adapter of this config is there already and would not follow, and its file "
                f"would say something else than it computes. Add an adapter with config.copy({name}=...) instead."
            )
        if is_own:
            self.other = {**self.other, name: value}
        else:
            super().__setattr__(name, value)

    def attached(self) -> LoRAConfig:
        """Return this config, which says what an adapter is: from now on only what it says of the base can be set."""
        if "_attached" not in self.__dict__:
            self.__dict__["_attached"] = copy.deepcopy({name: getattr(self, name) for name in _NAMES - FREE})
        return self

    def released(self) -> None:
        """Allow every change again: its adapter is gone."""
        self.__dict__.pop("_attached", None)

    def changed(self) -> list[str]:
        """Return the settings that were changed in place since an adapter was made of them: entries of dicts, lists."""
        return sorted(k for k, value in self.__dict__.get("_attached", {}).items() if value != getattr(self, k))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_attached"}  # of a copy none was made

    @property
    def peft_type(self) -> str:
        """PEFT's name for the method: "LORA", or that of a formula which PEFT has as a method of its own."""
        return formula_of(self).peft_type

    @property
    def formula(self) -> str:
        """The name of the row of `variants.table.FORMULAS` that this config asks for."""
        return formula_of(self).name

    def rank_of(self, name: str) -> int:
        """Return the rank of the module of that full name."""
        return int(_by_pattern(self.rank_pattern, name, self.r))

    def scaling_of(self, name: str) -> float:
        """Return the factor on B A for the module of that full name."""
        return 1.0 if formula_of(self).unscaled else scaling_of(self).of(self.alpha_of(name), self.rank_of(name))

    def alpha_of(self, name: str) -> float:
        """Return the lora_alpha of the module of that full name."""
        return float(_by_pattern(self.alpha_pattern, name, self.lora_alpha))

    @property
    def has_old_experts(self) -> bool:
        """Whether PEFT wrote the adapter before 0.19, when factors of fused experts had their axes the other way."""
        version = version_of(self.other.get("peft_version"))
        return version is not None and version < (0, 19, 0)

    def copy(self, **changes: Any) -> LoRAConfig:
        """Return a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def check_readable(self) -> None:
        """Raise ConfigError for keys in `other` that nobody would read again, of which a file would be refused."""
        if problems := FileKeys.of(self.other, _NAMES, False).problems:
            raise ConfigError(f"LoRAConfig: other={self.other!r:.200}: {' '.join(problems)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of PEFT's adapter_config.json: JSON types only, keys sorted.

        Keys that PEFT got after its first versions are there where they are not at their default.
        Raises ConfigError for layers counted from the end, which only a model can number: the config in its
        `peft_config` has them.
        """
        if self.layers_to_transform is not None and not is_layers(self.layers_to_transform, 0):
            raise ConfigError(
                f"layers_to_transform={self.layers_to_transform!r} counts from the end, which PEFT's files cannot say; "
                "add the adapter to a model and take its peft_config."
            )
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("other", "seed")}
        if self.target_modules in ("auto", "attention"):  # no other tool knows these; attaching resolves them
            mine["target_modules"] = None
        if self.target_modules is None:  # PEFT would take its own default for null
            mine["target_modules"] = []
        elif not self.target_modules and not self.target_parameters:
            mine["target_modules"] = NO_TARGETS
        result, row = {"peft_type": self.peft_type, **self.other, **mine}, formula_of(self)
        result = {
            key: value
            for key, value in result.items()
            if key in ALWAYS or key not in _DEFAULTS or value != _DEFAULTS[key]
        }
        if row.peft_type != "LORA":
            gone = {row.switch, *row.lacks}
            told = {row.renamed.get(k, k): _reworded(row.values, k, v) for k, v in result.items() if k not in gone}
            result = {**row.settings, **told}
        return dict(json.loads(json.dumps({key: result[key] for key in sorted(result)}, default=_plain)))

    def to_json(self) -> str:
        """Return the text of PEFT's adapter_config.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], source: str = "this config", ignore_unknown: bool = False
    ) -> LoRAConfig:
        """Return the LoRAConfig that an adapter_config.json stands for.

        Keys that hf_lora does not use are kept in `other`. ignore_unknown: also those that nobody here knows.
        Raises ConfigError for another PEFT method, for a setting that hf_lora does not build and for an unknown key
        whose value is not an empty default; of a PEFT newer than `keys.PEFT` that is a warning, unless the key's name
        says that it changes the formula.
        """
        kind = values.get("peft_type")
        row = formula_named(kind)
        if row is None:
            found = f"is for PEFT's method {kind!r}" if kind else "has no peft_type, so it is not PEFT's"
            told = ", ".join(sorted(map(str, values)))[:200]
            known = ", ".join(dict.fromkeys(row.peft_type for row in FORMULAS.values()))
            raise ConfigError(f"{source} {found}; hf_lora reads {known} adapters. Its keys: {told}.")
        if row.peft_type != "LORA":
            ours = {theirs: key for key, theirs in row.renamed.items()}
            theirs = {key: {word: own for own, word in words.items()} for key, words in row.values.items()}
            read = {ours.get(key, key): value for key, value in values.items() if key not in row.unread}
            values = {**{key: _reworded(theirs, key, value) for key, value in read.items()}, row.switch: True}
        keys = FileKeys.of(values, _NAMES, ignore_unknown)
        mine, other = keys.mine, keys.other
        problems = [*keys.problems, *unreadable(mine)]
        if problems:
            raise ConfigError(f"{source}: " + " ".join(problems))
        if keys.newer and not ignore_unknown:
            warnings.warn(
                f"{source} comes from PEFT {values['peft_version']} and has keys that nobody here knows: "
                f"{', '.join(f'{key}={value!r}' for key, value in keys.newer.items())}. They are taken to have no "
                "effect on a trained adapter; ignore_unknown=True says that they have none.",
                stacklevel=3,
            )
        try:
            return cls(**{k: v for k, v in mine.items() if v is not None or k in _KEEPS_NULL}, other=other)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write adapter_config.json into a directory, which is made where it is missing, whole or not at all.

        Raises AdapterFileError where it cannot be written; the old one is then still there.
        """
        directory = Path(save_directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(directory / CONFIG_NAME, self.to_json().encode())
        except OSError as error:
            raise AdapterFileError(f"{directory / CONFIG_NAME} cannot be written: {error}") from error

    @classmethod
    def from_pretrained(cls, directory: str | Path, ignore_unknown: bool = False) -> LoRAConfig:
        """Read the adapter_config.json of a local directory (or the file itself).

        Of a directory in which a save was cut off, the one that belongs to the weights there.
        ignore_unknown: accept keys that nobody here knows, whatever they mean; they are written back.
        Raises AdapterFileError where it is missing or no JSON object, ConfigError where it is no LoRA adapter's.
        """
        path = Path(place_of(directory))
        if path.is_dir():
            path = settled(path) or path / CONFIG_NAME
        if not os.path.lexists(path):
            raise AdapterFileError(f"{path} does not exist; an adapter directory holds {CONFIG_NAME}.")
        return cls.from_dict(read_json(path), str(path), ignore_unknown)


_NAMES = frozenset(f.name for f in dataclasses.fields(LoRAConfig))
_DEFAULTS = {
    **UNSUPPORTED,
    **INERT,
    **{f.name: f.default for f in dataclasses.fields(LoRAConfig) if f.default is not dataclasses.MISSING},
    "rank_pattern": {},
    "alpha_pattern": {},
}


# A null stands for the default, but where it would hide what the adapter is.
_KEEPS_NULL = {f.name for f in dataclasses.fields(LoRAConfig) if "None" in str(f.type)} | {"r", "lora_alpha"}


def key_for(patterns: Mapping[str, Any], name: str) -> str | None:
    """Return the first pattern that the end of a name matches, on whole dotted words (PEFT's rule), or None."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    key = key_for(patterns, name)
    return default if key is None else patterns[key]


def _reworded(words: Mapping[str, Mapping[str, str]], key: str, value: Any) -> Any:
    """Return a setting's value by another tool's word for it."""
    return words.get(key, {}).get(value, value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """Return what JSON writes of a mapping that is no dict, of a set and of a range."""
    return dict(value) if isinstance(value, Mapping) else sorted(value)
