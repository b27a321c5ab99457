"""Weighted combinations of updates (task arithmetic, TIES, DARE, pruning), and the SVD of what comes out.

    pruned     largest: the largest share `density` of a tensor's values; random: each kept with that probability and
               divided by it (DARE, Yu et al. 2023, arXiv:2311.03099)
    elected    of each entry the sign of the sum, then the mean of those that agree (TIES, Yadav et al. 2023,
               arXiv:2306.01708); otherwise the sum

Tensors of different adapters have the same shape; what they are (factors, or updates of the weight's size) is in
`model/combining.py`. PEFT's numbers where nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .low_rank import svd

Sign = Literal["total", "frequency"]


@dataclass(frozen=True)
class Method:
    """One way to combine. acts_on: the factors A and B each by itself, the update B A, or pairs side by side.

    prune: how values are dropped first, "" for not at all. elects: whether the entries' signs are elected.
    """

    acts_on: Literal["factors", "update", "pairs"]
    prune: Literal["", "largest", "random"] = ""
    elects: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether the update is a weighted sum of updates, but for rounding and what a rank cannot hold."""
        return not self.prune and not self.elects


METHODS: dict[str, Method] = {
    "svd": Method("update"),
    "linear": Method("factors"),
    "cat": Method("pairs"),
    "ties": Method("factors", "largest", elects=True),
    "ties_svd": Method("update", "largest", elects=True),
    "dare_ties": Method("factors", "random", elects=True),
    "dare_linear": Method("factors", "random"),
    "dare_ties_svd": Method("update", "random", elects=True),
    "dare_linear_svd": Method("update", "random"),
    "magnitude_prune": Method("factors", "largest"),
    "magnitude_prune_svd": Method("update", "largest"),
}


def combined(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    method: Method,
    density: float = 1.0,
    sign: Sign = "total",
    draw: torch.Generator | None = None,
) -> Tensor:
    """Return the weighted combination of tensors of one shape, as a new tensor.

    density: the share of values that pruning keeps, in (0, 1]. sign: of an entry that of the values' sum, or of the
    majority. draw: a CPU generator for random pruning; torch's own random state unless given.
    """
    kept = torch.stack([_pruned(tensor, method.prune, density, draw) for tensor in tensors])
    factors = torch.tensor(weights, dtype=kept.dtype, device=kept.device).reshape(-1, *(1 for _ in kept.shape[1:]))
    if not method.elects:
        return (kept * factors).sum(dim=0)
    votes = kept if sign == "total" else kept.sign()
    elected = torch.where(votes.sum(dim=0) >= 0, 1, -1)
    agrees = kept.sign() == elected
    return (kept * factors * agrees).sum(dim=0) / agrees.sum(dim=0).clamp_min(1)


def truncated(matrix: Tensor, r: int, clamp: float | None = None, driver: str | None = None) -> tuple[Tensor, Tensor]:
    """Return (A, B), A (..., r, in) and B (..., out, r), with B A the best approximation of a (..., out, in) matrix.

    B has the singular values. The ranks are fewer where the matrix has fewer. clamp: a quantile of the factors' values,
    to which all are clamped. driver: torch.linalg.svd's, on CUDA.
    """
    u, s, vh = svd(matrix, driver)
    a, b = vh[..., :r, :], u[..., :r] * s[..., None, :r]
    if clamp is not None:
        most = torch.quantile(torch.cat([b.flatten(), a.flatten()]), clamp)
        a, b = a.clamp(-most, most), b.clamp(-most, most)
    return a, b


def _pruned(tensor: Tensor, how: str, density: float, draw: torch.Generator | None) -> Tensor:
    if not how or density == 1:
        return tensor
    if how == "largest":
        kept = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
        mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
        return torch.where(mask.index_fill(0, kept, True).reshape(tensor.shape), tensor, 0)
    chances = torch.full(tensor.shape, density, dtype=torch.float32, device="cpu")  # the same on every device
    return torch.bernoulli(chances, generator=draw).to(tensor) * tensor / density
