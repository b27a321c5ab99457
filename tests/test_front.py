"""The front: a model stays what it was, whatever is done to it."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_ready
from hf_lora.errors import AdapterNameError, AdapterStateError, ModelError, TargetError

from .cases import move

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def gpt2(**changes: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=1)
    config.update(changes)
    return GPT2LMHeadModel(config).eval()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether whole models agree: the laws hold each layer to 1e-5, and rounding grows with depth."""
    return bool((a - b).abs().max() <= 5e-5 * (1 + b.abs().max()))


def trained(**changes: object) -> LoRAModel:
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2, **changes))
    move(model)
    return model


def test_the_model_is_a_loramodel_and_still_its_own_class_under_its_own_name() -> None:
    model = gpt2()
    result = LoRAModel.from_model(model, LoRAConfig())
    assert result is model
    assert isinstance(model, LoRAModel)
    assert isinstance(model, GPT2LMHeadModel)
    cls, own = type(model), GPT2LMHeadModel
    assert (cls.__name__, cls.__qualname__, cls.__module__) == (own.__name__, own.__qualname__, own.__module__)
    assert type(LoRAModel.from_model(gpt2(), LoRAConfig())) is cls


def test_attaching_changes_no_key_of_the_base_and_no_training_flag() -> None:
    model = gpt2().train()
    model.transformer.h[1].eval()
    flags = {n: m.training for n, m in model.named_modules()}
    keys = list(model.state_dict())
    LoRAModel.from_model(model, LoRAConfig())
    assert [k for k in model.state_dict() if "adapters" not in k] == keys
    assert all(m.training == flags[n.partition(".adapters")[0]] for n, m in model.named_modules())


def test_pickle_deepcopy_and_torch_save_keep_model_and_outputs() -> None:
    model = trained()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for again in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(again) is type(model)
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        again.disable_adapters()
        assert not torch.equal(again(IDS).logits, model(IDS).logits), "the copy shares the original's state"


def test_hidden_states_and_attentions_are_recorded_as_before() -> None:
    base = gpt2(attn_implementation="eager")(IDS, output_hidden_states=True, output_attentions=True)
    model = LoRAModel.from_model(gpt2(attn_implementation="eager"), LoRAConfig(target_modules="all-linear"))
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == len(base.hidden_states)
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states, base.hidden_states, strict=True))
    assert len(out.attentions) == len(base.attentions)


def test_labels_give_the_loss_of_the_models_own_class() -> None:
    model, base = LoRAModel.from_model(gpt2(), LoRAConfig()), gpt2()
    assert torch.equal(model(IDS, labels=IDS).loss, base(IDS, labels=IDS).loss)


def test_generate_works_and_uses_the_adapter() -> None:
    model = trained()
    with_adapter = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    with model.adapters_disabled():
        without = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(without, gpt2().generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0))
    assert with_adapter.shape == without.shape


def test_a_class_swapped_under_accelerates_hooks_is_not_ignored(tmp_path) -> None:
    for offload in (
        lambda m: cpu_offload(m, torch.device("cpu")),
        lambda m: disk_offload(m, str(tmp_path), torch.device("cpu")),
    ):
        model = gpt2()
        offload(model)
        assert all(p.is_meta for p in model.parameters())
        base = model(IDS).logits
        LoRAModel.from_model(model, LoRAConfig(r=2, init_lora_weights=False))
        assert all(not p.is_meta for p in model.parameters() if p.requires_grad)
        assert not torch.allclose(model(IDS).logits, base)
        with model.adapters_disabled():
            assert torch.equal(model(IDS).logits, base)
        plain = model.unload()
        assert torch.equal(plain(IDS).logits, base)


def test_a_device_map_over_cpu_and_disk_gives_the_same_logits(tmp_path) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    device_map = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu", "transformer.h.1": "disk", "transformer.ln_f": "cpu", "lm_head": "cpu"}  # fmt: skip
    config = LoRAConfig(r=2, init_lora_weights=False)
    torch.manual_seed(5)
    whole = LoRAModel.from_pretrained(tmp_path / "base", config)
    torch.manual_seed(5)
    split = LoRAModel.from_pretrained(
        tmp_path / "base", config, device_map=device_map, offload_folder=str(tmp_path / "off")
    )
    assert any(p.is_meta for p in split.parameters())
    assert torch.equal(split(IDS).logits, whole(IDS).logits)
    split.save_pretrained(tmp_path / "adapter")
    again = LoRAModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, whole(IDS).logits)


def test_dispatching_after_attaching_works_too() -> None:
    model = trained()
    want = model(IDS).logits
    dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert torch.equal(model(IDS).logits, want)


def test_several_adapters_live_side_by_side_with_their_own_ranks_and_targets() -> None:
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2, init_lora_weights=False), adapter_name="a")
    one = model(IDS).logits
    model.add_adapter(LoRAConfig(r=3, target_modules=["c_fc", "c_attn"], init_lora_weights=False), "b")
    two = model(IDS).logits
    assert model.active_adapters() == ["b"]
    assert sorted(model.peft_config) == ["a", "b"]
    model.set_adapter("a")
    assert torch.equal(model(IDS).logits, one)
    model.set_adapter(["a", "b"])
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
    assert torch.equal(model(IDS).logits, gpt2()(IDS).logits)


def test_train_never_raises_and_check_ready_says_why_nothing_would_train(tmp_path) -> None:
    trained = LoRAModel.from_model(gpt2(), LoRAConfig(r=2))
    trained.save_pretrained(tmp_path)
    model = LoRAModel.from_pretrained(tmp_path, base_model=gpt2())
    assert model.train().training, "for dropout, or a part of something that trains"
    with pytest.raises(AdapterStateError, match="is_trainable"):
        check_ready(model)
    with pytest.raises(RuntimeError, match="grad"):
        model(IDS).logits.sum().backward()
    check_ready(LoRAModel.from_pretrained(tmp_path, base_model=gpt2(), is_trainable=True).train())
    trained.load_adapter(tmp_path, "other")
    with pytest.raises(AdapterStateError, match="set_adapter"):
        check_ready(trained.train())
    trained.set_adapter("default")
    trained.merge_adapter()
    with pytest.raises(AdapterStateError, match="unmerge_adapter"):
        check_ready(trained.train())
    assert trained.unload().train().training


def test_a_frozen_adapter_inside_another_module_follows_its_training_flag(tmp_path) -> None:
    LoRAModel.from_model(gpt2(), LoRAConfig(r=2)).save_pretrained(tmp_path)
    encoder = LoRAModel.from_pretrained(tmp_path, base_model=gpt2())
    whole = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(2, 2)})
    assert whole.train().encoder.training, "its head trains"
    assert not whole.eval().encoder.training


def test_only_the_active_trainable_adapters_require_gradients() -> None:
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2), adapter_name="a")
    model.add_adapter(LoRAConfig(r=2, target_modules=["c_fc"]), "b")

    def training() -> set[str]:
        return {n.split(".adapters.")[1].split(".")[0] for n, p in model.named_parameters() if p.requires_grad}

    assert training() == {"b"}
    model.set_adapter(["a", "b"])
    assert training() == {"a", "b"}
    model.set_adapter("a")
    assert training() == {"a"}
    assert all("adapters" in n for n, p in model.named_parameters() if p.requires_grad)


def test_switching_between_loaded_adapters_walks_no_layer() -> None:
    model = trained()

    class Untouchable(dict):
        def values(self):
            raise AssertionError("switching walked over the layers")

    model._lora.records["default"].trainable = False
    model._lora.layers = Untouchable(model._lora.layers)
    model.set_adapter("default")
    assert model.active_adapters() == ["default"]


def test_tying_weights_again_sees_the_bases_own_parameters() -> None:
    model = trained(modules_to_save=["wte"])
    live = model(IDS).logits
    model.tie_weights()
    assert model.lm_head.weight is model.transformer.wte._parameters["weight"]
    assert torch.equal(model(IDS).logits, live)


def test_resizing_an_adapted_embedding_is_refused_and_a_free_one_is_not() -> None:
    with pytest.raises(AdapterStateError, match="transformer.wte"):
        trained(target_modules=["wte"]).resize_token_embeddings(40)
    model = trained()
    model.resize_token_embeddings(40)
    assert model(IDS).logits.shape[-1] == 40


def test_disabling_and_enabling_leave_the_active_adapter_chosen() -> None:
    model = trained()
    live = model(IDS).logits
    model.disable_adapters()
    assert model.active_adapters() == ["default"]
    assert torch.equal(model(IDS).logits, gpt2()(IDS).logits)
    model.enable_adapters()
    assert torch.equal(model(IDS).logits, live)


def test_the_adapters_state_dict_is_what_its_file_holds_without_pefts_prefix(tmp_path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    file, state = load_file(tmp_path / "adapter_model.safetensors"), model.get_adapter_state_dict()
    assert {f"base_model.model.{k}" for k in state} == set(file)
    assert all(torch.equal(file[f"base_model.model.{k}"], v) for k, v in state.items())


def test_names_that_cannot_be_are_refused_with_the_names_that_are() -> None:
    model = trained()
    with pytest.raises(AdapterNameError, match=r"\['default'\]"):
        model.set_adapter("missing")
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


def test_a_failed_attach_leaves_the_model_as_it_was() -> None:
    model = gpt2()
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
        LoRAModel.from_model(gpt2(), LoRAConfig(target_modules=["c_atn", "c_proj"]))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_model_that_peft_wrapped_is_refused() -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(gpt2(), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(ModelError, match="PEFT"):
        LoRAModel.from_model(wrapped, LoRAConfig(target_modules=["c_attn"]))


def test_the_report_counts_layers_and_flags_uneven_coverage() -> None:
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2, target_modules=["c_attn"], layers_to_transform=[0]))
    report = model.targets_report()
    assert "transformer.h.*.attn.c_attn" in report
    assert "conv1d, r=2" in report
    assert "16 x 48" in report
    assert "1 of 2 uneven" in report
    assert report.splitlines()[-1].split() == ["total", "128"]


def test_counts_are_the_ones_printed(capsys: pytest.CaptureFixture[str]) -> None:
    model = trained()
    trainable, every = model.get_nb_trainable_parameters()
    assert trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 2 * (16 + 48)
    model.print_trainable_parameters()
    assert f"trainable params: {trainable:,d} || all params: {every:,d}" in capsys.readouterr().out


def test_after_import_the_auto_classes_take_a_lora_config(tmp_path) -> None:
    gpt2().save_pretrained(tmp_path)
    for cls in (AutoModelForCausalLM, GPT2LMHeadModel):
        model = cls.from_pretrained(tmp_path, lora_config=LoRAConfig(r=2))
        assert isinstance(model, LoRAModel)
        assert isinstance(model, GPT2LMHeadModel)
        plain = cls.from_pretrained(tmp_path)
        assert not isinstance(plain, LoRAModel)


def test_a_plain_module_takes_adapters_and_saves_them(tmp_path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    model, x = add_lora(net(), LoRAConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)), torch.randn(3, 4)
    model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=net())
    assert torch.equal(again(x), model(x))


def test_tied_embeddings_stay_live_merged_and_reloaded_the_same(tmp_path) -> None:
    for changes in (
        {"target_modules": ["wte", "c_attn"]},
        {"target_modules": ["lm_head", "c_attn"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["wte"]},
        {"trainable_token_indices": [3, 5, 7]},
    ):
        model = trained(**changes)
        assert model.lm_head._parameters["weight"] is model.transformer.wte._parameters["weight"]
        live = model(IDS).logits
        model.save_pretrained(tmp_path / "adapter")
        again = LoRAModel.from_pretrained(tmp_path / "adapter", base_model=gpt2())
        assert torch.equal(again(IDS).logits, live), changes
        model.merge_adapter()
        assert close(model(IDS).logits, live), changes
        model.unmerge_adapter()
        assert model.lm_head._parameters["weight"] is model.transformer.wte._parameters["weight"]
        plain = model.merge_and_unload()
        assert close(plain(IDS).logits, live), changes
        plain.save_pretrained(tmp_path / "merged")
        reloaded = GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
        assert close(reloaded(IDS).logits, live), changes


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=32, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["encoder.embed_tokens", "q"]},
        {"target_modules": ["encoder.embed_tokens", "decoder.embed_tokens"]},
        {"target_modules": ["lm_head", "q"]},
        {"modules_to_save": ["decoder.embed_tokens"]},
        {"trainable_token_indices": {"shared": [5, 6]}},
    ],
)
def test_weights_tied_four_ways_stay_live_merged_and_reloaded_the_same(changes: dict[str, object], tmp_path) -> None:
    ids = {"input_ids": IDS, "decoder_input_ids": IDS}
    model = LoRAModel.from_model(t5(), LoRAConfig(r=2, **changes))
    move(model)
    live = model(**ids).logits
    assert not close(live, t5()(**ids).logits)
    plain = model.merge_and_unload()
    assert close(plain(**ids).logits, live)
    plain.save_pretrained(tmp_path)
    assert close(T5ForConditionalGeneration.from_pretrained(tmp_path).eval()(**ids).logits, live)


def test_a_table_that_nothing_calls_is_refused_with_the_ones_that_are_called() -> None:
    for config in (LoRAConfig(target_modules=["shared", "q"]), LoRAConfig(modules_to_save=["shared"])):
        with pytest.raises(TargetError, match=r"shared .*encoder\.embed_tokens, decoder\.embed_tokens"):
            LoRAModel.from_model(t5(), config)
