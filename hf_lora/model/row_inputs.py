"""What the inputs and outputs of a call tell of a batch whose rows have adapters of their own."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import AdapterStateError, beginnings, some
from ..layers.routes import Rows

_INPUTS = ("input_ids", "inputs", "inputs_embeds", "decoder_input_ids")
_OTHERS = ("encoder_outputs", "labels", "attention_mask")  # in a call that has none of the inputs
_OF_TEXT = ("_embeds", "_mask", "labels")  # float inputs that are a text's
_PLACE = re.compile(r"(image|video|audio)_token_(id|index)")  # in a config: the token in whose place media come


@torch.compiler.disable
def check_inputs(model: Any, rows: Rows, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return how many rows the batch of a call or a generate has, None where that cannot be told.

    Raises AdapterStateError where they are not as many as there are routes, or its media are not told apart.
    """
    names = (*_INPUTS, getattr(model, "main_input_name", "input_ids"), *_OTHERS)
    given = (each for value in (*args[:1], *map(kwargs.get, names)) for each in _first(value))
    count, wanted = next((len(each) for each in given if each.ndim), None), len(rows.of_row)
    if count is not None and (count % wanted if rows.repeats else count != wanted):
        raise AdapterStateError(f"a batch of {count} rows, with adapters named for {wanted}; name one for each row.")
    if len(rows.groups) > 1:
        _check_media(model, rows, args, kwargs)
    return count


def _first(value: Any) -> Iterator[Tensor]:
    """Yield a tensor, or the first one of several."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple) and value:
        value = value[0]
    if isinstance(value, Tensor):
        yield value


def _check_media(model: Any, rows: Rows, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise AdapterStateError where nobody can tell whose the images (videos, sounds) of a batch are."""
    # They are each row's own where every row has as many tokens in their place, or, in a model without such tokens,
    # where there are as many as rows. Otherwise only the text's layers can tell rows.
    ids = next((each for each in (*args[:1], kwargs.get("input_ids")) if isinstance(each, Tensor)), None)
    media = {
        key: value for key, value in kwargs.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1 and not key.endswith(_OF_TEXT)
    }  # fmt: skip
    if ids is None or ids.ndim != 2 or ids.is_floating_point() or not media:
        return
    settings = vars(getattr(model, "config", None) or object)
    tokens = [value for key, value in settings.items() if _PLACE.fullmatch(key) and isinstance(value, int)]
    counts = [(ids == token).sum(1).tolist() for token in tokens]
    if all(len({*each}) == 1 for each in counts) if counts else all(len(each) == len(ids) for each in media.values()):
        return
    known = {id(module) for top in _text(model) for module in top.modules()}
    state = model._lora
    unknown = [
        path for path, layer in state.layers.items() if id(layer) not in known and any(map(layer.carried, rows))
    ]  # fmt: skip
    if unknown:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in media.items())
        raise AdapterStateError(
            f"{some(unknown, 3)}: the rows of this batch have not equally much of {shapes}, so which of it is whose "
            "cannot be told there. Compute each adapter's rows on their own, in `with model.adapters_active(name):`."
        )


def _text(model: Any) -> Iterator[nn.Module]:
    """Yield a model's parts through which only its text goes."""
    for name in ("get_decoder", "get_input_embeddings", "get_output_embeddings"):
        with suppress(NotImplementedError):
            part = getattr(model, name, lambda: None)()
            if part is not None and part is not model:
                yield part


@torch.compiler.disable
def check_uncrossed(model: Any, output: Any) -> None:
    """Raise AdapterStateError where a model compared each row with all others, as CLIP does, which are not its own."""
    block = model._lora.own_block()
    if block is None or not isinstance(block.route, Rows) or len(block.route.groups) == 1:
        return
    keys = output if isinstance(output, Mapping) else _annotated(model.forward) if isinstance(output, tuple) else ()
    if crossed := [key for key in keys if "logits_per_" in str(key)]:
        raise AdapterStateError(
            f"{', '.join(crossed)}: this model compares every row with all others, also where adapters differ. Compute "
            "the embeddings in `with model.adapters_active(rows=[...])`, or each adapter's rows on their own."
        )


def _annotated(forward: Any) -> Iterator[str]:
    """Yield the names of what a forward says that it returns."""
    annotation = inspect.signature(forward).return_annotation
    for cls in typing.get_args(annotation) or (annotation,):
        if dataclasses.is_dataclass(cls):
            yield from (field.name for field in dataclasses.fields(cls))


_TURNS = re.compile(
    r"(?m)^[^#\n]*\b(\w+) = \1\.(?:(?:transpose|swapaxes|swapdims)\((?:0, 1|1, 0)\)|permute\(\(?1, 0(?:, 2)?\)?\))"
    r"(?:\.contiguous\(\))?(?!\.)"
)


def below_turning(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Return those of some layers above which a module swaps the first two dimensions of what it computes on.

    A convolution has its rows in the first dimension whatever is above.
    """
    turning = {
        name for name, module in model.named_modules()
        if _turns(module.__class__)
        or any(isinstance(child, nn.MultiheadAttention) and not child.batch_first for child in module.children())
    }  # fmt: skip
    return frozenset(
        name for name in names if turning and not isinstance(model.get_submodule(name), _ConvNd)
        and not turning.isdisjoint(["", *beginnings(name)[:-1]])
    )  # fmt: skip


@cache
def _turns(cls: Any) -> bool:
    """Return whether the source of a module's forward has such a swap; what has no source has none."""
    try:
        return bool(_TURNS.search(inspect.getsource(inspect.unwrap(cls.forward))))
    except (OSError, TypeError):
        return False
