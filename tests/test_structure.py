"""Presets give the right names: the architectures people know, config variants, and modules made by hand."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BambaConfig,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    DebertaConfig,
    DebertaV2Config,
    DeepseekV3Config,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    ResNetConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
    XLNetConfig,
)

from hf_lora.errors import TargetError

from .peek import preset_targets
from .versions import not_older


def on_meta(config: PreTrainedConfig, cls: Any = None) -> nn.Module:
    with torch.device("meta"):
        return cls(config) if cls else AutoModel.from_config(config)


def endings(config: PreTrainedConfig, preset: Any) -> set[str]:
    """Return the last two words of each target's name."""
    return {".".join(name.split(".")[-2:]) for name in preset_targets(on_meta(config), preset)}


AUTO = {
    "bert": (BertConfig(), {"self.query", "self.value"}),
    "roberta": (RobertaConfig(), {"self.query", "self.value"}),
    "gpt2": (GPT2Config(), {"attn.c_attn"}),
    "t5": (T5Config(), {"SelfAttention.q", "SelfAttention.v", "EncDecAttention.q", "EncDecAttention.v"}),
    "vit": (ViTConfig(), {"attention.q_proj", "attention.v_proj"}),
    "whisper": (
        WhisperConfig(),
        {"self_attn.q_proj", "self_attn.v_proj", "encoder_attn.q_proj", "encoder_attn.v_proj"},
    ),
    "clip": (CLIPConfig(), {"self_attn.q_proj", "self_attn.v_proj"}),
    "deberta": (DebertaConfig(relative_attention=True, pos_att_type=["c2p", "p2c"]), {"self.in_proj"}),
    "deberta-v2": (
        DebertaV2Config(relative_attention=True, pos_att_type=["c2p", "p2c"], share_att_key=False),
        {"self.query_proj", "self.value_proj"},
    ),
    "deepseek_v3": (DeepseekV3Config(num_hidden_layers=4), {"self_attn.q_b_proj", "self_attn.kv_b_proj"}),
    "mixtral": (MixtralConfig(num_hidden_layers=2), {"self_attn.q_proj", "self_attn.v_proj"}),
    "gpt_oss": (GptOssConfig(num_hidden_layers=2), {"self_attn.q_proj", "self_attn.v_proj"}),
    "mamba": (MambaConfig(num_hidden_layers=2), {"mixer.in_proj", "mixer.x_proj", "mixer.out_proj"}),
}


@pytest.mark.parametrize(
    "model_type", [pytest.param(t, marks=not_older if t in ("vit", "mamba") else ()) for t in AUTO]
)
def test_auto_gives_query_and_value(model_type: str) -> None:
    config, expected = AUTO[model_type]
    assert endings(config, "auto") == expected


def test_bert_gives_its_names_in_model_order() -> None:
    model = on_meta(BertConfig(num_hidden_layers=2), BertForSequenceClassification)
    layers = [f"bert.encoder.layer.{i}" for i in range(2)]
    core = ("query", "key", "value")
    assert preset_targets(model, "auto") == tuple(f"{x}.attention.self.{n}" for x in layers for n in core if n != "key")
    assert preset_targets(model, "attention") == tuple(
        name for x in layers for name in [*(f"{x}.attention.self.{n}" for n in core), f"{x}.attention.output.dense"]
    )
    extra = ("intermediate.dense", "output.dense")
    assert set(preset_targets(model, "all-linear")) == {
        *preset_targets(model, "attention"),
        *(f"{x}.{n}" for x in layers for n in extra),
    }


def test_a_headless_model_has_the_same_targets_as_the_task_model() -> None:
    config = BertConfig(num_hidden_layers=2)
    for preset in ("auto", "attention", "all-linear"):
        bare = preset_targets(on_meta(config, BertModel), preset)
        assert preset_targets(on_meta(config, BertForSequenceClassification), preset) == tuple(
            f"bert.{n}" for n in bare
        )


def test_gpt2_cross_attention_gives_its_query_and_its_second_c_attn() -> None:
    model = on_meta(GPT2Config(n_layer=1, add_cross_attention=True), GPT2LMHeadModel)
    found = preset_targets(model, "auto")
    expected = ("attn.c_attn", "crossattention.c_attn", "crossattention.q_attn")
    assert found == tuple(f"transformer.h.0.{name}" for name in expected)
    assert "transformer.h.0.crossattention.c_proj" in preset_targets(model, "attention")


def granite(*spellings: list[str]) -> GraniteMoeHybridConfig:
    """Return a hybrid's config; how its layers are called has changed between versions of Transformers."""
    for layer_types in spellings:
        with contextlib.suppress(ValueError):
            return GraniteMoeHybridConfig(num_hidden_layers=2, layer_types=layer_types)
    raise AssertionError("no spelling is known")


@pytest.mark.parametrize(
    ("config", "attention", "others"),
    [
        (
            BambaConfig(num_hidden_layers=3, attn_layer_indices=[1]),
            {"1.self_attn.q_proj", "1.self_attn.v_proj"},
            {"0.mamba.in_proj", "0.mamba.out_proj", "2.feed_forward.down_proj"},
        ),
        (
            granite(["linear_attention", "full_attention"], ["mamba", "attention"]),
            {"1.self_attn.q_proj", "1.self_attn.v_proj"},
            {"0.mamba.in_proj", "0.mamba.out_proj", "0.shared_mlp.input_linear"},
        ),
        (
            Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]),
            {"1.self_attn.q_proj", "1.self_attn.v_proj"},
            {"0.conv.in_proj", "0.conv.out_proj", "0.feed_forward.w1"},
        ),
    ],
    ids=["bamba", "granitemoehybrid", "lfm2"],
)
def test_hybrids_give_attention_to_auto_and_every_mixer_to_all_linear(
    config: PreTrainedConfig, attention: set[str], others: set[str]
) -> None:
    model = on_meta(config)
    assert {name.removeprefix("layers.") for name in preset_targets(model, "auto")} == attention
    assert others | attention <= {name.removeprefix("layers.") for name in preset_targets(model, "all-linear")}


def test_a_mixture_gives_its_experts_as_parameters_and_never_its_router() -> None:
    found = preset_targets(on_meta(MixtralConfig(num_hidden_layers=1), MixtralForCausalLM), "all-linear")
    assert [name.removeprefix("model.layers.0.") for name in found] == [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
    ]


def test_expert_biases_are_no_targets() -> None:
    assert {"experts.gate_up_proj", "experts.down_proj"} == {
        name for name in endings(GptOssConfig(num_hidden_layers=1), "all-linear") if name.startswith("experts.")
    }


def test_low_rank_pairs_give_both_factors_to_attention() -> None:
    found = {name.split(".")[1] for name in endings(DeepseekV3Config(num_hidden_layers=1), "attention")}
    assert found == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}


@not_older
def test_all_linear_adds_the_dead_projection_of_mamba_that_auto_leaves_out() -> None:
    assert endings(MambaConfig(num_hidden_layers=1), "all-linear") - endings(
        MambaConfig(num_hidden_layers=1), "auto"
    ) == {"mixer.dt_proj"}


def test_a_convolutional_model_gives_the_convolutions_of_its_blocks() -> None:
    found = preset_targets(on_meta(ResNetConfig()), "auto")
    assert found
    assert all(name.startswith("encoder.stages.") and name.endswith(".convolution") for name in found)


def test_attention_of_a_model_without_it_is_refused_with_names() -> None:
    with pytest.raises(TargetError, match="'attention'.*MambaModel.*dt_proj, in_proj.*'auto'"):
        preset_targets(on_meta(MambaConfig(num_hidden_layers=1)), "attention")


def test_attention_held_in_parameters_is_refused_with_names() -> None:
    with pytest.raises(TargetError, match=r"layer\.\*\.rel_attn\.q \(2\).*all-linear"):
        preset_targets(on_meta(XLNetConfig(n_layer=2)), "auto")


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(TargetError, match="linear"):
        preset_targets(nn.Sequential(nn.ReLU()), "auto")


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


def test_query_and_value_make_an_attention_under_any_class_name() -> None:
    model = Plain(query=nn.Linear(4, 4), key=nn.Linear(4, 4), value=nn.Linear(4, 4))
    assert preset_targets(model, "auto") == ("query", "value")


def test_a_wrapper_around_one_linear_is_seen_through() -> None:
    model = Attention(q_proj=nn.Sequential(nn.Linear(4, 4), nn.ReLU()), v_proj=nn.Sequential(nn.Linear(4, 4)))
    assert preset_targets(model, "auto") == ("q_proj.0", "v_proj.0")


def test_an_indexer_inside_an_attention_is_left_out_of_every_preset() -> None:
    indexer = Plain(wq=nn.Linear(4, 4), wv=nn.Linear(4, 4))
    block = Plain(attn=Attention(q=nn.Linear(4, 4), v=nn.Linear(4, 4), indexer=indexer))
    model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    for preset in ("auto", "attention", "all-linear"):
        assert preset_targets(model, preset) == ("layers.0.attn.q", "layers.0.attn.v")


def test_multihead_attention_is_named_itself_and_never_its_out_proj() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    assert preset_targets(model, "auto") == ("layers.0.self_attn", "layers.1.self_attn")
    assert preset_targets(model, "all-linear") == tuple(
        f"layers.{i}.{name}" for i in range(2) for name in ("self_attn", "linear1", "linear2")
    )


def test_a_layer_outside_any_list_gives_its_mlp_to_all_linear() -> None:
    layer = Plain(attn=Attention(q=nn.Linear(4, 4), v=nn.Linear(4, 4)), mlp=nn.Linear(4, 4))
    assert preset_targets(Plain(layer=layer), "all-linear") == ("layer.attn.q", "layer.attn.v", "layer.mlp")


def test_an_output_beside_the_core_does_not_pass_for_the_layers_mlp() -> None:
    core = Attention(query=nn.Linear(4, 4), value=nn.Linear(4, 4))
    attention = Plain(core=core, output=Plain(dense=nn.Linear(4, 4)))
    found = preset_targets(Plain(layer=Plain(attention=attention, mlp=nn.Linear(4, 8))), "all-linear")
    core_names = ("layer.attention.core.query", "layer.attention.core.value")
    assert found == (*core_names, "layer.attention.output.dense", "layer.mlp")


def test_a_plain_network_gives_all_its_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    assert preset_targets(model, "auto") == ("0", "2")


def test_adapters_already_there_are_not_seen() -> None:
    model = Attention(q_proj=nn.Linear(4, 4), v_proj=nn.Linear(4, 4))
    before = {preset: preset_targets(model, preset) for preset in ("auto", "attention", "all-linear")}

    class LoRALinear(nn.Linear):
        pass

    model.q_proj.__class__ = LoRALinear
    model.q_proj.adapters = nn.ModuleDict({"default": Attention(query=nn.Linear(4, 2), value=nn.Linear(2, 4))})
    assert before == {preset: preset_targets(model, preset) for preset in before}


def test_modules_used_twice_have_one_name() -> None:
    shared = Attention(q=nn.Linear(4, 4), v=nn.Linear(4, 4))
    assert preset_targets(nn.ModuleList([shared, shared]), "auto") == ("0.q", "0.v")


def test_the_work_grows_with_the_layers_and_no_faster() -> None:
    calls = []
    for layers in (25, 100):
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 9}
        model = on_meta(LlamaConfig(num_hidden_layers=layers, **sizes), LlamaForCausalLM)
        preset_targets(model, "all-linear")  # what is kept of sources is read now
        calls.append(_calls(lambda model=model, layers=layers: len(preset_targets(model, "all-linear")) == 7 * layers))
    assert calls[1] < 4.5 * calls[0]


def _calls(run: Callable[[], bool]) -> int:
    """Return how many calls of Python's and of C's functions something makes, which is to come out true."""
    found = Counter()
    sys.setprofile(lambda frame, event, argument: found.update([event]))
    try:
        right = run()
    finally:
        sys.setprofile(None)
    assert right
    return found["call"] + found["c_call"]
