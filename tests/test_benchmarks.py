"""The benchmarks run, tiny, through the code that `make bench` runs, and what they vouch for can fail."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft")
pytest.importorskip("loralib")

from benchmarks import step
from benchmarks.__main__ import QUESTIONS, main
from benchmarks.arms import ADAPTED, FULL, OURS, PEFT_ARMS, SCALING, Settings, contestants, lora_parameters
from benchmarks.gradients import INPUT, TOLERANCE, check, reference
from benchmarks.matrix import ALL_LINEAR, Cell, Scene
from benchmarks.measure import Arm, compare
from benchmarks.saved import live_bytes, saved_bytes

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own


@pytest.mark.slow
def test_every_question_leaves_one_file_with_a_row_for_every_arm_that_is_measured_with_peft(tmp_path: Path) -> None:
    main(["--smoke", "--rounds", "2", "--threads", "1", "--output", str(tmp_path)])
    records = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(records) == {f"{name}-cpu.json" for name in QUESTIONS}
    for record in records.values():
        assert {"question", "rounds", "date", "device", "cores", "versions", "load_before"} < set(record)
        (answer,) = record["answers"]
        assert all({"cell", "arm", "ratio"} < set(row) for row in answer["rows"])
    arms = {name: {row["arm"] for row in records[f"{name}-cpu.json"]["answers"][0]["rows"]} for name in QUESTIONS}
    assert arms["step"] == arms["memory"] == {"frozen", FULL, *ADAPTED}
    assert {"PEFT", "hf_lora"} <= arms["operations"]
    for row in records["step-cpu.json"]["answers"][0]["rows"]:
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert (row["gradient_error"] is not None) == (row["arm"] in ADAPTED)


@pytest.fixture
def scene() -> Scene:
    return Cell(2, 16, 2, 4, Settings(2, ALL_LINEAR, 0.0), torch.float32).build(CPU)


def _check(arm: str, model: nn.Module, scene: Scene, dropout: float = 0.0) -> float:
    want = reference(scene.base, scene.factors, SCALING, scene.x, scene.cotangent)
    return check(arm, model, scene.x, scene.cotangent, want, dropout)


@pytest.mark.parametrize("arm", ADAPTED)
def test_the_gradients_of_every_arm_are_right_and_those_of_another_factor_are_not(arm: str, scene: Scene) -> None:
    model = contestants(scene.base, Settings(2, ALL_LINEAR, 0.0), scene.factors)[arm]
    assert _check(arm, model, scene) <= TOLERANCE[torch.float32]
    with torch.no_grad():
        lora_parameters(model)["encoder.layer.1.output.dense", "B"].mul_(1.001)
    with pytest.raises(AssertionError, match=rf"^{arm}: .*encoder\.layer\.1"):
        _check(arm, model, scene)


def test_a_factor_without_a_gradient_is_found(scene: Scene) -> None:
    model = contestants(scene.base, Settings(2, ALL_LINEAR, 0.0), scene.factors)[OURS]
    lora_parameters(model)["encoder.layer.0.output.dense", "A"].requires_grad_(False)
    with pytest.raises(AssertionError, match=r"'encoder\.layer\.0\.output\.dense\.A': nan"):
        _check(OURS, model, scene)


def test_an_arm_that_leaves_its_dropout_out_is_found(scene: Scene) -> None:
    adapted = contestants(scene.base, Settings(2, ALL_LINEAR, 0.1), scene.factors)
    for arm, model in adapted.items():
        assert _check(arm, model, scene, dropout=0.1) <= TOLERANCE[torch.float32]
    without = contestants(scene.base, Settings(2, ALL_LINEAR, 0.0), scene.factors)[OURS]
    with pytest.raises(AssertionError, match="dropout"):
        _check(OURS, without, scene, dropout=0.1)


def test_the_reference_is_the_gradient_of_the_formula_written_out(scene: Scene) -> None:
    """Autograd's own, through W + s B A as a function of the input, of every A and of every B, in float64.

    Both sides round at 1e-16, of gradients that cancel to 1e-5 of their terms: what is wrong is off by far more.
    """
    want = reference(scene.base, scene.factors, SCALING, scene.x, scene.cotangent)
    assert len(want) == 1 + 2 * 6 * 2
    leaves = {INPUT: scene.x, **scene.factors}
    leaves = {key: leaf.detach().double().requires_grad_() for key, leaf in leaves.items()}
    got = dict(zip(leaves, torch.autograd.grad(_merged_output(scene, leaves), list(leaves.values())), strict=True))
    assert want.keys() == got.keys()
    for key, gradient in want.items():
        assert gradient.norm() > 0, key
        assert (got[key] - gradient).norm() <= 1e-8 * gradient.norm(), key


def _merged_output(scene: Scene, leaves: dict[tuple[str, str], Tensor]) -> Tensor:
    """Return the sum that the cotangent makes of a model's output, with B A written into its weights."""
    model = copy.deepcopy(scene.base).double().train()
    merged = {
        f"{layer}.weight": model.get_parameter(f"{layer}.weight") + SCALING * leaves[layer, "B"] @ leaves[layer, "A"]
        for layer, _ in scene.factors
    }
    out = torch.func.functional_call(model, merged, kwargs={"inputs_embeds": leaves[INPUT]})
    return (out.last_hidden_state * scene.cotangent).sum()


def test_a_cell_is_lost_only_where_the_quartiles_lie_apart_from_those_of_peft_s_best_arm() -> None:
    def rows(cell: str, ours: float) -> list[dict[str, object]]:
        ratios = {PEFT_ARMS[0]: 1.5, PEFT_ARMS[1]: 1.2, OURS: ours}
        return [
            {"cell": cell, "arm": arm, "ratio": r, "ratio_low": r - 0.1, "ratio_high": r + 0.1}
            for arm, r in ratios.items()
        ]

    assert step.summary(rows("near", 1.35) + rows("far", 1.45)) == [
        "hf_lora is slower than PEFT's best arm in 1 of 2 cells.",
        "  far: 1.450 against 1.200 of PEFT, base dtype",
    ]


def test_only_the_run_is_timed_and_each_arm_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, undone = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def passes(seconds: float) -> str:
        clock[0] += seconds
        return "subject"

    def arm(seconds: float) -> Arm:
        return Arm(lambda: passes(100.0), lambda _: passes(seconds), undone.append)

    rows = compare({"one": arm(1.0), "three": arm(3.0)}, CPU, rounds=2)
    assert [(row["arm"], row["seconds"], row["ratio"]) for row in rows] == [("one", 1.0, 1.0), ("three", 3.0, 3.0)]
    assert undone == ["subject"] * 2 * 3  # a round of warming up, two that count


class _Keeps(torch.autograd.Function):
    """Keeps one tensor of its own as it should and one behind autograd's back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        made = x * 2
        ctx.save_for_backward(x, made, made.t(), weight)
        ctx.hidden = x + 1
        return x * weight


def test_saved_bytes_are_each_storage_once_and_live_bytes_see_what_hides_on_a_context() -> None:
    x, weight = torch.randn(5, 5, requires_grad=True), torch.randn(5, 5)
    assert saved_bytes(lambda: _Keeps.apply(x, weight), iter([x, weight])) == 100
    assert saved_bytes(lambda: _Keeps.apply(x, weight), iter([weight])) == 200
    assert live_bytes(lambda: _Keeps.apply(x, weight), iter([x, weight])) == 200
