"""What trainings wait for: their batch's trunk, with those of others where they fit, and the gradients behind it."""

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.rows import mapped
from .turns import Training, World

# What is as wide as a mask, which tells what of it is padding.
MASKS = {
    **dict.fromkeys(("input_ids", "inputs_embeds", "token_type_ids", "attention_mask"), "attention_mask"),
    **dict.fromkeys(("decoder_input_ids", "decoder_inputs_embeds"), "decoder_attention_mask"),
    "decoder_attention_mask": "decoder_attention_mask",
    **dict.fromkeys(("encoder_hidden_states", "encoder_attention_mask"), "encoder_attention_mask"),
}
IDS = ("input_ids", "decoder_input_ids")
ALONE = object()  # the answer that a training computes a call itself


class Backward:
    """The request to bring gradients through what was computed together."""

    order = 2


def _autocast() -> tuple[tuple[str, bool, torch.dtype], ...]:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return tuple((each, torch.is_autocast_enabled(each), torch.get_autocast_dtype(each)) for each in devices)


@dataclass
class Call:
    """The request to compute a trunk. module: the twin's; compute: its own forward; takes: what that has arguments for.

    Made in the training's thread: grad, autocast: whether it wants gradients there, and lower precision.
    """

    training: Training
    trunk: str
    module: nn.Module
    compute: Callable[..., Any]
    arguments: dict[str, Any]
    takes: frozenset[str]
    grad: bool = field(default_factory=torch.is_grad_enabled)
    autocast: tuple[Any, ...] = field(default_factory=_autocast)

    @contextmanager
    def in_precision(self) -> Iterator[None]:
        """Compute in the training's precision inside a `with` block."""
        with ExitStack() as stack:
            for device, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype, enabled))
            yield

    @property
    def order(self) -> int:
        """Evaluations come first: who has none waits before its next step."""
        return 1 if self.grad else 0

    @property
    def rows(self) -> int:
        """The number of rows of the batch."""
        tensors = [*map(self.arguments.get, MASKS), *self.arguments.values()]
        return next((len(t) for t in tensors if isinstance(t, Tensor) and t.ndim), 0)

    def widths(self) -> dict[str, int]:
        """Return how wide this batch is, by the mask that goes with it."""
        named = [(name, self.arguments.get(name)) for name in MASKS]
        return {MASKS[name]: t.shape[1] for name, t in named if isinstance(t, Tensor) and t.ndim > 1}

    def kind(self) -> Hashable:
        """Return what is the same for batches that are computed together; what no other has for one that is not."""
        found: list[Hashable] = [self.trunk, self.module.training, self.grad, self.autocast]
        for name, value in sorted(self.arguments.items()):
            mask = MASKS.get(name)
            if name == mask and (value is None or (isinstance(value, Tensor) and value.ndim == 2)):
                continue  # one is made where others have one
            if isinstance(value, Tensor):
                if not value.ndim or len(value) != self.rows:
                    return id(self)
                is_wide = name != mask and mask in self.takes and value.ndim > 1
                found.append((name, value.dtype, value.device, value.shape[2 if is_wide else 1 :]))
            elif value is None or isinstance(value, bool | int | float | str):
                found.append((name, type(value), value))
            else:
                return id(self)
        return tuple(found)


def differing(calls: Sequence[Call], answers: Sequence[Any], before: Sequence[World]) -> list[str]:
    """Return the names of the trainings that compute another result alone; what their masks leave out is not asked."""
    found = []
    for call, answer, world in zip(calls, answers, before, strict=True):
        with ExitStack() as stack:
            stack.enter_context(call.in_precision())
            stack.enter_context(torch.no_grad())
            stack.enter_context(copy.copy(world).drawing())
            alone = call.compute(**call.arguments)
        mask = call.arguments.get("attention_mask")
        pairs = zip(_tensors(answer), _tensors(alone), strict=True)
        if not all(_is_close(one, other, mask) for one, other in pairs):
            found.append(call.training.name)
    return found


def _tensors(given: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(given, found.append)
    return found


def _is_close(one: Tensor, other: Tensor, mask: Any) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return True
    if isinstance(mask, Tensor) and mask.shape == one.shape[:2]:
        one, other = one[mask.bool()], other[mask.bool()]
    most = min(0.2, 30 * torch.finfo(other.dtype).eps ** 0.5)
    one, other = one.detach(), other.detach()
    return float((one - other).double().norm()) <= most * float(other.double().norm()) + 1e-30
