"""What the files of other engines are written from: a plain adapter's factors by the names of its checkpoint."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...errors import EngineError, MissingExtraError

MERGES = "merge it into its base instead: hf-lora merge ADAPTER OUT"


class Factors(NamedTuple):
    """The factors of one weight, whose update is B A. a: (r, in); b: (out, r); embeds: `in` is entries."""

    a: Tensor
    b: Tensor
    embeds: bool = False


def refuse_tied(factors: Mapping[str, Factors], config: Any, engine: str) -> None:
    """Raise EngineError where a table is adapted that the output head shares, and that an engine reads once."""
    if not getattr(config, "tie_word_embeddings", False):
        return
    for name, each in factors.items():
        if each.embeds or name.rpartition(".")[2] == "lm_head":
            raise EngineError(
                f"{name} is tied: table and output head are one weight in {engine}, where its factors would act in one "
                f"of the two places; {MERGES}."
            )


def package(name: str) -> Any:
    """Return a package that the extra `export` brings. Raises MissingExtraError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs the package {name}, which is not here: pip install 'hf-lora[export]'. {error}"
        ) from error
