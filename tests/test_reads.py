"""Weights that code reads past the layer's forward: found in the source, adapted where they are read and called."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BloomConfig, BloomForCausalLM, DebertaConfig, DebertaModel, RwkvConfig, RwkvForCausalLM
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.t5.modeling_t5 import T5DenseActDense
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import TargetError

from .peek import Uses
from .versions import not_older


class Readers(nn.Module):
    """Every way of using a child that is told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.initialised = nn.Linear(2, 2)
        nn.init.zeros_(self.initialised.weight)

    def _init_weights(self) -> None:
        self.initialised.weight.data.zero_()

    def tie_weights(self) -> None:
        self.tied.weight = self.initialised.weight

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
        for i, each in enumerate(self.counted):
            x = each(x) if i > 1 else x.view(i)
        return self.both(x) + self.both.weight + (self.missing.bias if self.missing is not None else 0)


class Inheriting(Readers):
    """A class without code of its own."""


NAMES = ("read", "aliased", "first", "second", "got", "both", "asked", "initialised", "tied", "missing", "unknown")


def _uses_of(cls: type[nn.Module], *children: str) -> dict[str, tuple[bool, bool]]:
    """Return whether a class reads and calls its children, without running its constructor."""
    parent: Any = cls.__new__(cls)
    nn.Module.__init__(parent)
    parent._modules = {name: nn.Linear(1, 1) for name in children}
    uses = Uses({"": parent, **parent._modules})
    return {name: tuple(uses.of(child)) for name, child in parent._modules.items()}


def test_reading_a_weight_counts_and_asking_about_it_does_not() -> None:
    read = {name for name, (is_read, _) in _uses_of(Readers, *NAMES, "counted").items() if is_read}
    assert read == {"read", "aliased", "first", "second", "got", "both"}


def test_a_child_is_called_unless_the_source_shows_only_reads() -> None:
    called = {name for name, (_, is_called) in _uses_of(Readers, *NAMES).items() if is_called}
    assert called == {"asked", "both", "unknown", "initialised", "tied"}


def _made() -> type[nn.Module]:
    scope: dict[str, type] = {"Module": nn.Module}
    exec("class Made(Module):\n    def forward(self, x): return x @ self.inner.weight", scope)
    return scope["Made"]


# A class and a child's name: whether the class reads the child's weight, and whether it calls the child.
USES: dict[str, tuple[type[nn.Module], str, bool, bool]] = {
    "inherited": (Inheriting, "read", True, False),
    "of a class made at run time": (type("Front", (Readers,), {}), "read", True, False),
    "of a class without source, which may do both": (_made(), "inner", True, True),
    **{f"WavLM's {name}": (WavLMAttention, name, True, False) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
    "Mamba's dt_proj": (MambaMixer, "dt_proj", True, False),
    "Mamba's in_proj": (MambaMixer, "in_proj", False, True),
    "PyTorch's attention": (nn.MultiheadAttention, "out_proj", True, False),
    "PyTorch's encoder layer, on its fast path": (nn.TransformerEncoderLayer, "linear1", True, True),
    "PyTorch's list of layers": (nn.Sequential, "0", False, True),
    "DeBERTa's fused projection": (DisentangledSelfAttention, "in_proj", True, True),
    "BERT's query": (BertSelfAttention, "query", False, True),
    "T5's wo": (T5DenseActDense, "wo", False, True),
}


@pytest.mark.parametrize("use", [pytest.param(u, marks=not_older if "Mamba" in u else ()) for u in USES])
def test_what_known_classes_do_with_their_children_is_read_in_their_source(use: str) -> None:
    cls, child, read, called = USES[use]
    assert _uses_of(cls, child)[child] == (read, called)


# --- read from afar ---------------------------------------------------------------------------------------------------


class Body(nn.Module):
    """What is called: a table, a list and a dictionary of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.proj = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.named = nn.ModuleDict({"up": nn.Linear(4, 4)})
        self.stack = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, ids: Tensor) -> Tensor:
        return self.stack(self.proj(self.table(ids)))


class Telling(Body):
    def logits(self, x: Tensor) -> Tensor:
        return x @ self.table.weight.t()


class Head(nn.Module):
    """A child that is given a module of somebody else's."""

    def __init__(self, kept: nn.Module | None = None) -> None:
        super().__init__()
        self.__dict__["kept"] = [kept]
        self.plain = kept

    def forward(self, x: Tensor, table: Any = None) -> Tensor:
        if table is None:
            return F.linear(x, self.kept[0].weight)
        return F.linear(x, table if isinstance(table, Tensor) else table.weight)


def tied(x: Tensor, layer: nn.Module) -> Tensor:
    return F.linear(x, layer.weight)  # type: ignore[arg-type]


def tied_of(model: Any, x: Tensor) -> Tensor:
    return F.linear(x, model.body.table.weight)


def through(x: Tensor, layers: Any) -> Tensor:
    for layer in layers:
        x = F.linear(x, layer.weight, layer.bias)
    return x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), Head()

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.body(ids))


class Inherited(Net):
    def out(self, x: Tensor) -> Tensor:
        return F.linear(x, self.body.table.weight)


def _with(out: Callable[[Any, Tensor], Tensor], **content: Any) -> Callable[[], nn.Module]:
    return type("Made", (Net,), {"out": out, **content})


def _table(self: Any) -> nn.Module:
    return self.body.table


def _matrix(self: Any) -> Tensor:
    return self.body.table.weight


def _tied(self: Any, x: Tensor, layer: Any) -> Tensor:
    return F.linear(x, layer.weight)


def _zipped(self: Any, x: Tensor) -> Tensor:
    for layer, scale in zip(self.body.layers, (1.0, 2.0), strict=True):
        x = scale * F.linear(x, layer.weight)
    return x


def _counted(self: Any, x: Tensor) -> Tensor:
    for i, layer in enumerate(self.body.layers[::-1]):
        x = F.linear(x, layer.weight) + i
    return x


def _of_all_modules(self: Any, x: Tensor) -> Tensor:
    for module in self.body.layers.modules():
        if isinstance(module, nn.Linear):
            x = F.linear(x, module.weight)
    return x


def _of_all_by_name(self: Any, x: Tensor) -> Tensor:
    for name, module in self.named_modules():
        if name.startswith("body.layers.") and isinstance(module, nn.Linear):
            x = F.linear(x, module.weight)
    return x


def _of_items(self: Any, x: Tensor) -> Tensor:
    for _, layer in self.body.named.items():
        x = F.linear(x, layer.weight)
    return x


def _of_an_alias(self: Any, x: Tensor) -> Tensor:
    body = self.body
    table = body.table
    weight = table.weight
    return x @ weight.T


def _of_a_name_given_in_passing(self: Any, x: Tensor) -> Tensor:
    return x @ table.weight.T if (table := self.body.table) is not None else x


def _local(self: Any, x: Tensor) -> Tensor:
    def inner(y: Tensor) -> Tensor:
        return F.linear(y, self.body.table.weight)

    return inner(x)


def _kept_twice() -> nn.Module:
    net = _with(lambda self, x: self.head(x))()
    net.head = Head(net.body.table)
    del net.head._modules["plain"]
    return net


def _of_two_names() -> nn.Module:
    class Second(nn.Module):
        def __init__(self, table: nn.Module) -> None:
            super().__init__()
            self.again = table

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.again.weight)  # type: ignore[arg-type]

    net = _with(lambda self, x: self.head(x))()
    net.head = Second(net.body.table)
    return net


def _of_a_method() -> nn.Module:
    net = _with(lambda self, x: self.body.logits(x))()
    net.body = Telling()
    return net


def _patched() -> nn.Module:
    net = Net()
    net.forward = types.MethodType(lambda self, ids: F.linear(self.body(ids), self.body.table.weight), net)
    return net


def _without_source() -> nn.Module:
    scope: dict[str, Any] = {"Net": Net, "F": F}
    exec("class Typed(Net):\n    def out(self, x): return F.linear(x, self.body.table.weight)", scope)
    return scope["Typed"]()


class Mixin:
    def out(self: Any, x: Tensor) -> Tensor:
        return F.linear(x, self.body.table.weight)


class MixedIn(Net, Mixin):
    """Its method stands behind nn.Module in the order of its bases."""


# What reads which layer: a model of its own, and the layer's name.
AFAR: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a grandparent": (_with(lambda self, x: F.linear(x, self.body.table.weight)), "body.table"),
    "a method of the child's": (_of_a_method, "body.table"),
    "an alias": (_with(_of_an_alias), "body.table"),
    "a name given in passing": (_with(_of_a_name_given_in_passing), "body.table"),
    "getattr": (_with(lambda self, x: x @ getattr(self.body, "table").weight.T), "body.table"),  # noqa: B009
    "getattr of the weight": (_with(lambda self, x: x @ getattr(self.body.table, "weight").T), "body.table"),  # noqa: B009
    "get_submodule": (_with(lambda self, x: x @ self.get_submodule("body.table").weight.T), "body.table"),
    "a property": (_with(lambda self, x: F.linear(x, self.table.weight), table=property(_table)), "body.table"),
    "a property of the weight": (
        _with(lambda self, x: F.linear(x, self.matrix), matrix=property(_matrix)),
        "body.table",
    ),
    "a method that finds it": (_with(lambda self, x: F.linear(x, self.find().weight), find=_table), "body.table"),
    "a method that gives the weight": (
        _with(lambda self, x: F.linear(x, self.get_rel_embedding()), get_rel_embedding=_matrix),
        "body.table",
    ),
    "a method that is given it": (_with(lambda self, x: self.tied(x, self.body.table), tied=_tied), "body.table"),
    "a function": (_with(lambda self, x: tied(x, self.body.table)), "body.table"),
    "a function of the model": (_with(lambda self, x: tied_of(self, x)), "body.table"),
    "a function by keyword": (_with(lambda self, x: tied(x, layer=self.body.table)), "body.table"),
    "a function of a list": (_with(lambda self, x: through(x, self.body.layers)), "body.layers.1"),
    "an inner function": (_with(_local), "body.table"),
    "a child that is given it": (_with(lambda self, x: self.head(x, self.body.table)), "body.table"),
    "a child that is given the weight": (_with(lambda self, x: self.head(x, self.body.table.weight)), "body.table"),
    "a child that keeps it aside": (_kept_twice, "body.table"),
    "a child that has it by another name": (_of_two_names, "body.table"),
    "an inherited method": (type("Child", (Inherited,), {}), "body.table"),
    "a mixin": (MixedIn, "body.table"),
    "a forward of the object's": (_patched, "body.table"),
    "code without source": (_without_source, "body.table"),
    "an item": (_with(lambda self, x: F.linear(x, self.body.layers[0].weight)), "body.layers.0"),
    "an item of a Sequential": (_with(lambda self, x: F.linear(x, self.body.stack[0].weight)), "body.stack.0"),
    "an item by name": (_with(lambda self, x: F.linear(x, self.body.named["up"].weight)), "body.named.up"),
    "a loop over all modules": (_with(_of_all_modules), "body.layers.1"),
    "a loop over all modules by name": (_with(_of_all_by_name), "body.layers.1"),
    "a loop over items": (_with(_of_items), "body.named.up"),
    "a loop with zip": (_with(_zipped), "body.layers.1"),
    "a loop with enumerate": (_with(_counted), "body.layers.1"),
    "a comprehension": (_with(lambda self, x: sum(x @ layer.weight for layer in self.body.layers)), "body.layers.0"),
    "the list's own loop": (_with(lambda self, x: through(x, list(self.body.layers)[1:])), "body.layers.1"),
}


@pytest.mark.parametrize("way", AFAR)
def test_a_weight_that_is_read_from_afar_trains_there_and_merges_to_the_same(way: str) -> None:
    make, target = AFAR[way]
    torch.manual_seed(0)
    net, ids = make(), torch.tensor([[0, 3, 5]])
    base = net(ids)
    lora = add_lora(net, LoRAConfig(r=2, target_modules=[target, "proj"], init_lora_weights=False))
    live = lora(ids)
    live.sum().backward()
    assert [n for n, p in lora.named_parameters() if p.requires_grad and p.grad is None] == []
    merged = copy.deepcopy(lora).merge_and_unload()
    assert (merged.get_submodule(target).weight - lora.get_submodule(target)._parameters["weight"]).abs().max() > 1e-2
    assert torch.allclose(merged(ids), live, atol=1e-5)
    with lora.adapters_disabled():
        assert torch.equal(lora(ids), base)


def test_layers_that_are_only_called_are_no_reads() -> None:
    net = _with(lambda self, x: self.body.named.up(x) + self.body.layers[0](x))()
    uses = Uses(dict(net.named_modules()))
    assert {tuple(uses.of(m)) for m in net.modules() if isinstance(m, nn.Linear | nn.Embedding)} == {(False, True)}


# --- called here, read there ------------------------------------------------------------------------------------------


def _knowing_all() -> nn.Module:
    net = nn.Sequential(*[Head(nn.Linear(2, 2)) for _ in range(12)])
    for head in net:
        head.__dict__["all"] = list(net)
    return net


def _nested() -> nn.Module:
    net: nn.Module = nn.Sequential(nn.Linear(2, 2))
    for _ in range(24):
        net = nn.ModuleDict({"one": net, "other": net})
    return net


@pytest.mark.parametrize("make", [_knowing_all, _nested])
def test_modules_that_hold_each_other_in_many_ways_are_soon_looked_through(make: Callable[[], nn.Module]) -> None:
    modules = dict(make().named_modules())
    assert all(any(Uses(modules).of(m)) for m in modules.values() if isinstance(m, nn.Linear))


class Branching(nn.Module):
    """Its layer is called in the ordinary forward and read in a branch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.reads = layer, False

    def forward(self, x: Tensor) -> Tensor:
        if self.reads:
            return F.linear(x, self.layer.weight, self.layer.bias)  # type: ignore[arg-type]
        return self.layer(x)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_bias": True}], ids=["LoRA", "DoRA", "bias"])
def test_a_layer_that_is_called_and_read_drops_when_called_and_is_whole_when_read(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = LoRAConfig(r=2, target_modules=["layer"], lora_dropout=0.5, init_lora_weights=False, **settings)
    net, x = add_lora(Branching(nn.Linear(4, 4)), config), torch.randn(8, 4)
    for parameter in net.parameters():
        parameter.data += torch.rand_like(parameter) if parameter.requires_grad else 0
    assert not torch.equal(net.train()(x), net(x))
    called = net.eval()(x)
    net.reads = True
    assert torch.allclose(net(x), called, atol=1e-5)
    assert torch.equal(net.train()(x), net(x))
    with net.adapters_disabled():
        off = net(x)
    net.merge_adapter()
    assert torch.allclose(net(x), called, atol=1e-5)
    net.unmerge_adapter()
    net.reads = False
    with net.adapters_disabled():
        assert torch.allclose(net(x), off, atol=1e-6)


def _bloom() -> nn.Module:
    return BloomForCausalLM(BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=2, pretraining_tp=2))


def _deberta() -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return DebertaModel(DebertaConfig(vocab_size=16, **sizes, **still))


@pytest.mark.parametrize("make", [_bloom, _deberta])
def test_dropout_acts_where_a_model_reads_only_in_a_branch(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    config = LoRAConfig(r=2, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    model, ids = LoRAModel.from_model(make(), config), torch.tensor([[3, 7, 9]])
    assert not torch.equal(model.train()(ids)[0], model(ids)[0])
    live = model.eval()(ids)[0]
    for block in [m for m in model.modules() if hasattr(m, "slow_but_exact")]:
        block.slow_but_exact = True  # BLOOM's branch that reads
        assert torch.allclose(model(ids)[0], live, atol=1e-5)
    read = [m.in_proj for m in model.modules() if isinstance(m, DisentangledSelfAttention)]
    seen = [layer.weight for layer in read]  # as its branch for a query of another layer does
    plain = model.merge_and_unload()
    assert torch.allclose(plain(ids)[0], live, atol=1e-5)
    assert all(torch.allclose(layer.weight, weight) for layer, weight in zip(read, seen, strict=True))


def test_a_layer_that_is_only_read_says_so_of_a_dropout() -> None:
    with pytest.raises(TargetError, match=r"layers\.0: lora_dropout=0\.5 cannot act here"):
        add_lora(AFAR["a loop with zip"][0](), LoRAConfig(r=2, target_modules=["0"], lora_dropout=0.5))


def test_weights_that_the_model_rescales_in_place_are_known_and_refused() -> None:
    config = RwkvConfig(vocab_size=16, hidden_size=8, attention_hidden_size=8, num_hidden_layers=2, intermediate_size=8)
    model = RwkvForCausalLM(config)
    with pytest.raises(TargetError, match=r"attention\.output.*rescales"):
        LoRAModel.from_model(model, LoRAConfig(target_modules="attention"))
    allowed = LoRAConfig(target_modules="attention", exclude_modules=["output"])
    assert "attention.value" in LoRAModel.from_model(model, allowed).targets_report()
