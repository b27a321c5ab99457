"""The exceptions that hf_lora raises on purpose, and how their messages name things.

    LoRAError                      everything below; catch this one
    ├── ConfigError (ValueError, TypeError) a LoRAConfig, or an adapter_config.json, that cannot be right
    │   └── ArgumentError                    an argument that is not taken, or of another type than it has
    ├── TargetError (ValueError)         names that match no layer, or layers that cannot be adapted
    ├── AdapterNameError (ValueError, KeyError) an adapter name that is unknown, taken or not allowed
    ├── AdapterStateError (RuntimeError, ValueError) the right call at the wrong time (merged, disabled, nothing active)
    ├── AdapterFileError (OSError, ValueError) adapter files that are missing, truncated or not what they say
    ├── AdapterMismatchError (ValueError, RuntimeError) an adapter whose tensors do not fit the model
    │   └── BaseMismatchError                they fit, but it was trained on another base
    ├── HubError (OSError, ValueError)   the Hub cannot be reached, or did not do what was asked
    │   ├── HubNotFoundError                 no such repo (or a private one), revision or file
    │   └── HubAccessError                   a repo that is gated, or a token that may not do this
    ├── MissingExtraError (ImportError)  a package that is not installed, or not in a version that fits
    ├── DataError (ValueError)           rows, or files of rows, that cannot be trained on or predicted
    ├── EngineError (ValueError)         an adapter that an engine cannot be given as it is meant
    ├── MergeError (RuntimeError, ValueError) weights that cannot hold the merged adapter
    └── ModelError (ValueError)          a model that cannot be found, built or taken as a base
        └── BaseLoadError (OSError)          one that is not where it is looked for, or cannot be loaded

Each also refines the builtin in brackets, so that code written against PEFT or Transformers goes on catching it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "AdapterFileError",
    "AdapterMismatchError",
    "AdapterNameError",
    "AdapterStateError",
    "ArgumentError",
    "BaseLoadError",
    "BaseMismatchError",
    "ConfigError",
    "DataError",
    "EngineError",
    "HubAccessError",
    "HubError",
    "HubNotFoundError",
    "LoRAError",
    "MergeError",
    "MissingExtraError",
    "ModelError",
    "TargetError",
]


class LoRAError(Exception):
    """Anything hf_lora refuses to do; the message says what was given, what was found, what to do."""


class ConfigError(LoRAError, ValueError, TypeError):
    """A setting, or a combination of settings, that cannot be right."""


class ArgumentError(ConfigError):
    """An argument that a function does not take, or a value of another type than the argument has."""


class TargetError(LoRAError, ValueError):
    """Targets that match no layer, or layers that cannot carry an adapter."""


class AdapterNameError(LoRAError, ValueError, KeyError):
    """An adapter name that is unknown, already taken or not allowed."""

    __str__ = Exception.__str__  # a KeyError's is the repr of its message


class AdapterStateError(LoRAError, RuntimeError, ValueError):
    """A call that the model's present state does not allow."""


class AdapterFileError(LoRAError, OSError, ValueError):
    """Adapter files that are missing, unreadable or malformed."""


class AdapterMismatchError(LoRAError, ValueError, RuntimeError):
    """An adapter that does not fit the model it is loaded into."""


class BaseMismatchError(AdapterMismatchError):
    """An adapter that fits the model's shapes, but was trained on other weights."""


class HubError(LoRAError, OSError, ValueError):
    """The Hub cannot be reached, answers with an error, or sent other bytes than it announced."""


class HubNotFoundError(HubError):
    """A repo that does not exist (or is private to others), or a revision or file that it does not have."""


class HubAccessError(HubError):
    """A gated repo, or a token that is missing, wrong or not allowed to do this."""


class DataError(LoRAError, ValueError):
    """Rows, or files of rows, that cannot be used; the message names the file, the row and the cure."""


class EngineError(LoRAError, ValueError):
    """An adapter, or a model, that an engine cannot be given so that it computes what is meant."""


class MergeError(LoRAError, RuntimeError, ValueError):
    """Weights that cannot be merged, or merged weights that are not finite."""


class MissingExtraError(LoRAError, ImportError):
    """A package that is not installed, such as an extra of hf_lora brings, or not in a version that fits."""


class ModelError(LoRAError, ValueError):
    """A base model that cannot be found, built or adapted."""


class BaseLoadError(ModelError, OSError):
    """A base model that is not where it is looked for, or that Transformers cannot load from there."""


def some(items: Iterable[object], most: int = 4, between: str = ", ") -> str:
    """Return the first items in a row, and how many there are besides.

    >>> some("abcdefg"), some("ab", between="; ")
    ('a, b, c, d, and 3 more', 'a; b')
    """
    every = [str(item) for item in items]
    return between.join(every[:most] + ([f"and {len(every) - most} more"] if len(every) > most else []))


def numberless(name: str) -> str:
    """Return a dotted name with "*" for each number, so that layers that are alike have one name.

    >>> numberless("model.layers.0.self_attn.q_proj")
    'model.layers.*.self_attn.q_proj'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def full_name(*parts: str) -> str:
    """Return the dotted name of a parameter or module inside others; the model itself has the name "".

    >>> full_name("encoder.layer.0", "weight"), full_name("", "weight")
    ('encoder.layer.0.weight', 'weight')
    """
    return ".".join(filter(None, parts))


def beginnings(name: str) -> list[str]:
    """Return the names that a dotted name begins with: of what it lies in, the outermost first, and itself.

    >>> beginnings("encoder.layer.0")
    ['encoder', 'encoder.layer', 'encoder.layer.0']
    """
    words = name.split(".")
    return [".".join(words[: i + 1]) for i in range(len(words))]


def printable(line: str) -> str:
    """Return a line without what a terminal would obey: names come from strangers.

    >>> printable("a\x1b[31mb")
    'a?[31mb'
    """
    return "".join(c if c.isprintable() else "?" for c in line)
