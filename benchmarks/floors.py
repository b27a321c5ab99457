"""What the tensors' work alone takes, without any library: the floors under loading and merging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .measure import Arm

IN_PLACE, NEW_TENSORS = "floor: addmm_ per layer, in place", "floor: addmm per layer, new tensors"

Piece = tuple[Tensor, Tensor, Tensor]  # a weight (in, out), A^T (in, r) and B^T (r, out)


def reading(folder: str, device: torch.device) -> Arm:
    """Return the floor of loading an adapter: its file is read and copied into tensors that are there."""
    path = Path(folder, "adapter_model.safetensors")
    places = [torch.empty_like(tensor, device=device) for tensor in load_file(path).values()]
    return Arm(lambda: places, lambda places: torch._foreach_copy_(places, list(load_file(path).values())))


def merging(base: nn.Module, r: int) -> dict[str, Arm]:
    """Return the floors of merging GPT-2's 48 layers: into the weights, and beside them."""
    pieces = _pieces(base, r)
    return {
        IN_PLACE: Arm(lambda: pieces, _add(1.0), _add(-1.0)),
        NEW_TENSORS: Arm(lambda: pieces, lambda pieces: [torch.addmm(w, a, b) for w, a, b in pieces]),
    }


def unmerging(base: nn.Module, r: int) -> dict[str, Arm]:
    """Return the floor of unmerging in place; who has kept the weights has none."""
    pieces = _pieces(base, r)
    return {IN_PLACE: Arm(lambda: pieces, _add(-1.0), _add(1.0))}


def _pieces(base: nn.Module, r: int) -> list[Piece]:
    weights = [layer.weight.detach().clone() for layer in base.modules() if isinstance(layer, Conv1D)]
    return [(w, 0.01 * w.new_ones(w.shape[0], r), 0.01 * w.new_ones(r, w.shape[1])) for w in weights]


def _add(sign: float) -> Callable[[list[Piece]], None]:
    def add(pieces: list[Piece]) -> None:
        for weight, a, b in pieces:
            weight.addmm_(a, b, alpha=sign)

    return add
