"""Merging in one layer: its parameters with adapters inside, what rounding takes of them, and the way back.

A packed (quantised) weight is read as floats first; what becomes of it then is in `packing.py`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import MergeError
from ..kinds.kind import computed, is_packed
from ..kinds.quantised import QuantisedKind
from ..kinds.table import kind_of
from ..maths import low_rank
from ..variants.adapter import Adapter, own_tensor
from . import packing as forms
from .layer import LoRALayer
from .offload import is_elsewhere
from .packing import FedBack, Loss, Packing, make_packed, make_plain
from .routes import Route
from .steps import in_order
from .tying import is_plain


def merged_values(
    layer: LoRALayer, names: Route, dtype: torch.dtype | None = None, packing: Packing | None = None
) -> dict[str, Tensor]:
    """Return every adapted parameter with the named adapters inside, new tensors of the base's dtype.

    dtype: widen the base's floating-point tensors to this first. packing: what becomes of packed ones.
    Raises MergeError where the values cannot be had or are not finite; the layer is left unchanged.
    """
    return merged_by(layer, named_adapters(layer, names), dtype, packing)


def merged_by(
    layer: nn.Module, adapters: Iterable[Adapter], dtype: torch.dtype | None = None, packing: Packing | None = None
) -> dict[str, Tensor]:
    """Return `merged_values` of adapters that the layer carries, or carried: then it is one of the base's own class."""
    values: dict[str, Tensor] = {}
    adapters = list(adapters)

    def merge(adapter: Adapter, parameter: str, formula: Callable[[Tensor], Tensor | None]) -> None:
        value, is_quantised = values.get(parameter, _base(layer, parameter)), adapter.quantised_kind is not None
        if packing is not None and is_quantised and parameter == adapter.parameter and parameter not in values:
            value = value if value is None else adapter.numbers(layer, value).to(packing.wide)
        value = _mergeable(layer, parameter, value, packing is None and is_quantised)
        with torch.no_grad():
            merged = adapter.run(formula, _widened(value, dtype))
        assert merged is not None
        if merged.is_floating_point() and not low_rank.is_finite(merged):
            raise MergeError(f"merging into {parameter} of a {type(layer).__name__} gives values that are not finite.")
        own = {id(tensor) for tensor in adapter.tensors().values()}  # a trained copy is its own effective value
        values[parameter] = merged.detach().clone() if id(merged) in own else merged.contiguous()

    for adapter in adapters:
        merge(adapter, adapter.parameter, adapter.effective)
        if adapter.changes_bias:
            merge(adapter, "bias", adapter.effective_bias)
    if packing is not None:
        for packed in packed_parameters(layer, adapters):
            with torch.no_grad():
                values[packed.name] = packing.of(layer, packed.kind, packed.own, values[packed.name])
            if not packing.requantize and not low_rank.is_finite(values[packed.name]):
                raise MergeError(f"merging into {packed.name} gives values that are not finite in {packing.dtype}.")
    return values


def _mergeable(layer: nn.Module, parameter: str, value: Tensor | None, is_quantised: bool) -> Tensor:
    """Return a parameter's value where something can be merged into it. Raises MergeError with the reason."""
    if value is None and parameter == "bias":
        raise MergeError("lora_bias=True on a layer without a bias: there is no place in the base to merge it.")
    if value is None and computed(layer, parameter) is not None:
        raise MergeError(
            f"{parameter} of {type(layer).__name__} is computed from other tensors (pruned, normalised or "
            "parametrised), so nothing can be merged into it. Make it permanent first, by prune.remove, "
            "remove_weight_norm, remove_spectral_norm or parametrize.remove_parametrizations of torch.nn.utils; a "
            "parametrization that was there before the adapter has to go before the adapter comes."
        )
    if value is None or value.is_meta:
        raise MergeError(f"{parameter} of {type(layer).__name__} is offloaded; load the model whole to merge it.")
    if not is_plain(value) and (is_packed(value) or is_quantised):
        raise MergeError(
            f"{parameter} is packed (quantised), which is not merged into here: where its numbers can be read, "
            "merge_and_unload(dtype=torch.bfloat16) gives a plain model; else load the base in float "
            "(quantization_config=None)."
        )
    return value


class Packed(NamedTuple):
    """A packed parameter of a layer, and how it is read and packed."""

    name: str
    kind: QuantisedKind
    own: Tensor


def packed_parameters(layer: nn.Module, adapters: Iterable[Adapter]) -> list[Packed]:
    """Return the packed parameters that adapters of a layer are on, each once, also while it is merged."""
    kinds = {adapter.parameter: adapter.quantised_kind for adapter in adapters}
    found = ((name, kind, _base(layer, name)) for name, kind in kinds.items())
    return [Packed(name, kind, own) for name, kind, own in found if kind is not None and own is not None]


def merge_losses(
    layer: LoRALayer,
    names: Route,
    half_only: bool,
    dtype: torch.dtype | None = None,
    packing: Packing | None = None,
) -> Iterator[Loss]:
    """Yield what rounding to its dtype, or packing, loses of each adapted parameter, and what the adapters change.

    dtype: what the parameters are widened to first. Three tensors of a parameter's size are made, not more.
    """
    chains: dict[str, list[Adapter]] = {}
    for adapter in named_adapters(layer, names):
        chains.setdefault(adapter.parameter, []).append(adapter)
    for parameter, chain in chains.items():
        own, kind = _base(layer, parameter), chain[0].quantised_kind
        if kind is not None and own is not None and packing is not None and not own.is_meta:
            if not half_only or packing.requantize or packing.dtype.itemsize <= 2:
                yield _packed_loss(layer, Packed(parameter, kind, own), chain, packing)
            continue
        if own is None or own.is_meta or not own.is_floating_point() or not is_plain(own):
            continue
        own = _widened(own, dtype)
        if half_only and own.itemsize > 2:
            continue
        with torch.no_grad():
            base = own.to(torch.float64 if own.itemsize > 2 else torch.float32)
            exact, merged = base, own
            for adapter in chain:
                exact, merged = (adapter.run(adapter.effective, weight) for weight in (exact, merged))
            lost, effect = low_rank.squared_distance(merged, exact), low_rank.squared_distance(exact, base)
            yield Loss(parameter, lost, effect)


def _packed_loss(layer: nn.Module, packed: Packed, chain: list[Adapter], packing: Packing) -> Loss:
    if (made := packing.made.get(id(layer))) is not None:
        return made.loss
    base, exact = exact_values(layer, packed, chain, packing.wide)
    merged = packing.of(layer, packed.kind, packed.own, exact)
    if packing.requantize:
        merged = packed.kind.numbers(layer, merged)
    return Loss(packed.name, low_rank.squared_distance(merged, exact), low_rank.squared_distance(exact, base))


def fed_back(layer: LoRALayer, names: Route, moments: Tensor) -> FedBack:
    """Return a layer's merged weight packed so that its outputs on inputs with these moments are kept, and the loss.

    moments: X^T X of the inputs, (in, in), float32. Nothing is changed. The library's scales are those of the weight as
    it was, which a small change needs, or those that it gives the merged one, which a large one needs: whichever lose
    less.
    """
    chain = named_adapters(layer, names)
    (packed,) = packed_parameters(layer, chain)
    base, exact = exact_values(layer, packed, [a for a in chain if a.parameter == packed.name], torch.float32)
    kind, wanted = packed.kind, exact - base

    def measured(weight: Tensor) -> tuple[float, float]:
        stored = kind.numbers(layer, weight).float()
        pairs = ((stored - exact, stored - exact), (stored - base, wanted))
        lost, along = (float(low_rank.within(*pair, moments)) for pair in pairs)
        return lost, along

    nearest = kind.packed(layer, packed.own, exact)
    chosen = [nearest, *(forms.fed_back(layer, kind, like, exact, moments) for like in (packed.own, nearest))]
    found = [measured(weight) for weight in chosen]
    best = min(range(len(chosen)), key=lambda i: found[i][0])
    effect = float(low_rank.within(wanted, wanted, moments))
    return FedBack(chosen[best], Loss(packed.name, found[best][0], effect, found[best][1], found[0]))


def exact_values(layer: nn.Module, packed: Packed, chain: list[Adapter], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what a packed weight stands for, and what the adapters make of it, in a dtype."""
    with torch.no_grad():
        base = exact = packed.kind.numbers(layer, packed.own).to(dtype)
        for adapter in chain:
            exact = adapter.run(adapter.effective, exact)
    return base, exact


def check_merge(
    layer: LoRALayer, names: Route, dtype: torch.dtype | None = None, packing: Packing | None = None
) -> None:
    """Raise MergeError where `merged_values` would; it is tried only where the factors do not tell."""
    for adapter in named_adapters(layer, names):
        own = _base(layer, adapter.parameter)
        if own is not None and packing is not None and adapter.quantised_kind is not None:
            own = adapter.numbers(layer, own).to(packing.dtype)
        told = own is not None and not own.is_meta and own.is_floating_point()
        if not told or not low_rank.stays_finite(_widened(own, dtype), adapter.largest_change()):  # type: ignore[arg-type]
            merged_values(layer, names, dtype, packing)
            return


def swap_in(layer: LoRALayer, values: dict[str, Tensor], keep: bool) -> None:
    """Put merged values in the place of the base's own tensors. keep: these, untouched, for `swap_back`."""
    for parameter, value in values.items():
        own = own_tensor(layer, parameter)
        assert own is not None
        kind = kind_of(layer)
        if isinstance(kind, QuantisedKind) and parameter == "weight":
            kind.replaced(layer, own, value)
            if is_plain(value) and not isinstance(value, nn.Parameter):
                layer._unpacked = make_plain(layer, kind)
        if keep:
            layer._originals.setdefault(parameter, own)  # others may be merged already
        if not isinstance(value, nn.Parameter) and isinstance(own, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        _put(layer, parameter, value)


def check_swap_back(layer: LoRALayer) -> None:
    """Raise MergeError where a hook has put the merged tensors elsewhere, and would bring them again."""
    for parameter in layer._originals:
        merged = own_tensor(layer, parameter)
        if merged is not None and is_elsewhere(layer, merged):
            raise MergeError(
                f"{parameter} of a {type(layer).__name__} was offloaded while adapters were merged; call "
                "accelerate.hooks.remove_hook_from_submodules(model) first."
            )


def originals(merged: Iterable[LoRALayer]) -> dict[int, Tensor]:
    """Return the base's own tensors of layers, by the id of what is merged in their place."""
    return {id(own_tensor(layer, name)): own for layer in merged for name, own in layer._originals.items()}


def swap_back(layer: LoRALayer) -> None:
    """Put the base's own tensors back: the same objects, hence the same bits, and tied again where they were."""
    if layer._unpacked is not None:
        make_packed(layer, layer._unpacked)
        layer._unpacked = None
    for parameter, own in layer._originals.items():
        kind, merged = kind_of(layer), own_tensor(layer, parameter)
        if isinstance(kind, QuantisedKind) and parameter == "weight" and merged is not None:
            kind.replaced(layer, merged, own)
        _put(layer, parameter, own)
    layer._originals.clear()


def _base(layer: nn.Module, parameter: str) -> Tensor | None:
    """Return the base's own tensor, of a layer that is merged as well."""
    return getattr(layer, "_originals", {}).get(parameter, own_tensor(layer, parameter))


def named_adapters(layer: LoRALayer, names: Route) -> list[Adapter]:
    """Return the named adapters of a layer, in the order in which they act."""
    return in_order(adapter for name in names for adapter in layer.carried(name).values())


def _widened(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() and is_plain(tensor) else tensor


def _put(layer: nn.Module, name: str, value: Tensor) -> None:
    own: dict[str, Any] = layer._parameters if name in layer._parameters else layer._buffers
    own[name] = value
