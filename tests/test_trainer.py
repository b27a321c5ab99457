"""The stock Trainer and pipelines: what trains, the best model at the end, whatever the adapter's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import pipeline

from hf_lora import LoRAConfig, LoRAModel

from .trainings import BEST, CHECKPOINTING, bert, gpt2, ran, same, tokenizer, trainer


@pytest.mark.parametrize("names", [["default"], ["sentiment"], ["default", "b"], ["a", "b"]], ids=" and ".join)
def test_the_best_model_is_there_at_the_end(names: list[str], tmp_path: Path) -> None:
    model: LoRAModel = bert(names[0])
    for name in names[1:]:
        model.add_adapter(LoRAConfig(r=3, target_modules=["query"]), name)
    model.set_adapter(names)
    run = ran(model, tmp_path, **BEST, learning_rate=0.2)
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = max(losses, key=losses.get)  # the worst, in truth, because it is not the last
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert best != 6, "the last step is the best one, so this test proves nothing"
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-7)


def test_gradient_checkpointing_trains_to_the_same_bits(tmp_path: Path) -> None:
    plain, checkpointed = bert(), bert()
    trainer(plain, tmp_path / "a").train()
    trainer(checkpointed, tmp_path / "b", **{CHECKPOINTING: True}).train()
    same(checkpointed, plain)


def test_pipelines_take_the_model_as_it_is() -> None:
    known = {"tokenizer": tokenizer(*"good bad fine day".split()), "device": "cpu"}
    classify = pipeline("text-classification", model=bert().eval(), **known)
    assert classify("good day")[0]["label"] in ("LABEL_0", "LABEL_1")
    write = pipeline("text-generation", model=gpt2().eval(), **known)
    assert write("good day", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("good day")
