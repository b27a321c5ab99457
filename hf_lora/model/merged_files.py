"""A merged model as files: each weight is merged when its shard is written, so that no second copy of them is made.

Transformers maps a base's safetensors files into memory, so what is held are the adapter and one shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MergeError, full_name
from ..layers import merging as layers
from ..layers.state import CHANGES, AdapterState
from ..layers.tying import tied_groups, untie
from ..variants.adapter import Adapter, own_tensor
from . import hooks
from .arguments import as_dtype
from .creating import leave
from .merging import check_mergeable
from .replacing import check_in_place

Parts = dict[int, tuple[nn.Module, Sequence[Adapter], str]]  # by the base's own tensor: layer, adapters, parameter


def save_merged(
    model: Any, folder: Path, dtype: torch.dtype | str | None = None, max_shard_size: int | str = "5GB"
) -> Any:
    """Write a LoRAModel's base with its selected adapters inside, and return the base without them.

    The files are those of `merge_and_unload(dtype=dtype).save_pretrained(folder, max_shard_size=...)`, bit by bit.
    Raises MergeError with nothing written where merging would; the model has lost its adapters then, too.
    """
    chosen = as_dtype(dtype)
    plain, parts = _parted(model, chosen)
    values: dict[str, Tensor] = {}
    for name, own in plain.state_dict(keep_vars=True).items():
        if id(own) in parts:
            layer, adapters, parameter = parts[id(own)]
            values[name] = _Pending.of(own, chosen, _merging(layer, adapters, parameter, chosen))
        else:
            widens = chosen is not None and own.is_floating_point()
            values[name] = _Pending.of(own, chosen, partial(own.detach().to, chosen)) if widens else own.detach()
    plain.save_pretrained(folder, state_dict=values, max_shard_size=max_shard_size)
    if chosen is not None:
        plain.config.dtype = chosen
        plain.config.save_pretrained(folder)
    return plain


def difference(one: Any, other: Any, inputs: Any) -> float:
    """Return |a - b| / |a| of the first outputs of two models in eval mode, in float32."""
    with torch.inference_mode():
        a, b = (model.eval()(**inputs)[0].float() for model in (one, other))
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a))


def sample_inputs(model: Any) -> dict[str, Tensor]:
    """Return a few inputs that a model takes, drawn with a fixed seed. Raises MergeError where nobody knows what it is.

    The shapes are (2, 12) for tokens, and what the config says of pictures and sounds.
    """
    draw = torch.Generator().manual_seed(0)
    config, name = model.config, model.main_input_name
    if name == "input_ids":
        ids = torch.randint(0, config.get_text_config().vocab_size, (2, 12), generator=draw)
        if config.pad_token_id is not None:  # a classifier looks for the last token that is none
            ids[ids == config.pad_token_id] = (config.pad_token_id + 1) % config.get_text_config().vocab_size
        return {name: ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}
    size = getattr(config, "image_size", None)
    sizes = size if isinstance(size, list | tuple) else (size, size)
    bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    shapes = {
        "pixel_values": (2, getattr(config, "num_channels", 3), *sizes) if size else None,
        "input_values": (2, 16_000),
        "input_features": (2, bins, 2 * frames) if bins and frames else None,
    }
    if (shape := shapes.get(name)) is None:
        raise MergeError(f"nobody knows an input of a {type(model).__name__} ({name}) to verify the merged model with.")
    start = {"decoder_input_ids": torch.ones(2, 4, dtype=torch.int64)} if config.is_encoder_decoder else {}
    return {name: torch.randn(shape, generator=draw).to(model.dtype), **start}


def _parted(model: Any, dtype: torch.dtype | None) -> tuple[Any, Parts]:
    """Return the base without its adapters, and what each of its own tensors is merged with when it is written."""
    # Tensors of several names are merged now: which of them stay one, their values tell.
    state: AdapterState = model._lora
    check_in_place(model, state)
    with CHANGES:
        names = check_mergeable(model, dtype)
        tied = tied_groups(model, {})
        shared = {name for group in tied for name in group}
        parts: Parts = {}
        for module, layer in state.layers.items():
            adapters = layers.named_adapters(layer, names)
            for adapter in adapters if dtype is not None else ():
                adapter.to(dtype)
            parameters = {a.parameter for a in adapters} | {"bias" for a in adapters if a.changes_bias}
            if any(full_name(module, parameter) in shared for parameter in parameters):
                layers.swap_in(layer, layers.merged_values(layer, names, dtype), keep=False)
            else:
                parts |= {id(own_tensor(layer, parameter)): (layer, adapters, parameter) for parameter in parameters}
        plain = leave(model)
        untie(plain, tied)
        hooks.MERGED.add(plain)
    return plain, parts


def _merging(
    layer: nn.Module, adapters: Sequence[Adapter], parameter: str, dtype: torch.dtype | None
) -> Callable[[], Tensor]:
    return lambda: layers.merged_by(layer, adapters, dtype)[parameter]


class _Pending(Tensor):
    """A tensor that is made when its values are asked for. It lies on the meta device; `contiguous` is the real one.

    Every function of torch's gets the real one too; what only asks for shape, dtype or device makes nothing.
    """

    make: Callable[[], Tensor]

    @classmethod
    def of(cls, own: Tensor, dtype: torch.dtype | None, make: Callable[[], Tensor]) -> _Pending:
        """Return one of a tensor's shape, of its dtype unless it is a floating-point one and another is given."""
        kept = own.dtype if dtype is None or not own.is_floating_point() else dtype
        pending = torch.empty(own.shape, dtype=kept, device="meta").as_subclass(cls)
        pending.make = make
        return pending

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _FACTS:
            return super().__torch_function__(function, types, args, kwargs or {})
        real = torch.utils._pytree.tree_map_only(cls, lambda each: each.make(), (args, kwargs or {}))
        return function(*real[0], **real[1])


# Of a tensor's functions those that do not look at its values; "__get__" is that of its attributes.
_FACTS = {"__get__", "dim", "element_size", "is_floating_point", "numel", "size", "stride", "untyped_storage"}
