"""DeepSpeed ZeRO-2 and ZeRO-3 in two processes on the CPU, where it is installed: as one process trains, whole on disk.

Accelerate offers DeepSpeed on accelerators only; it is told here that gloo on the CPU is one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from .ranks import Runs, assert_as_one, assert_best, gpt2, launch, trained
from .trainings import BEST

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
pytestmark = pytest.mark.slow


def _zero(at: Path, name: str, stage: int, resume: Path | None = None, **changes: Any) -> dict[str, Any]:
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    config: dict[str, Any] = {
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    names = "train_micro_batch_size_per_gpu train_batch_size gradient_accumulation_steps gradient_clipping"
    config |= dict.fromkeys(names.split(), "auto")
    return trained(gpt2(), at / name, 2, resume, deepspeed=config, use_cpu=False, **changes)


SCENARIOS: dict[str, Any] = {
    "zero2": lambda at: _zero(at, "zero2", 2, **BEST),
    "zero2_resumed": lambda at: _zero(at, "zero2_resumed", 2, at / "zero2" / "checkpoint-4"),
    "zero3": lambda at: _zero(at, "zero3", 3, **BEST),
    "zero3_resumed": lambda at: _zero(at, "zero3_resumed", 3, at / "zero3" / "checkpoint-4"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    straight = trained(gpt2(), folder / "one", 4)
    return folder, {**launch(folder, __name__, SCENARIOS), "one": [straight]}


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_have_the_losses_and_the_adapter_of_one(runs: Runs, name: str) -> None:
    assert_as_one(runs, name)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_checkpoints_hold_no_weight_of_the_base(runs: Runs, name: str) -> None:
    states = list((runs[0] / name / "checkpoint-4").glob("*/*model_states.pt"))
    assert states
    for path in states:
        content = torch.load(path, weights_only=False)  # written by this very test
        assert content["module"]
        assert all("adapters" in key for key in content["module"])


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_the_best_model_is_there_at_the_end(runs: Runs, name: str) -> None:
    assert_best(runs, name)
