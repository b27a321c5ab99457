"""Merging in one layer: its parameters with adapters inside, what rounding takes of them, and the way back."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MergeError
from ..kinds.kind import computed, is_packed
from ..maths import low_rank
from ..variants.adapter import Adapter, own_tensor
from .layer import LoRALayer
from .offload import is_elsewhere
from .routes import Route
from .steps import in_order
from .tying import is_plain


def merged_values(layer: LoRALayer, names: Route, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return every adapted parameter with the named adapters inside, new tensors of the base's dtype.

    dtype: widen the base's floating-point tensors to this first.
    Raises MergeError where the values cannot be had or are not finite; the layer is left unchanged.
    """
    return merged_by(layer, named_adapters(layer, names), dtype)


def merged_by(layer: nn.Module, adapters: Iterable[Adapter], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return `merged_values` of adapters that the layer carries, or carried: then it is one of the base's own class."""
    values: dict[str, Tensor] = {}

    def merge(adapter: Adapter, parameter: str, formula: Callable[[Tensor], Tensor | None]) -> None:
        value = values.get(parameter, _base(layer, parameter))
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
        if not is_plain(value) and is_packed(value):
            raise MergeError(
                f"{parameter} is packed (quantised): nothing can be merged into it. "
                "Load the base in float (quantization_config=None)."
            )
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
    return values


def merge_losses(
    layer: LoRALayer, names: Route, half_only: bool, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, float, float]]:
    """Yield (parameter, sum of squares of what rounding to its dtype loses, that of what the adapters change).

    dtype: what the parameters are widened to first. Three tensors of a parameter's size are made, not more.
    """
    chains: dict[str, list[Adapter]] = {}
    for adapter in named_adapters(layer, names):
        chains.setdefault(adapter.parameter, []).append(adapter)
    for parameter, chain in chains.items():
        own = _base(layer, parameter)
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
            yield parameter, low_rank.squared_distance(merged, exact), low_rank.squared_distance(exact, base)


def check_merge(layer: LoRALayer, names: Route, dtype: torch.dtype | None = None) -> None:
    """Raise MergeError where `merged_values` would; it is tried only where the factors do not tell."""
    for adapter in named_adapters(layer, names):
        own = _base(layer, adapter.parameter)
        told = own is not None and not own.is_meta and own.is_floating_point()
        if not told or not low_rank.stays_finite(_widened(own, dtype), adapter.largest_change()):  # type: ignore[arg-type]
            merged_values(layer, names, dtype)
            return


def swap_in(layer: LoRALayer, values: dict[str, Tensor], keep: bool) -> None:
    """Put merged values in the place of the base's own tensors. keep: these, untouched, for `swap_back`."""
    for parameter, value in values.items():
        own = own_tensor(layer, parameter)
        assert own is not None
        if keep:
            layer._originals.setdefault(parameter, own)  # others may be merged already
        _put(layer, parameter, nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value)


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
    for parameter, own in layer._originals.items():
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
