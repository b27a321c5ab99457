"""What was seen of an adapter without loading it, as a report for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...wording import some
from .layout import Target
from .suspicion import Finding

__all__ = ["Inspection"]

_MOST_ROWS, _MOST_FINDINGS = 12, 10  # lines of text; all of them are in to_dict()
_WIDEST = 200  # characters of a line


@dataclass(frozen=True)
class Inspection:
    """What an adapter is. findings: everything odd about it; empty where there is nothing.

    format: whose files these are. base: id, revision, commit, class, as far as config and notes tell. provenance: what
    hf_lora noted of the base's weights. r, alpha, scaling: the config's; ranks: how many layers have which in the file.
    size: of the weights' files, in bytes; parameters: of all tensors in them.
    """

    name: str
    format: str
    versions: dict[str, str]
    base: dict[str, str]
    task: str | None
    variant: str
    r: float | None
    alpha: float | None
    scaling: float | None
    dropout: float | None
    ranks: dict[int, int]
    targets: tuple[Target, ...]
    saved: dict[str, int]
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    size: int
    weights: tuple[str, ...]
    provenance: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        result = dataclasses.asdict(self)
        result["targets"] = [{**dataclasses.asdict(t), "absent": t.absent} for t in self.targets]
        result["findings"] = [f._asdict() for f in self.findings]
        return json.loads(json.dumps(result))

    def __str__(self) -> str:
        """Return the report for people, less than 40 lines."""
        return "\n".join(_printable(line) for line in (self.name, *_facts(self), *_table(self), *_oddities(self)))


def _facts(seen: Inspection) -> Iterator[str]:
    """Yield a line for each thing that is known."""
    base = seen.base.get("id", "not named")
    at = seen.base.get("commit") or seen.base.get("revision")
    kind = ", ".join(seen.base[key] for key in ("class", "model_type") if key in seen.base)
    versions = ", ".join(f"{tool} {version}" for tool, version in seen.versions.items())
    numbers = "" if seen.r is None else f", r={seen.r:g}"
    numbers += "" if seen.alpha is None else f", alpha={seen.alpha:g}"
    numbers += "" if seen.scaling is None else f", scaling {seen.scaling:g}"
    numbers += "" if not seen.dropout else f", dropout {seen.dropout:g}"
    if len(seen.ranks) > 1:
        numbers += f", in the file r={' '.join(f'{rank} ({count}x)' for rank, count in seen.ranks.items())}"
    saved = [f"{module} ({count:,d})" for module, count in seen.saved.items()]
    weights = (
        f"{seen.tensors:,d} tensors, {seen.parameters:,d} parameters, {' '.join(seen.dtypes)}, {_bytes(seen.size)}"
    )
    facts = {
        "format": seen.format + (f", {versions}" if versions else ""),
        "base": base + (f" at {at}" if at else "") + (f" ({kind})" if kind else ""),
        "provenance": seen.provenance or "none: nothing says which weights it was trained on",
        "task": seen.task or "",
        "variant": seen.variant + numbers,
        "weights": weights if seen.tensors else "",
        "saved whole": some(saved),
    }
    yield from (f"  {key:<12} {text}" for key, text in facts.items() if text)


def _table(seen: Inspection) -> Iterator[str]:
    """Yield the targets, aligned."""
    rows = [("target", "r", "out x in", "layers", "parameters")]
    for target in seen.targets[:_MOST_ROWS]:
        shapes = " x ".join(map(str, target.shapes[0])) + (" ..." if len(target.shapes) > 1 else "")
        layers = f"{len(target.layers)} of {target.of}" if target.layers else "1"
        layers += f" ({target.modules} modules)" if target.modules > max(len(target.layers), 1) else ""
        rows.append((target.name, " ".join(map(str, target.ranks)), shapes, layers, f"{target.parameters:,d}"))
    if len(rows) == 1:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    yield ""
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield f"  {'  '.join(cells)}  {row[4].rjust(max(len(r[4]) for r in rows))}"
    if len(seen.targets) > _MOST_ROWS:
        yield f"  and {len(seen.targets) - _MOST_ROWS} targets more"


def _oddities(seen: Inspection) -> Iterator[str]:
    """Yield what is odd, or that nothing is."""
    yield ""
    if not seen.findings:
        yield "  nothing suspicious in the config and the heads of the files"
        return
    yield f"  suspicious ({len(seen.findings)})"
    yield from (f"  - {finding.text}" for finding in seen.findings[:_MOST_FINDINGS])
    if len(seen.findings) > _MOST_FINDINGS:
        yield f"  - and {len(seen.findings) - _MOST_FINDINGS} more"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _printable(line: str) -> str:
    """Return a line without what a terminal would obey (names come from strangers), cut where it is too long."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= _WIDEST else line[: _WIDEST - 3] + "..."
