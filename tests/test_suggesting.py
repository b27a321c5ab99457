"""The learning rate that belongs to a variant, and the warning of a scaling that hardly trains."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction
from pathlib import Path

import pytest
from torch import nn

from hf_lora import LoRAConfig, add_lora, suggested_learning_rate

from .cases import Named
from .peek import FORMULAS, INITS, RunSettings, plan_run
from .runs import write_base

DOCS = Path(__file__).parents[1] / "docs" / "variants.md"


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 1e-3),
        ({"task_type": "SEQ_CLS"}, 1e-3),
        ({"task_type": "CAUSAL_LM"}, 3e-4),
        ({"task_type": "SEQ_2_SEQ_LM", "use_dora": True}, 3e-4),
        ({"task_type": "CAUSAL_LM", "init_lora_weights": "pissa_niter_4"}, 3e-5),
        ({"task_type": "CAUSAL_LM", "init_lora_weights": "olora"}, 1.7e-5),
    ],
)
def test_a_suggested_rate_is_the_tasks_times_the_variants(settings: dict[str, object], rate: float) -> None:
    assert suggested_learning_rate(LoRAConfig(**settings)) == rate
    assert suggested_learning_rate(LoRAConfig(**{**settings, "task_type": None}), settings.get("task_type")) == rate


def test_the_documented_table_is_that_of_the_rows() -> None:
    rows = {row.title: row.rate for row in FORMULAS.values() if row.rate}
    starts = {f'`init_lora_weights="{name}"`': row.rate for name, row in INITS.items() if row.rate and name is not True}
    told = re.findall(r"^\| (\S+) \| ([\d/]+) \| (.*) \|$", DOCS.read_text().split("## HiRA")[0], re.MULTILINE)
    assert {name: (float(Fraction(factor)), source) for name, factor, source in told} == {
        name: (pytest.approx(rate.factor), rate.source) for name, rate in {**rows, **starts}.items()
    }


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [({"r": 64}, "0.125"), ({"r": 17}, "0.471"), ({"r": 16}, ""), ({"r": 64, "lora_alpha": 64}, ""),
     ({"r": 64, "use_rslora": True}, ""), ({"r": 64, "use_hira": True}, "")],
)  # fmt: skip
def test_a_high_rank_with_the_default_alpha_is_warned_of(settings: dict[str, object], scaling: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        add_lora(Named(nn.Linear(80, 80)), LoRAConfig(target_modules=["layer"], **settings))
    said = [str(each.message) for each in told if "scales the update" in str(each.message)]
    assert [scaling in each for each in said] == ([True] if scaling else [])


@pytest.mark.parametrize(
    ("lora", "rate"), [({}, 1e-3), ({"init_lora_weights": "pissa"}, 1e-4), ({"use_hira": True}, 4e-3)]
)
def test_the_command_begins_with_the_variants_rate_and_gives_it_no_default_that_it_lacks(
    lora: dict[str, object], rate: float, tmp_path: Path
) -> None:
    write_base(tmp_path / "base")
    (tmp_path / "rows.csv").write_text("text,label\n" + "good w1,1\nbad w2,0\n" * 20)
    settings = RunSettings(model=str(tmp_path / "base"), train=str(tmp_path / "rows.csv"), lora=lora)
    (tmp_path / "scratch").mkdir()
    plan = plan_run(settings, tmp_path / "scratch")
    assert plan.settings.learning_rate == rate
    assert plan.model.peft_config["default"].lora_alpha == (8 if lora.get("use_hira") else 32)
