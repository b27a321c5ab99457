"""The rules as the table of docs/deploy.md: `python -m hf_lora.formats.engines.page` prints it."""

from .rules import CONVERT, CORRECT, ENGINES, MERGE, REFACTOR, RULES, SPLIT, Cell

_CURES = {
    CONVERT: "`convert`", CORRECT: "its config corrected", MERGE: "`merge`", REFACTOR: "`convert --rank`, or `merge`",
    SPLIT: "`convert --split-head`, or `merge`",
}  # fmt: skip


def table() -> str:
    """Return a row of Markdown for each rule: the verdict of every engine of PEFT's layout, and what mends it."""
    engines = [name for name, row in ENGINES.items() if row.layout != "mlx"]
    heads = ["the adapter has", *(ENGINES[name].title for name in engines), "mended by"]
    rows = [
        [rule.said, *(_cell(rule.cells.get(name), rule.narrows) for name in engines), _CURES[rule.cure]]
        for rule in RULES
        if any(name in rule.cells for name in engines)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def _cell(cells: Cell | tuple[Cell, ...] | None, narrows: bool) -> str:
    if cells is None:
        return "" if narrows else "loads"
    if isinstance(cells, Cell):
        return cells.verdict
    return "; ".join(f"{each.verdict} ({', '.join(sorted(each.types)) or 'others'})" for each in cells)


if __name__ == "__main__":
    print(table())
