"""What was seen of an adapter without loading it, as a report for people and as JSON for programs."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import printable, some
from .findings import Finding
from .layout import Target

_MOST_ROWS, _WIDEST = 12, 240  # lines of the table, characters of a line; to_dict() has all


@dataclass(frozen=True)
class Inspection:
    """What an adapter is. findings: what to know before using it; empty where there is nothing.

    format: whose files these are. base: id, revision, commit, class, as far as config and notes tell. r, alpha,
    scaling: the config's; ranks: how many layers have which in the file. saved: parameters of what is trained besides.
    parameters: of all tensors. size: of the weights' files, in bytes. provenance: whether the file notes which weights
    it was trained on. versions: of the tools that wrote it.
    """

    name: str
    format: str
    versions: dict[str, str]
    base: dict[str, str]
    provenance: bool
    task: str | None
    variant: str
    r: float | None
    alpha: float | None
    scaling: float | None
    ranks: dict[int, int]
    targets: tuple[Target, ...]
    saved: dict[str, int]
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    size: int
    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        """Whether no finding keeps the adapter from being loaded."""
        return not any(finding.fatal for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        found = [finding._asdict() for finding in self.findings]
        return json.loads(json.dumps({**dataclasses.asdict(self), "findings": found}))

    def __str__(self) -> str:
        """Return the report for people, less than 40 lines."""
        found = [f"  {'cannot be used' if f.fatal else 'to know'}: {f.text}" for f in self.findings]
        return "\n".join(map(_short, [self.name, *_facts(self), *_table(self), *(found or ["  no findings"])]))


def _facts(seen: Inspection) -> Iterator[str]:
    """Yield a line for each thing that is known."""
    at = seen.base.get("commit") or seen.base.get("revision")
    base = [seen.base.get("id", "not named") + (f" at {at}" if at else ""), seen.base.get("class")]
    base.append("its weights are noted" if seen.provenance else "")
    numbers = {"r=": seen.r, "alpha=": seen.alpha, "scaling ": seen.scaling}
    ranks = ", ".join(f"r={rank} of {count} layers" for rank, count in seen.ranks.items() if len(seen.ranks) > 1)
    weights = [f"{seen.tensors:,d} tensors", f"{seen.parameters:,d} parameters", " ".join(seen.dtypes)]
    facts: dict[str, list[str | None]] = {
        "format": [seen.format, *(f"{tool} {version}" for tool, version in seen.versions.items())],
        "base": base,
        "task": [seen.task],
        "variant": [seen.variant, *(f"{name}{n:g}" for name, n in numbers.items() if n is not None), ranks],
        "weights": [*weights, f"{seen.size / 1e3:,.1f} kB"] if seen.tensors else [],
        "also trained": [some(f"{module} ({count:,d})" for module, count in seen.saved.items())],
    }
    for name, words in facts.items():
        if text := ", ".join(filter(None, words)):
            yield f"  {name:<12} {text}"


def _table(seen: Inspection) -> Iterator[str]:
    """Yield the targets, aligned."""
    rows = [("target", "r", "out x in", "layers", "parameters")]
    for target in seen.targets[:_MOST_ROWS]:
        shapes = " x ".join(map(str, target.shapes[0])) + (" ..." if len(target.shapes) > 1 else "")
        layers = f"{len(target.layers)} of {target.of}" if target.layers else "1"
        rows.append((target.name, " ".join(map(str, target.ranks)), shapes, layers, f"{target.parameters:,d}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield ""
    if seen.targets:
        yield from ("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        yield f"  and {len(seen.targets) - _MOST_ROWS} targets more" if len(seen.targets) > _MOST_ROWS else ""


def _short(line: str) -> str:
    """Return a line as it can be printed, cut where it is too long."""
    line = printable(line)
    return line if len(line) <= _WIDEST else line[: _WIDEST - 3] + "..."
