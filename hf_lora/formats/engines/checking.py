"""Asking the rules: what an engine makes of an adapter's folder, found from its config and its tensors' names."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ...errors import ArgumentError
from ...files.sources import HUB_KWARGS
from ...variants.table import formula_of
from ..inspection import Looked, looked_at
from .facts import Facts, facts_of
from .rules import CONVERT, CORRECT, ENGINES, MERGE, REFACTOR, RULES, SPLIT, Engine, Verdict

_CURES = {
    CONVERT: "hf-lora convert ADAPTER OUT --for {engine}",
    CORRECT: "Write the tensors' ranks into r and rank_pattern of adapter_config.json",
    MERGE: "hf-lora merge ADAPTER OUT",
    SPLIT: "hf-lora convert ADAPTER OUT --for {engine} --split-head head.safetensors, or hf-lora merge ADAPTER OUT",
    REFACTOR: "hf-lora convert ADAPTER OUT --for {engine} --rank 64 (an approximation), or hf-lora merge ADAPTER OUT",
}
# An engine that refuses loads nothing of what it would load wrongly.
_ORDER: tuple[Verdict, ...] = ("refused", "silently wrong", "not known", "loads")
_BARE = re.compile(r"(?<!Head)Model$")


class Told(NamedTuple):
    """What an engine does because of one thing that an adapter has, why, and what mends it."""

    said: str
    verdict: Verdict
    why: str
    cure: str
    mends: str  # CONVERT, MERGE, REFACTOR, CORRECT, SPLIT, or "" where the engine itself is to be asked otherwise


@dataclass(frozen=True)
class Checked:
    """What an engine makes of an adapter. version: the engine's, whose source was read. told: empty where it loads."""

    name: str
    engine: str
    version: str
    source: str
    told: tuple[Told, ...]

    @property
    def verdict(self) -> Verdict:
        """The engine's verdict: "loads", "refused", "silently wrong", or "not known" where nobody has looked."""
        found = {each.verdict for each in self.told}
        return next((verdict for verdict in _ORDER if verdict in found), "loads")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {**asdict(self), "verdict": self.verdict, "told": [each._asdict() for each in self.told]}

    def __str__(self) -> str:
        lines = [f"{each.said}: {each.verdict}, because {each.why}. {each.cure}".rstrip() for each in self.told]
        return "\n".join([f"{self.engine} {self.version}: {self.verdict}", *(f"  {line}" for line in lines)])


def engine_named(name: str) -> Engine:
    """Return an engine's row. Raises ArgumentError for one that nobody here knows."""
    if not isinstance(name, str) or name not in ENGINES:
        raise ArgumentError(f"engine={name!r}: what is known here is {', '.join(ENGINES)}.")
    return ENGINES[name]


def base_named(base_model: str | os.PathLike[str] | None) -> str | None:
    """Return the id or the path of a base. Raises ArgumentError for a loaded one."""
    if base_model is not None and not isinstance(base_model, str | os.PathLike):
        kind = type(base_model).__name__
        raise ArgumentError(f"base_model= is the id or the path of a base here, whose config is read, not a {kind}.")
    return None if base_model is None else os.fspath(base_model)


def check_for(
    adapter: str | os.PathLike[str],
    engine: str,
    *,
    max_rank: int | None = None,
    base_model: str | os.PathLike[str] | None = None,
    **hub_kwargs: Any,
) -> Checked:
    """Return what an engine makes of an adapter: whether it loads it as it is meant, refuses it, or computes another.

    adapter: a folder or Hub id, of which the config and the weights' heads are read. engine: "vllm", "sglang",
    "llama.cpp", "tgi", "peft" or "mlx". max_rank: what its server was started with, where that is not its default.
    base_model: the base, where it lies elsewhere. hub_kwargs: as `inspect_adapter` takes them.
    Raises ArgumentError, AdapterFileError, HubError.
    """
    engine_named(engine)
    base = base_named(base_model)
    if unknown := hub_kwargs.keys() - {*HUB_KWARGS}:
        raise ArgumentError(f"{', '.join(sorted(unknown))}: no argument of check_for; {', '.join(HUB_KWARGS)} are.")
    if max_rank is not None and (not isinstance(max_rank, int) or max_rank < 1):
        raise ArgumentError(f"max_rank={max_rank!r}: a rank is a positive integer.")
    with looked_at(adapter, **hub_kwargs) as looked:
        return checked(looked, engine, max_rank, base)


def checked(looked: Looked, engine: str, max_rank: int | None = None, base: str | None = None) -> Checked:
    """Return what an engine makes of an adapter that was looked at, as `check_for` does."""
    row = engine_named(engine)
    told = tuple(_told(facts_of(looked, base), engine, row, row.max_rank if max_rank is None else max_rank))
    return Checked(looked.source.name, row.title, row.version, row.source, told)


def _told(facts: Facts, engine: str, row: Engine, max_rank: int) -> Iterator[Told]:
    """Yield what keeps an engine from loading an adapter as it is meant."""
    base = facts.model_type or "an unknown type"
    if facts.model_type in row.refuses:
        yield Told(f"a base of {base}", "refused", "it takes no adapters on this type of model", _CURES[MERGE], MERGE)
    elif not _knows_base(facts, row):
        named = f" ({facts.base_class})" if facts.base_class else ""
        yield Told(f"a base of {base}{named}", "not known", "nobody has looked", "", "")
    if max_rank and facts.rank > max_rank and not facts.needs_start:
        why = f"its server takes {max_rank}, unless it is started with --max-lora-rank {facts.rank} or more"
        yield Told(f"rank {facts.rank}", "refused", why, f"hf-lora convert ... --rank {max_rank} approximates it", "")
    for rule in RULES:
        cell = rule.cell(engine, facts.model_type)
        if cell is not None and cell.verdict != "loads" and rule.holds(facts):
            said = rule.said
            if rule.cure == REFACTOR or "method" in said:
                said = formula_of(facts.looked.config).title
            yield Told(said, cell.verdict, cell.why, _CURES[rule.cure].format(engine=engine), rule.cure)


def _knows_base(facts: Facts, row: Engine) -> bool:
    """Return whether an engine is known to load adapters on a base, by its class or else its type."""
    if row.classes and facts.base_class:
        return facts.base_class in row.classes
    is_bare = bool(_BARE.search(facts.base_class))  # without a head, whose layers have other names than engines know
    return not (row.classes or row.types) or (facts.model_type in row.types and not is_bare)
