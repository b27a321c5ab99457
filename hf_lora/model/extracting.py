"""An adapter of a full fine-tune: of each weight's change the best low-rank factors, what else changed in full."""

from typing import Any

import torch
from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import ArgumentError, ModelError, full_name, some
from ..formats.pairs import with_sizes
from ..kinds.kind import Kind
from ..kinds.table import kind_of
from ..layers.layer import LoRALayer
from ..layers.tying import is_plain, tied_groups
from ..targets.names import as_endings, is_inside
from .approximating import Approximated, Approximation, Kept, lost
from .lora_model import LoRAModel


def extract(base: nn.Module, tuned: nn.Module, rank: int | None = None, energy: float | None = None) -> Approximation:
    """Make an adapter on a base of what training in full changed, and return what each layer's change loses.

    base, tuned: two models of one class with the same parameters; the base becomes the LoRAModel (`.model` of the
    result), `tuned` is left as it is. rank: that of every layer; energy: instead of it, the share of each change's
    squared singular values to keep. Weights of linear layers, Conv1D, embeddings and convolutions get factors. What
    changed besides (norms, tied tables) is saved in full, by `modules_to_save`, biases by `bias="all"`.

    Raises ArgumentError where nothing changed, ModelError where the two are no such models, with the base unchanged.

    >>> base, tuned = (nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
    >>> _ = tuned.load_state_dict({k: v + 1 for k, v in base.state_dict().items()})
    >>> model = extract(base, tuned, rank=1).model
    >>> x = torch.randn(3, 4)
    >>> torch.allclose(model(x), tuned(x), atol=1e-5)
    True
    """
    kept = Kept(rank, energy)
    _check(base, tuned)
    modules, others = dict(base.named_modules()), dict(tuned.named_modules())
    changed = _changed(base, tuned)
    if not changed:
        raise ArgumentError("extract: the tuned model's parameters are the base's, so there is nothing to extract.")
    weights, whole, biased = list[str](), set[str](), False
    tied = {name for group in tied_groups(base, {}) for name in group}
    for name in changed:
        module, _, parameter = name.rpartition(".")
        kind = kind_of(modules[module])
        if parameter == "weight" and name not in tied and kind is not None and _is_low_rank(kind, modules[module]):
            weights.append(module)
        elif parameter == "bias" and kind is not None:
            biased = True
        else:
            whole.add(module)
    if "" in whole:
        raise ModelError("extract: a parameter of the model itself changed, which no adapter can name; extract a part.")
    weights = [name for name in weights if not any(is_inside(name, outer) for outer in whole)]
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    rows = [_factored(name, modules[name], others[name], kept, factors) for name in weights]
    if not factors:
        raise ArgumentError(f"extract: no weight of a layer changed, only {some(changed)}: save those in full.")
    config = LoRAConfig(
        target_modules=as_endings(factors, list(modules)),
        modules_to_save=as_endings(whole, list(modules)) or None,
        bias="all" if biased else "none",
        ensure_weight_tying=any(name.rpartition(".")[0] in whole for name in tied),
    )
    config = with_sizes(config, {name: (len(a), len(a)) for name, (a, _) in factors.items()})
    model = LoRAModel.from_model(base, config)
    _fill(model, tuned, factors)
    return Approximation(model, tuple(rows))


def _check(base: nn.Module, tuned: nn.Module) -> None:
    for model in (base, tuned):
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"extract({type(model).__name__}): it takes two models, nn.Modules.")
        if any(isinstance(module, LoRALayer) for module in model.modules()):
            raise ModelError("extract: a model carries adapters; merge_and_unload() or unload() them first.")
    one, other = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (base, tuned))
    if one != other:
        odd = [n for n in {**one, **other} if one.get(n) != other.get(n)]
        raise ModelError(f"extract: the models are not of one kind: {some(odd)} differ in shape or are in one alone.")


def _changed(base: nn.Module, tuned: nn.Module) -> list[str]:
    """Return the names of parameters and persistent buffers that differ, of tied ones all."""
    one, other = base.state_dict(), tuned.state_dict()
    return [n for n, value in one.items() if not torch.equal(value.cpu(), other[n].to("cpu", value.dtype))]


def _is_low_rank(kind: Kind, layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    return kind.within_weight and not kind.is_quantised and weight is not None and is_plain(weight)


def _factored(
    name: str, one: nn.Module, other: nn.Module, kept: Kept, factors: dict[str, tuple[Tensor, Tensor]]
) -> Approximated:
    """Note the factors of one weight's change, and return what it loses."""
    kind: Any = kind_of(one)
    layers: tuple[Any, Any] = one, other
    before, after = (kind.matrix(layer.weight.detach()).to("cpu", torch.float64) for layer in layers)
    a, b, values = kept.split(after - before)
    factors[name] = a, b
    return Approximated(name, len(values), len(a), *lost(values, len(a)), before.numel(), a.numel() + b.numel())


@torch.no_grad()
def _fill(model: LoRAModel, tuned: nn.Module, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    values = tuned.state_dict()
    adapter: Any
    for module, _, _, adapter in model._lora.carried("default"):
        if adapter.low_rank:
            adapter.hold(*factors[module], None)
        else:
            adapter.tensors()["value"].copy_(values[full_name(module, adapter.parameter)])
