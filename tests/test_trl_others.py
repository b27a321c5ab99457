"""TRL's other Trainers with a LoRAModel: the reference is the model as it was, and holds no weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_lora import LoRAConfig, LoRAModel

from .test_trl import WORDS, base, datasets, text, trl
from .trainings import DEFAULTS, tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
GENERATES = {"num_generations": 4, "max_completion_length": 4, "beta": 0.1}
REWARDS = {"reward_funcs": lambda completions, **_: [float(len(each)) for each in completions]}
ROWS = [{"prompt": text(i), "completion": f" {text(i + 50)}", "label": i % 2 == 0} for i in range(8)]
MEMBERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "GRPO": (GENERATES, REWARDS), "RLOO": (GENERATES, REWARDS), "KTO": ({}, {})
}  # fmt: skip


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained before"])
@pytest.mark.parametrize("name", MEMBERS)
def test_the_reference_is_the_model_as_it_was(name: str, trained: bool, tmp_path: Path) -> None:
    settings, given = MEMBERS[name]
    changes = {**DEFAULTS, "max_steps": 1, "save_strategy": "no", "bf16": False, **settings}
    args = getattr(trl, f"{name}Config")(output_dir=str(tmp_path), **changes)
    model = LoRAModel.from_model(base(), LoRAConfig(r=2, init_lora_weights=not trained))
    data = datasets.Dataset.from_list(ROWS)
    run = getattr(trl, f"{name}Trainer")(
        model=model, args=args, train_dataset=data, processing_class=tokenizer(*WORDS), **given
    )
    assert not list(run.ref_model.parameters())
    assert ("ref" in model.peft_config) == trained
    run.train()
    told = [entry[key] for entry in run.state.log_history for key in ("kl", "objective/kl") if key in entry]
    assert not [each for each in told if abs(each) > 1e-5]
