"""What a training step costs: forward and backward of BERT layers, as a ratio to the frozen model.

Frozen means that a gradient flows to the input only, which no LoRA can beat by its maths; full fine-tuning is the
other reference. A step is won against PEFT's best arm. Before a cell is timed, every arm has to have the right
gradients (gradients.py).

The headline: 4 layers of BERT-base, five settings. Beyond it the matrix of hidden size, tokens, rank, targets, dtype
and dropout (matrix.py): 12 cells in which every pair of values meets by default, all 216 with --full.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from . import matrix
from .arms import FULL, OURS, PEFT_ARMS, SCALING, Settings, contestants, references
from .gradients import backward, check, reference
from .matrix import Cell, Scene
from .measure import Arm, Findings, Options, Row, compare, print_times

SHORT = 512  # tokens under which a step takes milliseconds: it is noisier, and four times the rounds cost little


def run(options: Options) -> Findings:
    """Time the cells of the scale and say in which of them hf_lora loses."""
    headline = matrix.SMOKE if options.scale == "smoke" else matrix.HEADLINE
    beyond = {"smoke": list, "default": matrix.covering, "full": matrix.every_combination}[options.scale]()
    rows = [row for cell in headline for row in measure(cell, options)]
    rows += [row for combination in beyond for row in measure(matrix.cell(combination), options, without=(FULL,))]
    return Findings(rows, summary(rows))


def measure(cell: Cell, options: Options, without: Sequence[str] = ()) -> list[Row]:
    """Check the arms' gradients, time them, print the table and return one row an arm.

    without: arms to leave out, which the matrix does with full fine-tuning. Raises AssertionError for wrong gradients.
    """
    scene = cell.build(options.device)
    arms, errors = _checked(scene, cell.settings)
    rounds = options.rounds * (4 if cell.batch * cell.length < SHORT else 1)
    timed = {name: _arm(model, scene.x, scene.cotangent) for name, model in arms.items() if name not in without}
    rows = compare(timed, options.device, rounds)
    print_times(f"A step against the frozen model: {cell.title}", rows)
    return [{"cell": cell.title, **row, "gradient_error": errors.get(row["arm"])} for row in rows]


def _checked(scene: Scene, settings: Settings) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Return all arms, and the largest gradient error of each that has factors."""
    adapted = contestants(scene.base, settings, scene.factors)
    want = reference(scene.base, scene.factors, SCALING, scene.x, scene.cotangent)
    errors = {
        name: check(name, model, scene.x, scene.cotangent, want, settings.dropout) for name, model in adapted.items()
    }
    return {**references(scene.base), **adapted}, errors


def _arm(model: nn.Module, x: Tensor, cotangent: Tensor) -> Arm:
    def prepare() -> nn.Module:
        model.zero_grad(set_to_none=True)
        return model

    return Arm(prepare, partial(backward, x=x, cotangent=cotangent))


def summary(rows: Sequence[Row]) -> list[str]:
    """Return in how many cells hf_lora is slower than PEFT's best arm, and which: their quartiles lie apart."""
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        cells.setdefault(row["cell"], {})[row["arm"]] = row
    slower = []
    for title, arms in cells.items():
        best = min((arms[name] for name in PEFT_ARMS), key=lambda row: row["ratio"])
        if arms[OURS]["ratio_low"] > best["ratio_high"]:
            slower.append(f"  {title}: {arms[OURS]['ratio']:.3f} against {best['ratio']:.3f} of {best['arm']}")
    return [f"hf_lora is slower than PEFT's best arm in {len(slower)} of {len(cells)} cells.", *slower]
