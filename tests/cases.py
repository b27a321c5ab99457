"""The cases of the law suite: every kind of layer in a small network, every variant, and how to make it matter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_lora import LoRAConfig, LoRAModel, add_lora

from .peek import FORMULAS, INITS
from .quantising import FIRST, PACKED, read


class Named(nn.Module):
    """A network of one layer called `layer`, behind a frozen front so that the layer's input has a gradient path."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.call = call or nn.Module.__call__

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


class ScaledEmbedding(nn.Embedding):
    """An embedding with a forward of its own, as Gemma and BART have."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 3.0


class TransposedLinear(nn.Linear):
    """A linear layer with a forward of its own, as Falcon has."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class SquaredLinear(nn.Linear):
    """A linear layer whose forward is not linear in its weight: only the read can be adapted."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.square(), self.bias)


class Experts(nn.Module):
    """Fused experts, as v5 mixtures hold them."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.up = nn.Parameter(torch.randn(3, 6, 10) if transposed else torch.randn(3, 10, 6))
        self.down = nn.Parameter(torch.randn(3, 10, 5) if transposed else torch.randn(3, 5, 10))

    def forward(self, x: Tensor) -> Tensor:
        up, down = (self.up, self.down) if self.is_transposed else (self.up.mT, self.down.mT)
        return torch.tanh(x @ up) @ down


class Reader(nn.Module):
    """Code that reads a layer's weight and never calls it, as WavLM and Mamba do."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.proj.weight, self.proj.bias)


def _attend(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x, need_weights=False)[0]


@dataclass(frozen=True)
class KindCase:
    """One kind of layer: how to build the network, an input for it, and what to name."""

    build: Callable[[], nn.Module]
    x: Callable[[], Tensor]
    targets: dict[str, list[str]]
    dora: bool = True
    matrix: bool = False  # a plain matrix, which PiSSA can take apart
    dropout: bool = True
    bias: bool = True
    merges: bool = True  # whether its weight has a place for what the adapter does
    pack: Callable[[nn.Module], nn.Module] | None = None  # what a quantising library makes of its layer
    copies: bool = True  # whether the library's layer can be copied
    pickles: bool = True  # whether it can be pickled
    compiles: bool = True  # whether it can be compiled as one graph
    tolerance: float = 1e-5  # of float32, for what the library computes with a weight that it says it has


LAYER = {"target_modules": ["layer"]}
KIND_CASES: dict[str, KindCase] = {
    "linear": KindCase(lambda: Named(nn.Linear(6, 10)), lambda: torch.randn(4, 3, 6), LAYER, matrix=True),
    "linear-no-bias": KindCase(lambda: Named(nn.Linear(6, 10, bias=False)), lambda: torch.randn(4, 6), LAYER, matrix=True, bias=False),
    "conv1d-gpt2": KindCase(lambda: Named(Conv1D(10, 6)), lambda: torch.randn(4, 3, 6), LAYER, matrix=True),
    "embedding": KindCase(lambda: Named(nn.Embedding(12, 6)), lambda: torch.randint(12, (4, 5)), LAYER, bias=False),
    "embedding-padded": KindCase(lambda: Named(nn.Embedding(12, 6, padding_idx=0)), lambda: torch.randint(1, 12, (4, 5)), LAYER, bias=False),
    "embedding-scaled": KindCase(lambda: Named(ScaledEmbedding(12, 6)), lambda: torch.randint(12, (4, 5)), LAYER, bias=False),
    "conv1d": KindCase(lambda: Named(nn.Conv1d(4, 8, 3, stride=2, padding=1)), lambda: torch.randn(2, 4, 9), LAYER),
    "conv2d": KindCase(lambda: Named(nn.Conv2d(4, 8, 3, padding=1)), lambda: torch.randn(2, 4, 7, 7), LAYER),
    "conv2d-dilated": KindCase(lambda: Named(nn.Conv2d(4, 8, (3, 2), dilation=2, padding=2, padding_mode="circular")), lambda: torch.randn(2, 4, 9, 9), LAYER),
    "conv3d": KindCase(lambda: Named(nn.Conv3d(3, 6, 2)), lambda: torch.randn(2, 3, 4, 4, 4), LAYER),
    "conv1d-unbatched": KindCase(lambda: Named(nn.Conv1d(4, 8, 3, padding="same")), lambda: torch.randn(4, 8), LAYER),
    "conv1d-grouped": KindCase(lambda: Named(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)), lambda: torch.randn(2, 4, 9), LAYER, dora=False, merges=False),
    "conv2d-grouped": KindCase(lambda: Named(nn.Conv2d(4, 6, (3, 1), dilation=2, padding=1, padding_mode="reflect", groups=2)), lambda: torch.randn(2, 4, 9, 9), LAYER, dora=False, merges=False),
    "conv3d-depthwise": KindCase(lambda: Named(nn.Conv3d(2, 4, 1, groups=2)), lambda: torch.randn(2, 2, 4, 4, 4), LAYER, dora=False, merges=False),
    "linear-subclass": KindCase(lambda: Named(TransposedLinear(6, 10)), lambda: torch.randn(4, 6), LAYER, matrix=True),
    "linear-nonlinear-forward": KindCase(lambda: Named(SquaredLinear(6, 10)), lambda: torch.randn(4, 6), LAYER, matrix=True, dropout=False, bias=False),
    "linear-read": KindCase(Reader, lambda: torch.randn(4, 6), {"target_modules": ["proj"]}, matrix=True, dropout=False, bias=False),
    "attention": KindCase(lambda: Named(nn.MultiheadAttention(8, 2, batch_first=True), _attend), lambda: torch.randn(2, 5, 8), LAYER, dora=False, matrix=True, dropout=False, bias=False),
    "experts": KindCase(lambda: Named(Experts(False)), lambda: torch.randn(3, 4, 6), {"target_parameters": ["layer.up", "layer.down"]}, dora=False, dropout=False, bias=False),
    "experts-transposed": KindCase(lambda: Named(Experts(True)), lambda: torch.randn(3, 4, 6), {"target_parameters": ["layer.up", "layer.down"]}, dora=False, dropout=False, bias=False),
    "raw-matrix": KindCase(lambda: Named(nn.Linear(6, 10)), lambda: torch.randn(4, 6), {"target_parameters": ["layer.weight"]}, dora=False, matrix=True, dropout=False, bias=False),
}  # fmt: skip
for _name, _pack in PACKED.items():
    KIND_CASES[_name] = KindCase(
        lambda: Named(nn.Linear(64, 32)), lambda: torch.randn(4, 3, 64), LAYER, matrix=True, pack=_pack,
        copies=not _name.startswith("quanto"), pickles=not _name.startswith("torchao"), compiles=_name != "bnb-int8", tolerance=3e-2 if _name == "bnb-int8" else 1e-5,
    )  # fmt: skip

VARIANTS: dict[str, dict[str, object]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "dora": {"use_dora": True},
    "hira": {"use_hira": True},
    "lora_fa": {"use_lora_fa": True},
    "lora_xs": {"use_lora_xs": True},
    "vera": {"use_vera": True, "r": 4},
    "vera-drawn": {"use_vera": True, "save_projection": False},
    "sharelora": {"use_sharelora": True},
    "adalora": {"use_adalora": True, "target_r": 1},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-dora": {"init_lora_weights": "pissa", "use_dora": True},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "milora": {"init_lora_weights": "milora"},
    "milora-dora-rslora": {"init_lora_weights": "milora", "use_dora": True, "use_rslora": True},
    "eva": {"init_lora_weights": "eva"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "loftq": {"init_lora_weights": "loftq"},
    "mica": {"init_lora_weights": "mica"},
    "lora-bias": {"lora_bias": True},
    "bias-trained": {"bias": "all"},
}


def moves_base(variant: str) -> bool:
    """Return whether the product at birth is subtracted, because it is a part of the weight."""
    return any(start in variant for start in ("pissa", "olora", "milora", "lora_ga"))


def is_exact(variant: str) -> bool:
    """Return whether a fresh adapter leaves every bit, and not just every digit."""
    return not moves_base(variant) and variant not in ("orthogonal", "loftq")


def allowed(kind: str, variant: str) -> bool:
    """Return whether a variant is defined on a kind; where not, attaching must raise (tested elsewhere)."""
    case = KIND_CASES[kind]
    if ("dora" in variant or variant in ("hira", "lora_xs")) and not case.dora:
        return False
    if variant == "lora_fa" and kind.startswith("embedding"):
        return False
    is_raw = kind == "attention" or "target_parameters" in case.targets
    if variant.startswith(("vera", "sharelora", "adalora")) and (
        is_raw or (variant != "sharelora" and not case.matrix)
    ):
        return False
    if variant == "loftq":  # what is not quantised lost nothing
        return case.pack is not None
    if INITS[VARIANTS[variant].get("init_lora_weights", True)].of_matrix and not case.matrix:
        return kind.startswith("embedding")  # as in PEFT, an embedding starts as always
    if (variant == "eva" and not case.dropout) or (variant == "lora_ga" and case.pack is not None):
        return False  # a layer that is never called has no inputs, and a packed weight has no gradient
    if variant == "bias-trained":
        return any("bias" in name for name, _ in case.build().named_parameters())
    return case.bias or variant != "lora-bias"


FEW = ("lora", "dora", "pissa")  # for a library's other formats, which are read and packed by the same code
PAIRS = [(k, v) for k in KIND_CASES for v in VARIANTS if allowed(k, v) and (k not in PACKED or k in FIRST or v in FEW)]
# Every kind and every variant at least once: enough for what does not depend on how the two meet.
COVER = [(k, v) for k, v in PAIRS if k == "linear" or v == "lora"]
# Those whose numbers are not packed, so that laws can be told to the last digits of float64.
FLOATS = [(k, v) for k, v in PAIRS if KIND_CASES[k].pack is None]
FLOAT_COVER = [(k, v) for k, v in COVER if KIND_CASES[k].pack is None]

# Variants that add a product to a weight and do no more to it.
SUMS = [v for v, s in VARIANTS.items() if not FORMULAS[LoRAConfig(**s).formula].adapter.exclusive]  # type: ignore[arg-type]


def settings_of(variant: str, **changes: object) -> dict[str, object]:
    """Return the settings of a variant, rank 2; what its formula has no setting for is left out."""
    lacks = FORMULAS[LoRAConfig(**VARIANTS[variant]).formula].lacks  # type: ignore[arg-type]
    asked = {"r": 2, "lora_alpha": 3, **VARIANTS[variant], **changes}
    return {name: value for name, value in asked.items() if name not in lacks}


def config_of(kind: str, variant: str, **changes: object) -> LoRAConfig:
    """Return the config of a case."""
    return LoRAConfig(**{**KIND_CASES[kind].targets, **settings_of(variant, **changes)})  # type: ignore[arg-type]


def starts_from_data(settings: dict[str, object]) -> bool:
    """Return whether a variant's start learns of data."""
    return INITS[settings.get("init_lora_weights", True)].data is not None  # type: ignore[index]


def data_of(kind: str, variant: str) -> dict[str, object]:
    """Return the data of a case as arguments, where its start learns of any: a batch that gives a loss."""
    if not starts_from_data(VARIANTS[variant]):
        return {}
    if variant == "loftq":
        torch.manual_seed(1)
        return {"data": KIND_CASES[kind].build()}
    x = example(kind)

    def loss(model: nn.Module, move: bool) -> Tensor:
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        return model((x.cos() if move else x).to(dtype) if x.is_floating_point() else x).square().mean()

    return {"data": [partial(loss, move=False), partial(loss, move=True)]}


def network(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a case's network in eval mode, its weights seeded."""
    torch.manual_seed(1)
    case = KIND_CASES[kind]
    net = case.build().to(dtype).eval()
    if case.pack is not None:
        net.layer = case.pack(net.layer).eval()
    return net


def is_packed(kind: str) -> bool:
    """Return whether a case's layer is a quantising library's."""
    return KIND_CASES[kind].pack is not None


def readable(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a case's network in plain tensors; of a packed layer with the weight that its library says it has."""
    net: Any = network(kind)
    if is_packed(kind):
        plain = nn.Linear(net.layer.in_features, net.layer.out_features).eval()
        plain.load_state_dict({"weight": read(net.layer), "bias": net.layer.bias})
        net.layer = plain
    return net.to(dtype)  # type: ignore[no-any-return]


def example(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a case's input."""
    torch.manual_seed(2)
    x = KIND_CASES[kind].x()
    return x.to(dtype) if x.is_floating_point() else x


def adapted(kind: str, variant: str, dtype: torch.dtype = torch.float32, **changes: object) -> LoRAModel:
    """Return a case's network with a trained-looking adapter: every factor moved away from its start."""
    model = add_lora(network(kind, dtype), config_of(kind, variant, **changes), **data_of(kind, variant))
    move(model)
    return model


def mergeable(kind: str, variant: str, dtype: torch.dtype = torch.float32) -> LoRAModel:
    """Return `adapted`; in a grouped convolution each rank of A reads the inputs of its own group alone.

    What else it reads has no place in the weight.
    """
    model = adapted(kind, variant, dtype)
    if not KIND_CASES[kind].merges:
        conv = model.layer
        a = conv.adapters["default"]["weight"].lora_A.detach()
        rank, inputs = (torch.arange(n) * conv.groups // n for n in a.shape[:2])
        a[rank[:, None] != inputs] = 0
    return model


def move(model: nn.Module, seed: int = 3, scale: float = 0.6) -> None:
    """Add noise to everything that trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def widened(model: LoRAModel, kind: str, variant: str) -> LoRAModel:
    """Return a copy of a case's model in float64 and plain tensors."""
    if not is_packed(kind):
        return copy.deepcopy(model).double()
    variant = "lora" if variant == "loftq" else variant
    wide = add_lora(readable(kind, torch.float64), config_of(kind, variant), **data_of(kind, variant))
    for (module, layer), own in zip(wide._lora.layers.items(), model._lora.layers.values(), strict=True):
        for key, adapter in layer.carried("default").items():
            for name, tensor in adapter.held().items():
                tensor.data.copy_(own.carried("default")[key].held()[name].detach())
        assert module == "layer"
    return wide.train(model.training)
