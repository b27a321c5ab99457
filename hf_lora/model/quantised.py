"""Merging into a quantised base: a plain model, or one packed again; and the inputs that the rounding is chosen by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError, ArgumentError, MergeError, some
from ..kinds.quantised import QuantisedKind
from ..kinds.table import kind_of
from ..layers import merging as layers
from ..layers.layer import LoRALayer, base_modules
from ..layers.packing import FedBack, Packing, make_plain, plain_object
from ..layers.routes import Route
from ..layers.state import AdapterState
from .batches import run
from .positions import Positions
from .selecting import active

_MOST_MOMENTS = 1 << 30  # bytes held at once; more layers than that are taken in turns, with a forward each


def packing_for(
    model: Any,
    names: Route,
    requantize: bool,
    dtype: torch.dtype | None = None,
    calibration: Iterable[Any] | None = None,
) -> Packing | None:
    """Return what becomes of a model's packed weights that adapters are merged into, None where there are none.

    dtype: of a plain model, that of the base's other weights unless given. calibration: batches for the model, mappings
    of arguments, tensors or functions of it; the outputs that layers have on them are kept where they are packed again.
    Raises ArgumentError for settings without effect, MergeError where a packed weight cannot be read.
    """
    state: AdapterState = model._lora
    held = {path: layer for path, layer in state.layers.items() if _packed(layer, names)}
    if calibration is not None and not requantize:
        raise ArgumentError("calibration= chooses how packed weights are rounded, which requantize=True asks for.")
    if not held:
        if requantize:
            raise ArgumentError("requantize=True, but no adapted layer is quantised: leave it out.")
        return None
    if requantize:
        if dtype is not None:
            raise ArgumentError(
                f"dtype={dtype}, but requantize=True keeps the library's format; leave one of them out."
            )
        return Packing(
            _dtype_of(model), True, {} if calibration is None else _fed_back(model, names, held, calibration)
        )
    chosen = dtype or _dtype_of(model)
    if not chosen.is_floating_point or chosen.itemsize < 2:
        raise MergeError(f"dtype={chosen}, but a plain model is of torch.bfloat16, float16, float32 or float64.")
    _refuse_opaque(model)
    return Packing(chosen)


def is_packed(model: nn.Module) -> bool:
    """Return whether a library packed a layer of a model."""
    return any((kind := kind_of(module)) is not None and kind.is_quantised for module in model.modules())


def saves_as(model: Any) -> str:
    """Return the name of what packs a model. Raises MergeError where Transformers cannot save it."""
    quantizer = getattr(model, "hf_quantizer", None)
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", "")
    name = str(getattr(method, "value", method))
    if quantizer is not None and not quantizer.is_serializable():
        raise MergeError(f"Transformers does not save models that {name} packed: merge into a plain one.")
    return name


def check_form(state: AdapterState, packing: Packing | None) -> None:
    """Raise AdapterStateError where weights are merged in another form than the one that is asked for."""
    if not state.merged or packing is None:
        return
    is_plain = any(layer._unpacked is not None for layer in state.layers.values())
    if is_plain == packing.requantize or packing.made:
        late = "requantize=" if not packing.made else "calibration="
        raise AdapterStateError(f"{late} comes too late once adapters are merged; call unmerge_adapter() first.")


def leave_packed(model: Any, packing: Packing) -> None:
    """Have a model that was merged saved as it is: packed again, or a plain one; in place."""
    _forget_reading(model)
    if not packing.requantize:
        _make_plain(model, packing.dtype)


def _forget_reading(model: Any) -> None:
    """Have a model forget how its quantised checkpoint was read, which Transformers turns round when it saves one.

    It has no way back for the steps of a quantising library (5.23), so that nothing could be saved. The tensors are
    saved as they are, as those of a model that was quantised when it was loaded.
    """
    steps = model.__dict__.get("_weight_conversions")
    if steps:
        ways = ((step, getattr(step, "operations", None) or ()) for step in steps)
        kept = [step for step, does in ways if not does or not all(hasattr(each, "hf_quantizer") for each in does)]
        model._weight_conversions = kept


def _make_plain(model: Any, dtype: torch.dtype) -> None:
    """Make every layer of a model that a library packed a plain one, and the model one of a dtype; in place."""
    for module in list(model.modules()):
        kind = kind_of(module)
        if isinstance(kind, QuantisedKind):
            weight = module._parameters["weight"]
            assert weight is not None
            values = kind.numbers(module, weight).to(dtype)
            make_plain(module, kind)
            module._parameters["weight"] = nn.Parameter(values, requires_grad=False)
    new: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = new.setdefault(id(child), plain_object(child))
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for told in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_4bit_serializable", "is_8bit_serializable"):
        model.__dict__.pop(told, None)
    _cast(model, dtype)
    if getattr(model, "config", None) is not None:
        model.config.dtype = dtype


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Give what a checkpoint holds a dtype, and leave the rest, such as the frequencies of rotary positions."""
    with torch.no_grad():
        for module in model.modules():
            kept = (b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set)
            for tensor in (*module._parameters.values(), *kept):
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)


def _packed(layer: LoRALayer, names: Route) -> list[layers.Packed]:
    return layers.packed_parameters(layer, layers.named_adapters(layer, names))


def _dtype_of(model: Any) -> torch.dtype:
    """Return the dtype that a model computes in: what its config says, or that of its first plain weight."""
    said = getattr(getattr(model, "config", None), "dtype", None)
    found = (p.dtype for p in model.parameters() if type(p) is nn.Parameter and p.is_floating_point())
    return said if isinstance(said, torch.dtype) and said.is_floating_point else next(found, torch.float32)


def _refuse_opaque(model: nn.Module) -> None:
    opaque = [name for name, module in base_modules(model) if (kind := kind_of(module)) is not None and kind.is_opaque]
    if opaque:
        raise MergeError(
            f"{some(opaque)}: packed (quantised) in a way that cannot be read, so that no plain model can be made of "
            "them. Load the base in float (quantization_config=None)."
        )


def _fed_back(
    model: Any, names: Route, held: Mapping[str, LoRALayer], calibration: Iterable[Any]
) -> dict[int, FedBack]:
    """Return, by layer, the packed weight that keeps the layer's outputs on some batches, and what is lost of them."""
    batches, found = list(calibration), dict[int, FedBack]()
    if not batches:
        raise ArgumentError("calibration= holds no batch: give a few batches of what the model is used for.")
    for group in _groups(held, names):
        moments = _moments(model, names, group, batches)
        for path in list(group):
            inputs = moments.pop(path, None)
            if inputs is None or not inputs.isfinite().all():
                what = "is not called" if inputs is None else "gets values that are not finite"
                raise MergeError(f"{path}: the layer {what} on the calibration batches; give others.")
            found[id(group[path])] = layers.fed_back(group[path], names, inputs)
    return found


def _groups(held: Mapping[str, LoRALayer], names: Route) -> Iterator[dict[str, LoRALayer]]:
    group, size = dict[str, LoRALayer](), 0
    for path, layer in held.items():
        own = 4 * _packed(layer, names)[0].kind.weight_shape(layer)[1] ** 2
        if group and size + own > _MOST_MOMENTS:
            yield group
            group, size = {}, 0
        group[path], size = layer, size + own
    yield group


def _moments(model: Any, names: Route, group: Mapping[str, LoRALayer], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return X^T X of each layer's inputs on some batches, float32, with the adapters acting; padding left out."""
    found, positions = dict[str, Tensor](), Positions(model)

    def seen(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x = positions.rows(args[0] if args else next(iter(kwargs.values()))).detach().float()
            product = x.mT @ x
            found[path] = found[path].add_(product) if path in found else product

        return hook

    hooks = [layer.register_forward_pre_hook(seen(path), with_kwargs=True) for path, layer in group.items()]
    try:
        with _evaluating(model), active(model, model._lora, list(names)), positions.watched(), torch.no_grad():
            for batch in batches:
                positions.begin(batch)
                run(model, batch)
    finally:
        for each in hooks:
            each.remove()
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True
