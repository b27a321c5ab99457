"""Weights that a parent's code reads past the layer's forward are found in its source."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.t5.modeling_t5 import T5DenseActDense
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from .peek import child_is_called, weight_is_read
from .versions import not_older


def a(cls: type[nn.Module]) -> nn.Module:
    """Return an instance without running its constructor: only its class's source is looked at."""
    return cls.__new__(cls)


class Readers(nn.Module):
    """Every way of using a child that is told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.initialised = nn.Linear(2, 2)
        nn.init.zeros_(self.initialised.weight)

    def _init_weights(self) -> None:
        self.initialised.weight.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.asked.weight.dtype).view(self.asked.weight.shape)
        if isinstance(self.asked.weight, Tensor) and self.asked.weight.size(0) and self.asked.weight.data.device:
            x = self.asked(x)
        x = F.linear(x, self.read.weight)
        named = self.aliased
        x = x @ named.weight.T
        for layer in (self.first, self.second):
            x = x + layer.weight.sum()
        x = x * getattr(self, "got").weight  # noqa: B009
        return self.both(x) + self.both.weight + (self.missing.bias if self.missing is not None else 0)


class Inheriting(Readers):
    """A class without code of its own."""


def test_reading_a_weight_counts_and_asking_about_it_does_not() -> None:
    readers = Readers()
    read = {"read", "aliased", "first", "second", "got", "both"}
    others = {"asked", "initialised", "missing", "unknown"}
    assert {name for name in read | others if weight_is_read(readers, name)} == read


def test_a_child_is_called_unless_the_source_shows_only_reads() -> None:
    readers = Readers()
    names = {"asked", "both", "unknown", "read", "aliased", "first", "got", "missing"}
    assert {name for name in names if child_is_called(readers, name)} == {"asked", "both", "unknown"}


def test_reads_are_inherited() -> None:
    assert weight_is_read(Inheriting(), "read")


def test_a_class_made_at_run_time_reads_what_its_base_reads() -> None:
    assert weight_is_read(a(type("Front", (Readers,), {})), "read")


def test_a_class_without_source_reads_nothing() -> None:
    scope: dict[str, type] = {"Module": nn.Module}
    exec("class Made(Module):\n    def forward(self, x): return x @ self.inner.weight", scope)
    assert not weight_is_read(a(scope["Made"]), "inner")
    assert child_is_called(a(scope["Made"]), "inner")


def test_wavlm_reads_all_four_projections_and_calls_none() -> None:
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert weight_is_read(a(WavLMAttention), name)
        assert not child_is_called(a(WavLMAttention), name)


@not_older
def test_mamba_reads_dt_proj_and_never_calls_it() -> None:
    mixer = a(MambaMixer)
    assert weight_is_read(mixer, "dt_proj")
    assert not child_is_called(mixer, "dt_proj")
    assert not weight_is_read(mixer, "in_proj")


def test_multihead_attention_reads_its_out_proj() -> None:
    assert weight_is_read(nn.MultiheadAttention(4, 1), "out_proj")


def test_torchs_encoder_layer_reads_its_linear_layers_on_its_fast_path() -> None:
    assert weight_is_read(nn.TransformerEncoderLayer(4, 1, 4), "linear1")


def test_deberta_reads_its_fused_projection() -> None:
    assert weight_is_read(a(DisentangledSelfAttention), "in_proj")


def test_ordinary_layers_are_called_and_not_read() -> None:
    for cls, name in ((BertSelfAttention, "query"), (T5DenseActDense, "wo")):
        assert not weight_is_read(a(cls), name)
        assert child_is_called(a(cls), name)


def test_weights_that_the_model_rescales_in_place_are_known_and_refused() -> None:
    from transformers import RwkvConfig, RwkvForCausalLM

    from hf_lora import LoRAConfig, LoRAModel
    from hf_lora.errors import TargetError

    config = RwkvConfig(vocab_size=16, hidden_size=8, attention_hidden_size=8, num_hidden_layers=2, intermediate_size=8)
    model = RwkvForCausalLM(config)
    with pytest.raises(TargetError, match=r"attention\.output.*rescales"):
        LoRAModel.from_model(model, LoRAConfig(target_modules="attention"))
    allowed = LoRAConfig(target_modules="attention", exclude_modules=["output"])
    assert "attention.value" in LoRAModel.from_model(model, allowed).targets_report()
