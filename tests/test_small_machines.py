"""Memory on small machines: checkpointing, half precision and offloading train what the plain model trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file
from torch import nn
from transformers import BertForSequenceClassification, GitConfig, GitForCausalLM

from hf_lora import LoRAConfig, LoRAModel

from .tiny import IDS, checkpointed, inputs, tiny, without_dropout
from .trainings import trainer
from .versions import OLDER

LABELS = torch.tensor([0, 1])


Inputs = dict[str, torch.Tensor]
TOKENS: Inputs = {"input_ids": IDS, "labels": IDS}
PIXELS: Inputs = {"pixel_values": inputs("vit")["pixel_values"], "labels": LABELS}
# name -> how the model is made, its inputs, and the modules that are saved: a table or patches below every block, a head
MODELS: dict[str, tuple[Callable[[], Any], Inputs, list[str], list[str]]] = {
    "llama": (lambda: tiny("llama"), TOKENS, ["embed_tokens"], ["lm_head"]),
    "t5": (lambda: tiny("t5", tie_word_embeddings=True), TOKENS, ["encoder.embed_tokens"], ["lm_head"]),
    "vit": (lambda: tiny("vit"), PIXELS, ["patch_embeddings"], ["classifier"]),
    "bert": (
        lambda: tiny("bert_mlm", BertForSequenceClassification),
        {"input_ids": IDS, "labels": LABELS}, ["word_embeddings"], ["classifier"],
    ),
}  # fmt: skip


def gradients(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    model(**inputs).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def equal(got: dict[str, torch.Tensor | None], want: dict[str, torch.Tensor | None]) -> bool:
    assert got.keys() == want.keys()
    assert all(g is not None for g in want.values())
    lost = [name for name, g in got.items() if g is None]
    assert not lost, f"no gradient reached {lost}"
    return all((got[n] - want[n]).norm() <= 1e-5 * want[n].norm() for n in want)  # type: ignore[operator, union-attr]


@pytest.mark.filterwarnings("error:None of the inputs have requires_grad")
@pytest.mark.parametrize("when", ["before attaching", "after attaching"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("saved", ["nothing", "table", "head"])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_changes_no_gradient(name: str, saved: str, use_reentrant: bool, when: str) -> None:
    """In float64: what T5's blocks share gets its gradients in another order, and small sums of float32 show it."""
    make, given, table, head = MODELS[name]
    modules = {"nothing": None, "table": table, "head": head}[saved]
    config = LoRAConfig(r=2, target_modules="all-linear", init_lora_weights=False, modules_to_save=modules)
    found = []
    for switched in (False, True):
        torch.manual_seed(0)
        model = make()
        if switched and when == "before attaching":
            checkpointed(model, use_reentrant)
        model = without_dropout(LoRAModel.from_model(model, config)).train()
        if switched and when == "after attaching":
            checkpointed(model, use_reentrant)
        wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
        found.append(gradients(model.double(), wide))
    assert equal(found[1], found[0])


def _git() -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GitConfig(vision_config={**vision, "image_size": 16, "patch_size": 8}, **{**vision, "vocab_size": 48})
    return GitForCausalLM(config)


# Embeddings that return two values, and such as are written in place by what follows.
EMBEDDINGS: dict[str, tuple[Callable[[], Any], Inputs]] = {
    "swin": (lambda: tiny("swin"), {**inputs("swin"), "labels": LABELS}),
    "git": (_git, {"input_ids": IDS, "labels": IDS, "pixel_values": torch.randn(2, 3, 16, 16)}),
}


@pytest.mark.parametrize("when", ["before attaching", "after attaching", "hooks before attaching"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_checkpointing_works_whatever_embeddings_return(name: str, use_reentrant: bool, when: str) -> None:
    make, given = EMBEDDINGS[name]
    found = []
    for switched in (False, True):
        torch.manual_seed(0)
        model = make()
        if switched and when != "after attaching":
            checkpointed(model, use_reentrant)
        if switched and when == "hooks before attaching":
            model.enable_input_require_grads()
        model = without_dropout(LoRAModel.from_model(model, LoRAConfig(r=2, init_lora_weights=False))).train()
        if switched and when == "after attaching":
            checkpointed(model, use_reentrant)
        found.append(gradients(model, given))
    assert equal(found[1], found[0])


def trained(model: Any, inputs: dict[str, torch.Tensor], out: Path, **changes: object) -> dict[str, torch.Tensor]:
    run = trainer(without_dropout(model).train(), out, max_steps=3, save_strategy="no", **changes)
    run.train_dataset = [{key: value[i % 2] for key, value in inputs.items()} for i in range(8)]
    run.train()
    model.save_pretrained(out / "adapter")
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=["autocast", "bfloat16 base"])
def test_bfloat16_training_keeps_float32_masters_and_comes_near_float32(base: torch.dtype, tmp_path: Path) -> None:
    found = []
    for dtype, bf16 in ((torch.float32, False), (base, True)):
        torch.manual_seed(0)
        model = LoRAModel.from_model(tiny("llama").to(dtype), LoRAConfig(r=2, modules_to_save=["lm_head"]))
        found.append(trained(model, TOKENS, tmp_path / str(bf16), bf16=bf16))
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for n, p in model.named_parameters() if "adapters" not in n} == {dtype}
    for key, value in found[0].items():
        assert found[1][key].dtype == torch.float32
        if "lora_A" not in key:
            cosine = torch.nn.functional.cosine_similarity(found[1][key].flatten(), value.flatten(), dim=0)
            assert cosine > 0.8, key


# --- offloading -----------------------------------------------------------------------------------------------------

PARTS = ("transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.ln_f", "lm_head")
DEVICE_MAPS = {
    "one block on disk": {**dict.fromkeys(PARTS, "cpu"), "transformer.h.1": "disk"},
    "all but positions on disk": {**dict.fromkeys(PARTS, "disk"), "transformer.wpe": "cpu"},
    "on the CPU": {"": "cpu"},
}
_upstream = pytest.mark.skipif(OLDER, reason="that version cannot run the plain GPT-2 with tied weights on disk either")
PLACES = [pytest.param(place, marks=_upstream if place == "all but positions on disk" else ()) for place in DEVICE_MAPS]
SETTINGS: dict[str, dict[str, object]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa", "target_modules": ["c_fc"]},
    "vera": {"use_vera": True},
    "sharelora": {"use_sharelora": True},
    "lora_fa": {"use_lora_fa": True},
    "lora_xs": {"use_lora_xs": True},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "a saved table": {"modules_to_save": ["wte"]},
    "biases": {"bias": "all"},
    "token rows": {"trainable_token_indices": [5, 6]},
}


def from_disk(folder: Path, device_map: dict[str, str] | None, **settings: object) -> Any:
    given = {} if device_map is None else {"device_map": device_map, "offload_folder": str(folder / "offloaded")}
    torch.manual_seed(3)
    config = LoRAConfig(**{"r": 2, "target_modules": "all-linear", "init_lora_weights": False, **settings})
    return without_dropout(LoRAModel.from_pretrained(folder / "base", config, **given)).train()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("gpt2").save_pretrained(tmp_path / "base")
    return tmp_path


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("place", PLACES)
def test_an_offloaded_base_gives_the_same_gradients(place: str, settings: str, folder: Path) -> None:
    whole = from_disk(folder, None, **SETTINGS[settings])
    split = from_disk(folder, DEVICE_MAPS[place], **SETTINGS[settings])
    assert any(p.is_meta for p in split.parameters()) == (place != "on the CPU")
    want = gradients(whole, TOKENS)
    assert equal(gradients(split, TOKENS), want)
    split.zero_grad()
    assert equal(gradients(split, TOKENS), want), "putting the base away changed what trains"
    checkpointed(split, use_reentrant=False)
    split.zero_grad()
    assert equal(gradients(split, TOKENS), want)


@pytest.mark.parametrize("settings", ["lora", "dora", "biases", "vera", "sharelora", "lora_fa", "lora_xs"])
@pytest.mark.parametrize("place", PLACES[:2])
def test_the_trainer_trains_an_offloaded_base_to_the_same_adapter(place: str, settings: str, folder: Path) -> None:
    changes = {**SETTINGS[settings], "init_lora_weights": True}
    want = trained(from_disk(folder, None, **changes), TOKENS, folder / "whole")
    split = from_disk(folder, DEVICE_MAPS[place], **changes)
    got = trained(split, TOKENS, folder / "split")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
    again = LoRAModel.from_pretrained(folder / "split" / "adapter")
    with torch.no_grad():
        assert torch.equal(again.eval()(IDS).logits, split.eval()(IDS).logits)


def test_a_second_adapter_on_an_offloaded_base_starts_from_the_base_and_unload_gives_it_back(folder: Path) -> None:
    plain = tiny("gpt2").eval()
    model = tiny("gpt2")
    disk_offload(model, str(folder / "disk"), torch.device("cpu"))
    hooks = {name: type(m._hf_hook) for name, m in model.named_modules() if hasattr(m, "_hf_hook")}
    model = LoRAModel.from_model(model, LoRAConfig(r=2, modules_to_save=["lm_head"], init_lora_weights=False))
    model.add_adapter(LoRAConfig(r=2, use_dora=True, modules_to_save=["ln_f"]), "second")
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    back = model.unload()
    assert {name: type(m._hf_hook) for name, m in back.named_modules() if hasattr(m, "_hf_hook")} == hooks
    assert all(p.requires_grad for p in back.parameters())
    assert torch.equal(back(IDS).logits, plain(IDS).logits)


def test_accelerates_hook_still_reads_the_flag_that_is_kept_for_it() -> None:
    model = tiny("gpt2")
    cpu_offload(model, torch.device("cpu"))
    model = LoRAModel.from_model(model, LoRAConfig(r=2, modules_to_save=["ln_f"]))
    norm = model.transformer.ln_f
    for base, flag in ((type(norm._hf_hook), False), (type(norm._hf_hook)._lora_made.base, True)):
        norm._hf_hook.__class__ = base
        model(IDS)
        assert norm._parameters["weight"].requires_grad is flag, "accelerate reads it elsewhere: offload.py can go"
