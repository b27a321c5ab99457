"""What PEFT raises as ValueError, TypeError, RuntimeError or KeyError can be caught as that here; PEFT is asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import LoRAError

from .tiny import edit_config, tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's
FAMILIES = (ValueError, TypeError, RuntimeError, KeyError, ImportError)


def caught(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        action()
    return raised.value


def assert_refined(theirs: Exception, ours: Exception) -> None:
    assert isinstance(ours, LoRAError)
    wanted = [family for family in FAMILIES if isinstance(theirs, family)]
    assert wanted, f"PEFT raises {theirs!r}"
    assert [family for family in wanted if not isinstance(ours, family)] == []


def config(**settings: Any) -> dict[str, Any]:
    return {"r": 2, "target_modules": ["q_proj"], **settings}


# Settings that both refuse, when the config is made or when the adapter is added.
SETTINGS: list[dict[str, Any]] = [
    {"r": 0}, {"r": -1}, {"r": "8"}, {"r": 2.5}, {"lora_alpha": "x"}, {"lora_dropout": "x"}, {"lora_dropout": 2.0},
    {"task_type": "CAUSALLM"}, {"task_type": "NOPE"}, {"init_lora_weights": "nope"}, {"init_lora_weights": "pissa_niter_x"},
    {"init_lora_weights": "loftq"}, {"init_lora_weights": "orthogonal", "r": 3}, {"target_modules": ["nope"]},
    {"target_modules": "nope"}, {"target_modules": "q_proj,v_proj"}, {"target_modules": 5}, {"target_modules": []},
    {"target_modules": [""]}, {"target_modules": ["norm"]}, {"target_modules": ["input_layernorm"]},
    {"target_modules": "all_linear"}, {"exclude_modules": ["q_proj"]}, {"modules_to_save": ["layers"]},
    {"layers_to_transform": [0], "target_modules": "q_proj"}, {"layers_pattern": "h"}, {"layers_to_transform": [99]},
    {"layers_to_transform": "x"}, {"rank_pattern": {"q_proj": 0}}, {"trainable_token_indices": {"nope": [1]}},
    {"trainable_token_indices": "x"}, {"lora_bias": True, "use_dora": True}, {"nonsense": 1}, {"target_module": ["q_proj"]},
    {"alpha": 16}, {"lora_bias": True, "init_lora_weights": "pissa"}, {"eva_config": 5},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_setting_that_both_refuse_is_of_their_type(settings: dict[str, Any]) -> None:
    theirs = caught(lambda: peft.get_peft_model(tiny("llama"), peft.LoraConfig(**config(**settings))))
    assert_refined(theirs, caught(lambda: LoRAModel.from_model(tiny("llama"), LoRAConfig(**config(**settings)))))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=False)).save_pretrained(folder / "adapter")
    (folder / "file").write_text("x")
    for name in ("rank", "method", "json", "weights"):
        shutil.copytree(folder / "adapter", folder / name)
    edit_config(folder / "rank", r=3)
    edit_config(folder / "method", peft_type="NOPE")
    (folder / "json" / "adapter_config.json").write_text("{")
    (folder / "weights" / "adapter_model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("name", ["gone", "file", "rank", "json", "weights"])
def test_a_folder_that_both_refuse_is_of_their_type(name: str, saved: Path) -> None:
    path = os.fspath(saved / name)
    theirs = caught(lambda: peft.PeftModel.from_pretrained(tiny("llama"), path))
    assert_refined(theirs, caught(lambda: LoRAModel.from_pretrained(path, base_model=tiny("llama"))))


def broken(model: nn.Module) -> Any:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.constant_(parameter, float("nan"))
    return model


def merged(model: Any) -> Any:
    model.merge_adapter()
    return model


THEIRS, OURS = peft.LoraConfig(**config()), LoRAConfig(**config())
X = torch.tensor([[1, 2]])
Call = Callable[[Any], object]
# What is done to a PeftModel; what to a LoRAModel; settings of both.
CALLS: dict[str, tuple[Call, Call, dict[str, Any]]] = {
    "another model's adapter": (
        lambda m: peft.PeftModel.from_pretrained(tiny("gpt2"), m.saved), lambda m: LoRAModel.from_pretrained(m.saved, base_model=tiny("gpt2")), {},
    ),
    "loading none": (lambda m: m.load_adapter("/gone", "b"), lambda m: m.load_adapter("/gone", "b"), {}),
    "selecting none": (lambda m: m.set_adapter("x"), lambda m: m.set_adapter("x"), {}),
    "deleting none": (lambda m: m.delete_adapter("x"), lambda m: m.delete_adapter("x"), {}),
    "saving none": (
        lambda m: m.save_pretrained("/x", selected_adapters=["x"]), lambda m: m.save_pretrained("/x", adapter_name="x"), {},
    ),
    "tensors of none": (
        lambda m: peft.get_peft_model_state_dict(m, adapter_name="x"), lambda m: m.get_adapter_state_dict("x"), {},
    ),
    "a name that is taken": (lambda m: m.add_adapter("default", THEIRS), lambda m: m.add_adapter(OURS, "default"), {}),
    "a name with a dot": (lambda m: m.add_adapter("a.b", THEIRS), lambda m: m.add_adapter(OURS, "a.b"), {}),
    "a container's name": (lambda m: m.add_adapter("keys", THEIRS), lambda m: m.add_adapter(OURS, "keys"), {}),
    "saving to a file": (lambda m: m.save_pretrained(__file__), lambda m: m.save_pretrained(__file__), {}),
    "merging what is not finite": (
        lambda m: broken(m).merge_and_unload(safe_merge=True), lambda m: broken(m).merge_and_unload(), {},
    ),
    "merging a bias": (lambda m: m.merge_and_unload(), lambda m: m.merge_and_unload(), {"lora_bias": True}),
    "deleting what is merged": (lambda m: merged(m).delete_adapter("default"), lambda m: merged(m).delete_adapter("default"), {}),
    "rows of none": (lambda m: m.eval()(X, adapter_names=["x"]), lambda m: m.eval()(X, adapter_names=["x"]), {}),
    "an argument that is none": (lambda m: m.merge_and_unload(no=1), lambda m: m.merge_and_unload(no=1), {}),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_both_refuse_is_of_their_type(what: str, saved: Path) -> None:
    theirs, ours, settings = CALLS[what]
    made = [
        peft.get_peft_model(tiny("llama"), peft.LoraConfig(**config(**settings))),
        LoRAModel.from_model(tiny("llama"), LoRAConfig(**config(**settings))),
    ]
    for model in made:
        model.__dict__["saved"] = os.fspath(saved / "adapter")
    assert_refined(caught(lambda: theirs(made[0])), caught(lambda: ours(made[1])))


def test_the_message_of_a_name_is_no_repr() -> None:
    error = caught(lambda: LoRAModel.from_model(tiny("llama"), OURS).set_adapter("x"))
    assert str(error) == "no adapter 'x'; the model has ['default']."
