"""Two processes train as one does: DDP and FSDP2 through the stock Trainer, and what cannot carry adapters says so.

Two processes with 2 rows each see, step by step, the rows that one process with 4 sees.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaForCausalLM

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterFileError, AdapterStateError, ModelError

from .cases import settings_of
from .peek import FORMULAS
from .ranks import (
    TOLERANCE,
    Runs,
    adapter,
    assert_as_one,
    assert_best,
    assert_close,
    bert,
    gpt2,
    launch,
    save_bert,
    trained,
    under_fsdp,
)  # fmt: skip
from .tiny import tiny
from .trainings import BEST
from .versions import OLDER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch was built without gloo",
    ),
]
HAS_FSDP2 = hasattr(Accelerator, "is_fsdp2")
fsdp2 = pytest.mark.skipif(not HAS_FSDP2, reason="this version of accelerate has no FSDP2")
MANY = {"target_modules": "all-linear", "use_dora": True}
READ = {"modules_to_save": ["ln_f"], "trainable_token_indices": [3, 4]}  # they live in the read, one of them tied
OTHERS = sorted(FORMULAS.keys() - {"lora"})  # the formulas beside plain LoRA's, each a variant of that name


def _of_formula(name: str, out: Path, batch: int) -> dict[str, Any]:
    return trained(gpt2(**settings_of(name, seed=0)), out, batch)


DDP: dict[str, Any] = {
    "ddp": lambda at: trained(gpt2(), at / "ddp", 2, **BEST),
    "ddp_resumed": lambda at: trained(gpt2(), at / "ddp_resumed", 2, at / "one" / "checkpoint-4"),
    "ddp_accumulates": lambda at: trained(
        gpt2(), at / "ddp_accumulates", 1, gradient_accumulation_steps=2, ddp_find_unused_parameters=False
    ),
    "ddp_checkpoints": lambda at: trained(gpt2(), at / "ddp_checkpoints", 2, gradient_checkpointing=True),
    "ddp_head": lambda at: trained(bert(at / "bert"), at / "ddp_head", 2),
    **{f"ddp_{name}": lambda at, name=name: _of_formula(name, at / f"ddp_{name}", 2) for name in OTHERS},
}
FSDP: dict[str, Any] = {
    "fsdp": lambda at: under_fsdp(gpt2(), at / "fsdp", **BEST),
    "fsdp_sharded": lambda at: under_fsdp(gpt2(), at / "fsdp_sharded", state_dict_type="SHARDED_STATE_DICT"),
    "fsdp_resumed": lambda at: under_fsdp(gpt2(), at / "fsdp_resumed", at / "one" / "checkpoint-4"),
    "fsdp_accumulates": lambda at: under_fsdp(gpt2(), at / "fsdp_accumulates", batch=1, gradient_accumulation_steps=2),
    "fsdp_recomputes": lambda at: under_fsdp(gpt2(), at / "fsdp_recomputes", activation_checkpointing=True),
    "fsdp_offloads": lambda at: under_fsdp(gpt2(), at / "fsdp_offloads", cpu_offload=True),
    "fsdp_loads_lean": lambda at: under_fsdp(gpt2(), at / "fsdp_loads_lean", cpu_ram_efficient_loading=True),
    "fsdp_lean_head": lambda at: _lean_head(at),
    "fsdp_half_base": lambda at: under_fsdp(gpt2(torch.bfloat16), at / "fsdp_half_base"),
    "fsdp_half": lambda at: under_fsdp(gpt2(torch.bfloat16), at / "fsdp_half", bf16=True),
    "fsdp_many": lambda at: under_fsdp(gpt2(**MANY), at / "fsdp_many"),
    "fsdp_read": lambda at: under_fsdp(gpt2(**READ), at / "fsdp_read"),
}


def _lean_head(at: Path) -> dict[str, Any]:
    """Train a head that only the first process initialised: Transformers leaves it empty in the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        patch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
        model = bert(at / "bert")
        assert any(p.is_meta for p in model.parameters()) == (torch.distributed.get_rank() > 0)
        # BERT names its embeddings as a block too, inside which accelerate 1.15 shards the table once more, and fails.
        lean = {"cpu_ram_efficient_loading": True, "transformer_layer_cls_to_wrap": ["BertLayer"]}
        return under_fsdp(model, at / "fsdp_lean_head", **lean)


def _refusals(at: Path) -> dict[str, Any]:
    """Try to adapt models that are spread over processes already, and to go on without an optimizer's state."""
    options: dict[str, Any] = {"tp_plan": "auto"}
    try:
        from transformers.distributed import DistributedConfig
    except ImportError:
        pass
    else:
        if "tp_size" in inspect.signature(DistributedConfig).parameters:
            options = {"distributed_config": DistributedConfig(tp_size=2)}
    model = LlamaForCausalLM.from_pretrained(at / "llama", **options)
    cls, before = type(model), {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    found: dict[str, Any] = {"plan": _message(lambda: LoRAModel.from_model(model, LoRAConfig()))}
    found["plan_loaded"] = _message(lambda: LoRAModel.from_pretrained(at / "llama", LoRAConfig(), **options))
    found["plan_adapter"] = _message(lambda: LoRAModel.from_pretrained(at / "adapter", base_model=model))
    after = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    found["untouched"] = before == after and type(model) is cls and "_lora" not in model.__dict__
    net = add_lora(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoRAConfig(target_modules=["0"]))
    for formula in ("use_vera", "use_sharelora") if HAS_FSDP2 else ():
        with pytest.raises(AdapterStateError, match="FSDP2 gives each layer pieces of its own"):
            under_fsdp(gpt2(**{formula: True}), at / formula)
    torch.distributed.fsdp.fully_shard(net, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
    found["late"] = _message(lambda: net.add_adapter(LoRAConfig(target_modules=["0"]), "late"))
    return found


def _message(call: Any) -> str:
    try:
        call()
    except ModelError as error:
        return str(error)
    return "nothing was raised"


def _without_optimizer(at: Path) -> dict[str, Any]:
    (at / "bare" / "checkpoint-4").mkdir(parents=True, exist_ok=True)
    for file in (at / "one" / "checkpoint-4").iterdir():
        if file.name != "optimizer.pt":
            (at / "bare" / "checkpoint-4" / file.name).write_bytes(file.read_bytes())
    torch.distributed.barrier()
    with pytest.raises(AdapterFileError, match="optimizer"):
        under_fsdp(gpt2(), at / "bare_resumed", at / "bare" / "checkpoint-4")
    return {}


SCENARIOS = {**DDP, **FSDP, "refusals": _refusals, "bare": _without_optimizer}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train in one process, then in two, in every way; return the folder and what the processes found."""
    folder = tmp_path_factory.mktemp("runs")
    save_bert(folder / "bert")
    straight = trained(gpt2(), folder / "one", 4)
    tiny("llama", num_key_value_heads=2).save_pretrained(folder / "llama")
    LoRAModel.from_pretrained(folder / "llama", LoRAConfig()).save_pretrained(folder / "adapter")
    left_out = {"ddp_resumed"} if OLDER else set()
    left_out |= set() if HAS_FSDP2 else SCENARIOS.keys() - DDP.keys() - {"refusals"}
    names = [name for name in SCENARIOS if name not in left_out]
    return folder, {**launch(folder, __name__, names), "one": [straight]}


def found(runs: Runs, name: str) -> dict[str, Any]:
    """Return what the first process found."""
    return runs[1][name][0]


def sharded(*names: str) -> list[Any]:
    return [pytest.param(name, marks=fsdp2) for name in names]


ORDINARY = ("fsdp", "fsdp_sharded", "fsdp_accumulates", "fsdp_recomputes", "fsdp_offloads", "fsdp_loads_lean")


@pytest.mark.parametrize("name", ["ddp", "ddp_accumulates", "ddp_checkpoints", *sharded(*ORDINARY)])
def test_two_processes_have_the_losses_and_the_adapter_of_one(runs: Runs, name: str) -> None:
    assert_as_one(runs, name)
    assert found(runs, name)["sharded"] == name.startswith("fsdp")


@pytest.mark.parametrize("name", ["ddp_head", *sharded("fsdp_lean_head")])
def test_a_new_head_has_the_losses_of_one_process(runs: Runs, name: str, tmp_path: Path) -> None:
    want = trained(bert(runs[0] / "bert"), tmp_path / "head", 4)
    assert found(runs, name)["losses"] == pytest.approx(want["losses"], **TOLERANCE)
    assert_close(adapter(runs[0], name), adapter(tmp_path, "head"))


@pytest.mark.parametrize("name", OTHERS)
def test_a_formula_trains_as_in_one_process(runs: Runs, name: str, tmp_path: Path) -> None:
    want = _of_formula(name, tmp_path / "one", 4)
    assert found(runs, f"ddp_{name}")["losses"] == pytest.approx(want["losses"], **TOLERANCE)
    assert_close(adapter(runs[0], f"ddp_{name}"), adapter(tmp_path, "one"))


@fsdp2
@pytest.mark.parametrize(("name", "changes"), [("fsdp_many", MANY), ("fsdp_read", READ)])
def test_adapters_of_every_sort_are_sharded_with_their_layers(
    runs: Runs, name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    got, want = found(runs, name), trained(gpt2(**changes), tmp_path / "one", 4)
    assert got["losses"] == pytest.approx(want["losses"], rel=0, abs=1e-4)
    assert got["base_moved"] == []


@fsdp2
def test_float32_adapters_on_a_half_precision_base_are_sharded_together(runs: Runs, tmp_path: Path) -> None:
    want = trained(gpt2(torch.bfloat16), tmp_path / "one", 4)
    for name in ("fsdp_half_base", "fsdp_half"):
        got = found(runs, name)
        assert got["losses"] == pytest.approx(want["losses"], rel=0, abs=0.02)  # bfloat16 has three digits
        assert {t.dtype for t in adapter(runs[0], name).values()} == {torch.float32}


old_batch = pytest.mark.skipif(OLDER, reason="Transformers 5.0 resumes with the checkpoint's rows a process")


@pytest.mark.parametrize("name", [pytest.param("ddp", marks=old_batch), *sharded("fsdp", "fsdp_sharded")])
def test_one_process_goes_on_where_two_stopped(runs: Runs, name: str, tmp_path: Path) -> None:
    got = trained(gpt2(), tmp_path / "resumed", 4, runs[0] / name / "checkpoint-4")
    assert got["losses"] == pytest.approx(runs[1]["one"][0]["losses"], **TOLERANCE)
    assert_close(adapter(tmp_path, "resumed"), adapter(runs[0], "one"))


resumes_ddp = pytest.mark.skipif(OLDER, reason="Transformers 5.0 loads onto cpu:0, which torch.load does not know")


@pytest.mark.parametrize("name", [pytest.param("ddp_resumed", marks=resumes_ddp), *sharded("fsdp_resumed")])
def test_two_processes_go_on_where_one_stopped(runs: Runs, name: str) -> None:
    assert found(runs, name)["losses"] == pytest.approx(runs[1]["one"][0]["losses"], **TOLERANCE)
    assert_close(adapter(runs[0], name), adapter(runs[0], "one"))
    assert not (runs[0] / name / "checkpoint-4").exists()  # it began after that


@pytest.mark.parametrize("name", ["ddp", *sharded("fsdp")])
def test_the_best_model_is_there_at_the_end_in_both_processes(runs: Runs, name: str) -> None:
    assert_best(runs, name)


@pytest.mark.parametrize("name", ["ddp", *sharded("fsdp", "fsdp_sharded")])
def test_a_checkpoint_of_two_processes_is_one_of_one_process(runs: Runs, name: str) -> None:
    two, single = runs[0] / name / "checkpoint-4", runs[0] / "one" / "checkpoint-4"
    files = {file.name for file in two.iterdir()} - {"rng_state_0.pth", "rng_state_1.pth"}
    assert files == {file.name for file in single.iterdir()} - {"rng_state.pth"}
    states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in (two, single)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, values in states[1]["state"].items():
        assert_close(states[0]["state"][index], values)


@fsdp2
def test_a_checkpoint_without_its_optimizer_is_no_place_to_go_on_from(runs: Runs) -> None:
    found(runs, "bare")


def test_a_model_that_is_spread_already_is_refused_and_left_alone(runs: Runs) -> None:
    got = found(runs, "refusals")
    for name in ("plan", "plan_loaded", "plan_adapter"):
        assert "tp_plan" in got[name], got[name]
    assert got["untouched"]
    assert "fully_shard()" in got["late"]
