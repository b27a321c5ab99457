"""Weights that a parent's code reads past the layer's forward are found in its source."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RwkvConfig, RwkvForCausalLM
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.t5.modeling_t5 import T5DenseActDense
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import TargetError

from .peek import child_is_called, weight_is_read
from .versions import not_older


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


def _made() -> type[nn.Module]:
    scope: dict[str, type] = {"Module": nn.Module}
    exec("class Made(Module):\n    def forward(self, x): return x @ self.inner.weight", scope)
    return scope["Made"]


# A class and a child's name: whether the class reads the child's weight, and whether it calls the child.
USES: dict[str, tuple[type[nn.Module], str, bool, bool]] = {
    "inherited": (Inheriting, "read", True, False),
    "of a class made at run time": (type("Front", (Readers,), {}), "read", True, False),
    "of a class without source": (_made(), "inner", False, True),
    **{f"WavLM's {name}": (WavLMAttention, name, True, False) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
    "Mamba's dt_proj": (MambaMixer, "dt_proj", True, False),
    "Mamba's in_proj": (MambaMixer, "in_proj", False, True),
    "PyTorch's attention": (nn.MultiheadAttention, "out_proj", True, False),
    "PyTorch's encoder layer, on its fast path": (nn.TransformerEncoderLayer, "linear1", True, True),
    "DeBERTa's fused projection": (DisentangledSelfAttention, "in_proj", True, True),
    "BERT's query": (BertSelfAttention, "query", False, True),
    "T5's wo": (T5DenseActDense, "wo", False, True),
}


@pytest.mark.parametrize("use", [pytest.param(u, marks=not_older if "Mamba" in u else ()) for u in USES])
def test_what_known_classes_do_with_their_children_is_read_in_their_source(use: str) -> None:
    cls, child, read, called = USES[use]
    parent = cls.__new__(cls)  # without running its constructor: only its class's source is looked at
    assert (weight_is_read(parent, child), child_is_called(parent, child)) == (read, called)


def test_weights_that_the_model_rescales_in_place_are_known_and_refused() -> None:
    config = RwkvConfig(vocab_size=16, hidden_size=8, attention_hidden_size=8, num_hidden_layers=2, intermediate_size=8)
    model = RwkvForCausalLM(config)
    with pytest.raises(TargetError, match=r"attention\.output.*rescales"):
        LoRAModel.from_model(model, LoRAConfig(target_modules="attention"))
    allowed = LoRAConfig(target_modules="attention", exclude_modules=["output"])
    assert "attention.value" in LoRAModel.from_model(model, allowed).targets_report()
