"""The front: a model stays what it was, whatever is done to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel, check_ready
from hf_lora.errors import AdapterNameError, AdapterStateError, TargetError

from .cases import move
from .tiny import IDS, tiny


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether whole models agree: the laws hold each layer to 1e-5, and rounding grows with depth."""
    return bool((a - b).abs().max() <= 5e-5 * (1 + b.abs().max()))


def trained(name: str = "gpt2", **changes: object) -> Any:
    model = LoRAModel.from_model(tiny(name), LoRAConfig(r=2, **changes))
    move(model)
    return model


def base_logits() -> torch.Tensor:
    return tiny("gpt2")(IDS).logits


def test_the_model_is_a_loramodel_and_still_its_own_class_under_its_own_name() -> None:
    model = tiny("gpt2")
    result = LoRAModel.from_model(model, LoRAConfig())
    assert result is model
    assert isinstance(model, LoRAModel)
    assert isinstance(model, GPT2LMHeadModel)
    cls, own = type(model), GPT2LMHeadModel
    assert (cls.__name__, cls.__qualname__, cls.__module__) == (own.__name__, own.__qualname__, own.__module__)
    assert type(LoRAModel.from_model(tiny("gpt2"), LoRAConfig())) is cls


def test_attaching_changes_no_key_of_the_base_and_no_training_flag() -> None:
    model = tiny("gpt2").train()
    model.transformer.h[1].eval()
    flags = {n: m.training for n, m in model.named_modules()}
    keys = list(model.state_dict())
    LoRAModel.from_model(model, LoRAConfig())
    assert [k for k in model.state_dict() if "adapters" not in k] == keys
    assert all(m.training == flags[n.partition(".adapters")[0]] for n, m in model.named_modules())


def test_outputs_losses_and_generation_are_those_of_the_models_own_class() -> None:
    eager = {"attn_implementation": "eager"}
    wanted = {"labels": IDS, "output_hidden_states": True, "output_attentions": True}
    base = tiny("gpt2", **eager)(IDS, **wanted)
    out = LoRAModel.from_model(tiny("gpt2", **eager), LoRAConfig(target_modules="all-linear"))(IDS, **wanted)
    assert torch.equal(out.loss, base.loss)
    assert len(out.hidden_states) == len(base.hidden_states)
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states, base.hidden_states, strict=True))
    assert len(out.attentions) == len(base.attentions)
    model, how = trained(), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with_adapter = model.generate(IDS, **how)
    with model.adapters_disabled():
        without = model.generate(IDS, **how)
    assert torch.equal(without, tiny("gpt2").generate(IDS, **how))
    assert with_adapter.shape == without.shape


# --- offloading ---------------------------------------------------------------------------------------------------


def test_a_class_swapped_under_accelerates_hooks_is_not_ignored(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    for offload in (lambda m: cpu_offload(m, cpu), lambda m: disk_offload(m, str(tmp_path), cpu)):
        model = tiny("gpt2")
        offload(model)
        assert all(p.is_meta for p in model.parameters())
        base = model(IDS).logits
        LoRAModel.from_model(model, LoRAConfig(r=2, init_lora_weights=False))
        assert all(not p.is_meta for p in model.parameters() if p.requires_grad)
        assert not torch.allclose(model(IDS).logits, base)
        with model.adapters_disabled():
            assert torch.equal(model(IDS).logits, base)
        assert torch.equal(model.unload()(IDS).logits, base)


# --- several adapters ---------------------------------------------------------------------------------------------


def test_several_adapters_live_side_by_side_with_their_own_ranks_and_targets() -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, init_lora_weights=False), adapter_name="a")

    def training() -> set[str]:
        return {n.split(".adapters.")[1].split(".")[0] for n, p in model.named_parameters() if p.requires_grad}

    one = model(IDS).logits
    model.add_adapter(LoRAConfig(r=3, target_modules=["c_fc", "c_attn"], init_lora_weights=False), "b")
    two = model(IDS).logits
    assert model.active_adapters() == ["b"]
    assert training() == {"b"}, "only the active ones require gradients"
    assert sorted(model.peft_config) == ["a", "b"]
    model.set_adapter("a")
    assert training() == {"a"}
    assert torch.equal(model(IDS).logits, one)
    model.set_adapter(["a", "b"])
    assert training() == {"a", "b"}
    assert all("adapters" in n for n, p in model.named_parameters() if p.requires_grad)
    both = model(IDS).logits
    assert not torch.allclose(both, one)
    assert not torch.allclose(both, two)
    model.merge_adapter()
    assert torch.allclose(model(IDS).logits, both, atol=1e-5)
    model.unmerge_adapter()
    model.delete_adapter("b")
    assert model.active_adapters() == ["a"]
    assert torch.equal(model(IDS).logits, one)
    assert not any("b" in k.split(".") for k in model.state_dict())


@pytest.mark.parametrize(
    "changes",
    [{"modules_to_save": ["ln_f"]}, {"target_parameters": ["c_fc.weight"]}, {"bias": "all"}, {"use_dora": True}],
)
def test_a_second_adapter_starts_from_the_base_whatever_the_active_one_has_learnt(changes: dict[str, object]) -> None:
    model = trained(**changes)
    model.add_adapter(LoRAConfig(r=2, **changes), "second")
    assert torch.equal(model(IDS).logits, base_logits())


def test_names_that_cannot_be_are_refused_with_the_names_that_are() -> None:
    model = trained()
    for call in (model.set_adapter, model.targets_report):
        with pytest.raises(AdapterNameError, match=r"\['default'\]"):
            call("missing")
    for bad in ("default", "", "a.b", "keys"):
        with pytest.raises(AdapterNameError):
            model.add_adapter(LoRAConfig(), bad)
    assert list(model.peft_config) == ["default"]


def test_what_merging_forbids_says_so() -> None:
    model = trained()
    model.merge_adapter()
    for call in (
        model.merge_adapter,
        model.disable_adapters,
        lambda: model.set_adapter("default"),
        lambda: model.add_adapter(LoRAConfig(), "b"),
        lambda: model.delete_adapter("default"),
        lambda: model.save_pretrained("nowhere"),
    ):
        with pytest.raises(AdapterStateError, match="unmerge_adapter"):
            call()


# --- training -----------------------------------------------------------------------------------------------------


def test_train_never_raises_and_check_ready_says_why_nothing_would_train(tmp_path: Path) -> None:
    trains = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    trains.save_pretrained(tmp_path)
    model = LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"))
    assert model.train().training, "for dropout, or a part of something that trains"
    with pytest.raises(AdapterStateError, match="is_trainable"):
        check_ready(model)
    with pytest.raises(RuntimeError, match="grad"):
        model(IDS).logits.sum().backward()
    check_ready(LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"), is_trainable=True).train())
    trains.load_adapter(tmp_path, "other")
    with pytest.raises(AdapterStateError, match="set_adapter"):
        check_ready(trains.train())
    trains.set_adapter("default")
    trains.merge_adapter()
    with pytest.raises(AdapterStateError, match="unmerge_adapter"):
        check_ready(trains.train())
    assert trains.unload().train().training
    whole = nn.ModuleDict({"encoder": model, "head": nn.Linear(2, 2)})
    assert whole.train().encoder.training, "its head trains"
    assert not whole.eval().encoder.training


# --- what cannot be adapted ---------------------------------------------------------------------------------------


def test_a_failed_attach_leaves_the_model_as_it_was() -> None:
    model = tiny("gpt2")
    before = {n: (type(m), set(m.__dict__)) for n, m in model.named_modules()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    for name, config in (
        ("typo", LoRAConfig(target_modules=["c_attn", "typo"])),
        ("missing", LoRAConfig(modules_to_save=["missing"])),
        ("drop", LoRAConfig(target_modules=["c_attn", "drop"])),
    ):
        with pytest.raises(TargetError, match=name):
            LoRAModel.from_model(model, config)
        assert {n: (type(m), set(m.__dict__)) for n, m in model.named_modules()} == before
        assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


def test_a_target_that_matches_nothing_is_named_with_its_nearest_names() -> None:
    with pytest.raises(TargetError, match="'c_atn'.*'c_attn'"):
        LoRAModel.from_model(tiny("gpt2"), LoRAConfig(target_modules=["c_atn", "c_proj"]))


def test_a_table_that_nothing_calls_is_refused_with_the_ones_that_are_called() -> None:
    for config in (LoRAConfig(target_modules=["shared", "q"]), LoRAConfig(modules_to_save=["shared"])):
        with pytest.raises(TargetError, match=r"shared .*encoder\.embed_tokens, decoder\.embed_tokens"):
            LoRAModel.from_model(tiny("t5"), config)


# --- reports, files, seams ----------------------------------------------------------------------------------------


def test_the_report_counts_layers_and_flags_uneven_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, target_modules=["c_attn"], layers_to_transform=[0]))
    report = model.targets_report()
    for text in ("transformer.h.*.attn.c_attn", "conv1d, r=2", "16 x 48", "1 of 2 uneven"):
        assert text in report
    assert report.splitlines()[-1].split() == ["total", "128"]
    trainable, every = model.get_nb_trainable_parameters()
    assert trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (16 + 48)
    model.print_trainable_parameters()
    assert f"trainable params: {trainable:,d} || all params: {every:,d}" in capsys.readouterr().out


def test_the_adapters_state_dict_is_what_its_file_holds_without_pefts_prefix(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    file, state = load_file(tmp_path / "adapter_model.safetensors"), model.get_adapter_state_dict()
    assert {f"base_model.model.{k}" for k in state} == set(file)
    assert all(torch.equal(file[f"base_model.model.{k}"], v) for k, v in state.items())


def test_after_import_the_auto_classes_take_a_lora_config(tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path)
    for cls in (AutoModelForCausalLM, GPT2LMHeadModel):
        model = cls.from_pretrained(tmp_path, lora_config=LoRAConfig(r=2))
        assert isinstance(model, LoRAModel)
        assert isinstance(model, GPT2LMHeadModel)
        assert not isinstance(cls.from_pretrained(tmp_path), LoRAModel)


# --- tied weights -------------------------------------------------------------------------------------------------


def test_tying_weights_again_sees_the_bases_own_parameters() -> None:
    model = trained(modules_to_save=["wte"])
    live = model(IDS).logits
    model.tie_weights()
    assert model.lm_head.weight is model.transformer.wte._parameters["weight"]
    assert torch.equal(model(IDS).logits, live)


def stays_the_same_merged_and_saved(model: LoRAModel, given: dict[str, torch.Tensor], folder: Path) -> None:
    own = type(tiny("gpt2" if isinstance(model, GPT2LMHeadModel) else "t5"))
    live = model(**given).logits
    plain = model.merge_and_unload()
    assert close(plain(**given).logits, live)
    plain.save_pretrained(folder)
    assert close(own.from_pretrained(folder).eval()(**given).logits, live)


TIED: list[dict[str, object]] = [
    {"target_modules": ["wte", "c_attn"]},
    {"target_modules": ["lm_head", "c_attn"]},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["wte"]},
    {"trainable_token_indices": [5, 6, 7]},
]


@pytest.mark.parametrize("changes", TIED)
def test_tied_embeddings_stay_live_merged_and_reloaded_the_same(changes: dict[str, object], tmp_path: Path) -> None:
    model = trained(**changes)
    live = model(IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(LoRAModel.from_pretrained(tmp_path / "adapter", base_model=tiny("gpt2"))(IDS).logits, live)
    model.merge_adapter()
    assert close(model(IDS).logits, live)
    model.unmerge_adapter()
    assert model.lm_head._parameters["weight"] is model.transformer.wte._parameters["weight"]
    stays_the_same_merged_and_saved(model, {"input_ids": IDS}, tmp_path / "merged")


TIED_FOUR_WAYS: list[dict[str, object]] = [
    {"target_modules": ["encoder.embed_tokens", "q"]},
    {"target_modules": ["encoder.embed_tokens", "decoder.embed_tokens"]},
    {"target_modules": ["lm_head", "q"]},
    {"modules_to_save": ["decoder.embed_tokens"]},
    {"trainable_token_indices": {"shared": [5, 6]}},
]


@pytest.mark.parametrize("changes", TIED_FOUR_WAYS)
def test_weights_tied_four_ways_stay_live_merged_and_reloaded_the_same(
    changes: dict[str, object], tmp_path: Path
) -> None:
    given = {"input_ids": IDS, "decoder_input_ids": IDS}
    model = trained("t5", **changes)
    assert not close(model(**given).logits, tiny("t5")(**given).logits)
    stays_the_same_merged_and_saved(model, given, tmp_path)
