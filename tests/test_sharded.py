"""Saving in a distributed run: shards are gathered in every process, checked in each, and written by one.

What cannot be gathered is an error.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_lora import LoRAConfig, add_lora
from hf_lora.errors import AdapterStateError, MergeError, ModelError

from . import forks
from .cases import move
from .peek import EvaluatedModel, task_of
from .ranks import gpt2
from .trainings import trainer

FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")


def _rank(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    main = rank == 0
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    model = add_lora(net, LoRAConfig(r=3, target_modules=["0", "2"]))
    move(model)
    if main:
        model.save_pretrained(f"{folder}/whole")
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    own = model.get_parameter("0.adapters.default.weight.lora_A")
    assert own.to_local().numel() < own.numel()
    model.save_pretrained(f"{folder}/gathered", is_main_process=main)
    model.save_pretrained(f"{folder}/from_state_dict", is_main_process=main, state_dict=model.state_dict())
    if not main:
        model.save_pretrained(f"{folder}/nobody", is_main_process=False, state_dict={})
    for merge in (model.merge_adapter, model.merge_and_unload):  # FSDP2 would compute with its own, unmerged tensors
        with pytest.raises(MergeError, match="FSDP2"):
            merge()
    with torch.no_grad():
        own.to_local().fill_(float("nan"))
    with pytest.raises(AdapterStateError, match="finite"):  # in every process, so that none waits for another
        model.save_pretrained(f"{folder}/refused", is_main_process=main)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads sometimes outlive the interpreter, which then aborts


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_shards_are_gathered_in_every_process_and_written_by_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method=forks.METHOD)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"whole", "gathered", "from_state_dict"}
    for name in ("gathered", "from_state_dict"):
        for file in FILES:
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def _partitioned(parameter: nn.Parameter) -> None:
    """Make of a parameter what DeepSpeed ZeRO-3 leaves of it: nothing, with its shape noted."""
    parameter.ds_id, parameter.ds_shape = 7, parameter.shape
    parameter.data = torch.empty(0)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is here to gather it")
def test_a_partition_that_nobody_can_gather_is_never_saved(tmp_path: Path) -> None:
    model = add_lora(nn.Sequential(nn.Linear(6, 10)), LoRAConfig(r=3, target_modules=["0"]))
    _partitioned(model.get_parameter("0.adapters.default.weight.lora_A"))
    with pytest.raises(AdapterStateError, match=r"\(3, 6\).*DeepSpeed"):
        model.save_pretrained(tmp_path / "out")
    with pytest.raises(AdapterStateError, match="0 numbers"):  # what such a model's own state_dict() holds
        model.save_pretrained(tmp_path / "out", state_dict=model.state_dict())
    assert not list(tmp_path.iterdir())


def test_a_partitioned_model_takes_no_adapter_and_is_left_alone() -> None:
    net = nn.Sequential(nn.Linear(6, 10))
    _partitioned(net[0].weight)
    with pytest.raises(ModelError, match="DeepSpeed"):
        add_lora(net, LoRAConfig(target_modules=["0"]))
    assert type(net) is nn.Sequential
    assert net[0].weight.requires_grad


def test_a_partitioned_adapter_is_not_read_into(tmp_path: Path) -> None:
    model = add_lora(nn.Sequential(nn.Linear(6, 10)), LoRAConfig(r=3, target_modules=["0"]))
    model.save_pretrained(tmp_path)
    _partitioned(model.get_parameter("0.weight"))
    with pytest.raises(AdapterStateError, match=r"engine\.load_checkpoint"):
        model.load_weights(tmp_path)


def test_a_sharded_model_is_known_by_its_own_class() -> None:
    torch.manual_seed(0)
    model = gpt2()
    task, subject = task_of(model, model.peft_config["default"]), EvaluatedModel.of(model)
    assert task is not None
    assert subject.shifted
    model.__class__ = type(f"FSDP{type(model).__name__}", (type(model),), {})  # as fully_shard does
    assert task_of(model, model.peft_config["default"]) == task
    assert EvaluatedModel.of(model) == subject


def test_the_trainer_s_save_writes_in_the_process_that_should_alone(tmp_path: Path) -> None:
    """Older versions of Trainer._save write in whichever process they are called."""
    written: list[str] = []
    run = trainer(gpt2(), tmp_path)
    run.accelerator = SimpleNamespace(is_fsdp2=True, unwrap_model=lambda wrapped, **_: wrapped)
    run._save = lambda folder, state_dict: written.append(folder)
    for should_save in (False, True):
        run.args = SimpleNamespace(should_save=should_save, push_to_hub=False)
        run.save_model(f"should_save={should_save}")
    assert written == ["should_save=True"]
