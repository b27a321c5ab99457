"""What an optimizer must hold: every parameter that requires a gradient, in the stock Trainer and in own loops."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from hf_lora import LoRAConfig, check_optimizer
from hf_lora.errors import AdapterStateError

from .test_trainer import gpt2, trainer


def _adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


def test_an_adapter_added_after_the_optimizer_was_built_is_missing_from_it() -> None:
    model = gpt2()
    optimizer = _adamw(model)
    check_optimizer(model, optimizer)
    model.add_adapter(LoRAConfig(r=2, target_modules=["c_attn"]), "late")
    with pytest.raises(AdapterStateError, match=r"4 of 4 .* missing from the optimizer.*adapters\.late.*Build the"):
        check_optimizer(model, optimizer)
    model.set_adapter("default")
    check_optimizer(model, optimizer)
    model.set_adapter([])
    with pytest.raises(AdapterStateError, match="nothing would train"):
        check_optimizer(model, optimizer)


def test_the_stock_trainer_refuses_such_an_optimizer_before_the_first_step(tmp_path: Path) -> None:
    model = gpt2()
    run = trainer(model, tmp_path)
    run.optimizer = _adamw(model)
    model.add_adapter(LoRAConfig(r=2, target_modules=["c_attn"]), "late")
    with pytest.raises(AdapterStateError, match="missing from the optimizer"):
        run.train()
    assert run.state.global_step == 0


def test_the_stock_trainer_refuses_an_adapter_that_was_loaded_for_inference(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path / "adapter")
    model.load_adapter(tmp_path / "adapter", "other")
    with pytest.raises(AdapterStateError, match=r"nothing would train.*set_adapter"):
        trainer(model, tmp_path).train()


def test_the_trainers_seam_takes_what_the_hook_passes_on() -> None:
    source = inspect.getsource(Trainer.create_optimizer._hf_lora_original)
    assert source.lstrip().startswith("def create_optimizer(self")
    assert "if self.optimizer is None" in source, "a given optimizer no longer passes here"
