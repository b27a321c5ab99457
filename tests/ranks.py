"""What two processes of one training do: models, the stock Trainer under an engine, and how to start and end them.

Engines that accelerate offers on accelerators only (FSDP2) are told here that gloo on the CPU is one; everything after
that decision is accelerate's, Transformers' and torch's own code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing import ProcessExitedException
from transformers import BertForSequenceClassification, Trainer

from hf_lora import LoRAConfig, LoRAModel

from . import forks, trainings
from .peek import whole
from .tiny import tiny

Scenario = Callable[[Path], dict[str, Any]]
Runs = tuple[Path, dict[str, list[dict[str, Any]]]]  # a folder, and what the processes of each training found
TOLERANCE = {"rel": 0, "abs": 1e-5}
SECONDS = 600  # for all that two processes do in one start: what takes longer hangs


def gpt2(dtype: torch.dtype = torch.float32, **changes: Any) -> LoRAModel:
    """Return a tiny GPT-2 without dropout, its input and output embeddings tied."""
    torch.manual_seed(0)
    base = tiny("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).to(dtype)
    return LoRAModel.from_model(base, LoRAConfig(**{"r": 2, **changes}))


def bert(base: Path) -> LoRAModel:
    """Return a tiny BERT classifier, whose new head trains along, on a base from disk."""
    torch.manual_seed(0)
    return LoRAModel.from_pretrained(base, LoRAConfig(r=2, task_type="SEQ_CLS"), num_labels=2)


def save_bert(folder: Path) -> None:
    """Write a tiny BERT without head and dropout."""
    tiny("bert", "BertModel", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)


def trainer(model: LoRAModel, out: Path, batch: int, **changes: Any) -> Trainer:
    """Return the stock Trainer of a model: 6 steps, a checkpoint every second one."""
    defaults: dict[str, Any] = {
        "adam_epsilon": 1e-3,  # else its steps are as long where a gradient is nothing but rounding
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 4,
        "log_level": "error",
        "average_tokens_across_devices": not isinstance(model, BertForSequenceClassification),
    }
    return trainings.trainer(model, out, **{**defaults, **changes})


def trained(model: LoRAModel, out: Path, batch: int, resume: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Train, and return the losses, the last evaluation, and which of the base's parameters changed."""
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    run = trainer(model, out, batch, **changes)
    run.train(resume_from_checkpoint=None if resume is None else str(resume))
    evaluated = run.evaluate()["eval_loss"] if "eval_steps" in changes else None
    found = {name.replace("_checkpoint_wrapped_module.", ""): p for name, p in model.named_parameters()}
    after = {name: whole(p) for name, p in found.items() if name in base}
    return {
        "losses": [entry["loss"] for entry in run.state.log_history if "loss" in entry],
        "evaluations": {str(e["step"]): e["eval_loss"] for e in run.state.log_history if "eval_loss" in e},
        "evaluated": evaluated,
        "best": run.state.best_model_checkpoint,
        "base_moved": [name for name, p in base.items() if not p.is_meta and not torch.equal(after[name], p)],
        "sharded": any(hasattr(p, "full_tensor") for p in model.parameters()),
        "world": run.args.world_size,
    }


def adapter(folder: Path, name: str, step: int = 6) -> dict[str, torch.Tensor]:
    """Return the tensors of a training's checkpoint."""
    return load_file(folder / name / f"checkpoint-{step}" / "adapter_model.safetensors")


def assert_close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.allclose(got[key], want[key], rtol=0, atol=1e-5) for key in want)


def assert_as_one(runs: Runs, name: str) -> None:
    """Assert that two processes had the losses of one, and saved its adapter."""
    got, want = runs[1][name][0], runs[1]["one"][0]
    assert got["world"] == 2
    assert len(got["losses"]) == 6
    assert got["losses"] == pytest.approx(want["losses"], **TOLERANCE)
    assert_close(adapter(runs[0], name), adapter(runs[0], "one"))
    assert got["base_moved"] == []


def assert_best(runs: Runs, name: str) -> None:
    """Assert that a training with BEST ended with its best weights in both processes."""
    for result in runs[1][name]:
        losses = {int(step): loss for step, loss in result["evaluations"].items()}
        best = max(losses, key=losses.__getitem__)  # the worst, in truth, because it is not the last
        assert best != 6, "the last step is the best one, so this test proves nothing"
        assert result["best"].endswith(f"checkpoint-{best}")
        assert result["evaluated"] == pytest.approx(losses[best], **TOLERANCE)


def under_fsdp(model: LoRAModel, out: Path, resume: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Train under FSDP2, two rows a process; what FSDP's config knows goes there."""
    names = {"state_dict_type", "activation_checkpointing", "cpu_offload", "cpu_ram_efficient_loading"}
    names |= {"transformer_layer_cls_to_wrap"}
    config = {name: changes.pop(name) for name in names if name in changes}
    with_fsdp = {"fsdp": True, "fsdp_config": {**config, "version": 2}, "ddp_backend": "gloo"}
    return trained(model, out, changes.pop("batch", 2), resume, **with_fsdp, **changes)


def _offer_fsdp_on_cpu() -> None:
    """Do for gloo on the CPU what `AcceleratorState` does for accelerators where an FSDP plugin is given."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import CPUOffloadPolicy

    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None:
            return
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if isinstance(fsdp_plugin.cpu_offload, CPUOffloadPolicy):
            fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)  # only accelerators pin memory
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def launch(folder: Path, module: str, names: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Run scenarios in two processes, one after the other, and return what each found in each process.

    module: where SCENARIOS has them by name; each gets the folder.
    Raises RuntimeError where one of them fails, or does not end in time; both are killed.
    """
    (folder / "results").mkdir(parents=True)
    context = torch.multiprocessing.start_processes(
        _rank, (folder, module, tuple(names)), nprocs=2, join=False, start_method=forks.METHOD
    )
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=max(0.0, end - time.monotonic())):
            if time.monotonic() >= end:
                raise RuntimeError(
                    f"two processes did not end in {SECONDS} s: {sorted(os.listdir(folder / 'results'))}"
                )
    except ProcessExitedException as error:
        told = [path.read_text() for path in folder.glob("failed-*")]
        done = sorted(os.listdir(folder / "results"), key=lambda name: (folder / "results" / name).stat().st_mtime)
        raise RuntimeError("\n".join([str(error), f"done before: {done}", *told])) from None
    finally:
        for process in context.processes:
            process.kill()
            process.join()  # torch leaves pipes open that would be warned of
            process.close()
    return {
        name: [json.loads((folder / "results" / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        for name in names
    }


def _rank(rank: int, folder: Path, module: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    # A store in a file: no port is chosen that somebody else may take before it is used.
    store, patience = f"file://{folder / 'store'}", timedelta(seconds=SECONDS)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    _offer_fsdp_on_cpu()
    scenarios: dict[str, Scenario] = importlib.import_module(module).SCENARIOS
    gc.freeze()  # each training collects garbage, a third of a second with all that is imported
    for name in names:
        _forget_accelerate()
        try:
            found = scenarios[name](folder)
        except BaseException:
            (folder / f"failed-{rank}").write_text(f"{name} in process {rank}:\n{traceback.format_exc(limit=-8)}")
            os._exit(1)  # the other one would wait for this one
        (folder / "results" / f"{name}-{rank}.json").write_text(json.dumps(found))
        torch.distributed.barrier()
    os._exit(0)  # gloo's threads sometimes outlive the interpreter, which then aborts


def _forget_accelerate() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
