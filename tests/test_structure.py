"""Presets give the right names: the architectures people know, config variants, and modules made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, MambaConfig, ResNetConfig, XLNetConfig

from hf_lora import LoRAConfig, add_lora
from hf_lora.errors import TargetError

from .peek import PRESETS, preset_targets
from .test_operations import calls
from .tiny import tiny
from .versions import not_older

# The model, the preset, the last two words of each target's name.
ENDINGS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bert": ("bert", {}, "auto", "self.query self.value"),
    "bert's attention": ("bert", {}, "attention", "self.query self.key self.value output.dense"),
    "bert's all": ("bert", {}, "all-linear", "self.query self.key self.value output.dense intermediate.dense"),
    "roberta": ("roberta", {}, "auto", "self.query self.value"),
    "gpt2": ("gpt2", {}, "auto", "attn.c_attn"),
    "gpt2 with cross-attention": ("gpt2", {"add_cross_attention": True}, "auto", "attn.c_attn crossattention.c_attn crossattention.q_attn"),
    "t5": ("t5", {}, "auto", "SelfAttention.q SelfAttention.v EncDecAttention.q EncDecAttention.v"),
    "vit": ("vit", {}, "auto", "attention.q_proj attention.v_proj"),
    "whisper": ("whisper", {}, "auto", "self_attn.q_proj self_attn.v_proj encoder_attn.q_proj encoder_attn.v_proj"),
    "clip": ("clip", {}, "auto", "self_attn.q_proj self_attn.v_proj"),
    "deberta": ("deberta", {}, "auto", "self.in_proj"),
    "deberta-v2": ("deberta_v2", {"share_att_key": False}, "auto", "self.query_proj self.value_proj"),
    "deepseek": ("deepseek_v3", {}, "auto", "self_attn.q_b_proj self_attn.kv_b_proj"),
    "both factors": ("deepseek_v3", {}, "attention", "self_attn.q_a_proj self_attn.q_b_proj self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj self_attn.o_proj"),
    "mixtral": ("mixtral", {}, "auto", "self_attn.q_proj self_attn.v_proj"),
    "gpt_oss's experts without biases": ("gpt_oss", {}, "all-linear", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj experts.gate_up_proj experts.down_proj"),
    "mamba": ("mamba", {}, "auto", "mixer.in_proj mixer.x_proj mixer.out_proj"),
    "mamba's dead projection": ("mamba", {}, "all-linear", "mixer.in_proj mixer.x_proj mixer.out_proj mixer.dt_proj"),
    "a hybrid's attention": ("jamba", {}, "auto", "self_attn.q_proj self_attn.v_proj"),
    "a hybrid's mixers": ("jamba", {}, "all-linear", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mamba.in_proj mamba.x_proj mamba.dt_proj mamba.out_proj feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj experts.gate_up_proj experts.down_proj"),
    "a hybrid of linear attention": ("qwen3_next", {}, "auto", "self_attn.q_proj self_attn.v_proj linear_attn.in_proj_qkvz"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=not_older if ENDINGS[c][0] in ("vit", "mamba") else ()) for c in ENDINGS]
)
def test_presets_give_the_names_that_people_know(case: str) -> None:
    name, settings, preset, expected = ENDINGS[case]
    found = preset_targets(tiny(name, **settings), preset)
    assert {".".join(name.split(".")[-2:]) for name in found} == set(expected.split())


def test_names_are_in_model_order_and_with_or_without_a_head_the_same() -> None:
    model = tiny("bert")
    layers = [f"encoder.layer.{i}.attention.self" for i in range(2)]
    assert preset_targets(model.bert, "auto") == tuple(f"{x}.{n}" for x in layers for n in ("query", "value"))
    for preset in PRESETS:
        assert preset_targets(model, preset) == tuple(f"bert.{name}" for name in preset_targets(model.bert, preset))


def test_a_mixture_gives_its_experts_as_parameters_and_never_its_router() -> None:
    found = preset_targets(tiny("mixtral", num_hidden_layers=1), "all-linear")
    attention = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert [name.removeprefix("model.layers.0.") for name in found] == [*attention, *experts]


def on_meta(config: Any, cls: Any = None) -> nn.Module:
    with torch.device("meta"):
        return cls(config) if cls else AutoModel.from_config(config)


def test_a_convolutional_model_gives_the_convolutions_of_its_blocks() -> None:
    found = preset_targets(on_meta(ResNetConfig()), "auto")
    assert found
    assert all(name.startswith("encoder.stages.") and name.endswith(".convolution") for name in found)


# The model, the preset, what its refusal says.
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "a model without attention": (lambda: on_meta(MambaConfig(num_hidden_layers=1)), "attention", "'attention'.*MambaModel.*dt_proj, in_proj.*'auto'"),
    "attention held in parameters": (lambda: on_meta(XLNetConfig(n_layer=2)), "auto", r"layer\.\*\.rel_attn\.q \(2\).*all-linear"),
    "a model without linear layers": (lambda: nn.Sequential(nn.ReLU()), "auto", "no linear"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_adapter_fits_is_refused_with_names(case: str) -> None:
    build, preset, match = REFUSED[case]
    with pytest.raises(TargetError, match=match):
        preset_targets(build(), preset)


class Attention(nn.Module):
    """Attention by its class name and any children."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Plain(Attention):
    """The same under a name that says nothing."""


@pytest.mark.parametrize(
    ("children", "auto", "attention"),
    [
        ({"Wqkv": 24, "Wo": 8}, "Wqkv", "Wqkv Wo"),
        ({"Wq": 8, "Wk": 8, "Wv": 8, "dense": 8}, "Wq Wv", "Wq Wk Wv dense"),
        ({"in_proj_qkvz": 32, "out_proj": 8}, "in_proj_qkvz", "in_proj_qkvz out_proj"),
        ({"att_proj": 24, "out_proj": 8}, "att_proj", "att_proj out_proj"),
        ({"q_attn": 8, "c_attn": 16, "c_proj": 8}, "q_attn c_attn", "q_attn c_attn c_proj"),
        ({"to_q": 8, "to_kv": 16, "to_out": 8}, "to_q to_kv", "to_q to_kv to_out"),
        ({"q_proj": 8, "k_proj": 8, "o_proj": 8}, "q_proj k_proj", "q_proj k_proj o_proj"),
        ({"q_proj": 8, "o_proj": 8}, "q_proj", "q_proj o_proj"),
        ({"q_proj": 8, "v_proj": 8, "pos_q_proj": 8, "gate_proj": 8}, "q_proj v_proj", "q_proj v_proj"),
        ({"q_a_proj": 4, "q_gate_proj": 16, "v_proj": 8}, "q_gate_proj v_proj", "q_a_proj q_gate_proj v_proj"),
        ({"key": 8, "value": 8, "receptance": 8, "output": 8}, "value receptance", "key value receptance output"),
        ({"sampling_offsets": 8, "value_proj": 8, "output_proj": 8}, "value_proj", "value_proj output_proj"),
    ],
)
def test_letters_of_names_are_read(children: dict[str, int], auto: str, attention: str) -> None:
    model = Attention(**{name: nn.Linear(8, width) for name, width in children.items()})
    assert set(preset_targets(model, "auto")) == set(auto.split())
    assert set(preset_targets(model, "attention")) == set(attention.split())


INDEXED = Attention(q=nn.Linear(4, 4), v=nn.Linear(4, 4), indexer=Plain(wq=nn.Linear(4, 4), wv=nn.Linear(4, 4)))
BESIDE = Plain(core=Attention(query=nn.Linear(4, 4), value=nn.Linear(4, 4)), output=Plain(dense=nn.Linear(4, 4)))
TORCH = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
TWICE = Attention(q=nn.Linear(4, 4), v=nn.Linear(4, 4))
# The model, what "auto" gives and, where that is another thing, what "all-linear" gives.
BY_HAND: dict[str, tuple[nn.Module, str, str]] = {
    "query and value under any class name": (Plain(query=nn.Linear(4, 4), key=nn.Linear(4, 4), value=nn.Linear(4, 4)), "query value", "query key value"),
    "a wrapper around one linear": (Attention(q_proj=nn.Sequential(nn.Linear(4, 4), nn.ReLU()), v_proj=nn.Sequential(nn.Linear(4, 4))), "q_proj.0 v_proj.0", ""),
    "timm's attention, which samples down a channel at a time": (Attention(query=nn.Sequential(nn.Conv2d(4, 4, 1)), value=nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))), "query.0 value.2", ""),
    "an indexer": (nn.ModuleDict({"layers": nn.ModuleList([Plain(attn=INDEXED)])}), "layers.0.attn.q layers.0.attn.v", ""),
    "PyTorch's attention, never its out_proj": (TORCH, "layers.0.self_attn", "layers.0.self_attn layers.0.linear1 layers.0.linear2"),
    "a layer outside any list": (Plain(layer=Plain(attn=Attention(q=nn.Linear(4, 4), v=nn.Linear(4, 4)), mlp=nn.Linear(4, 4))), "layer.attn.q layer.attn.v", "layer.attn.q layer.attn.v layer.mlp"),
    "an output beside the core": (Plain(layer=Plain(attention=BESIDE, mlp=nn.Linear(4, 8))), "layer.attention.core.query layer.attention.core.value", "layer.attention.core.query layer.attention.core.value layer.attention.output.dense layer.mlp"),
    "a plain network": (nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), "0 2", ""),
    "a module used twice": (nn.ModuleList([TWICE, TWICE]), "0.q 0.v", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_modules_made_by_hand_give_what_they_hold(case: str) -> None:
    model, auto, everything = BY_HAND[case]
    assert preset_targets(model, "auto") == tuple(auto.split())
    assert preset_targets(model, "all-linear") == tuple((everything or auto).split())


def test_adapters_already_there_are_not_seen() -> None:
    model = tiny("bert")
    before = {preset: preset_targets(model, preset) for preset in PRESETS}
    add_lora(model, LoRAConfig(target_modules="all-linear"))
    assert before == {preset: preset_targets(model, preset) for preset in PRESETS}


def test_the_work_grows_with_the_layers_and_no_faster() -> None:
    counts = []
    for layers in (25, 100):
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 9}
        model = on_meta(LlamaConfig(num_hidden_layers=layers, **sizes), LlamaForCausalLM)
        assert len(preset_targets(model, "all-linear")) == 7 * layers  # what is kept of sources is read now
        counts.append(calls(lambda model=model: preset_targets(model, "all-linear"), "call", "c_call"))
    assert counts[1] < 4.5 * counts[0]
