"""LoRA-XS: between frozen singular factors of the weight itself, a small square matrix trains.

    W' = W + scaling * B' R A'      A' = V_r', B' = U_r S_r of W = U S V'; R is (r, r)

Bałazy et al. 2024, arXiv:2405.17604. R starts at zero and not at N(0, 1e-5^2) as there: its gradient is not zero at
zero, so nothing has to be broken, and a fresh adapter changes no bit. A file holds R alone. A' and B' are computed from
the base again, in float64, each direction with the sign that makes the largest entry of its row of A' positive; what
the file says of them (`found`) tells whether they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..kinds.kind import Shape
from ..kinds.table import KINDS
from ..maths import low_rank
from .filling import generator
from .lora import LoRA
from .spec import Spec


class LoRAXS(LoRA):
    """core: R, (r, r). found: of A' and B', (3, r), see `low_rank.traits`. frozen_A (r, in) and frozen_B (out, r)."""

    role: ClassVar[str] = "lora_xs"
    places = "weights"
    vanishing: ClassVar[tuple[str, ...]] = ("core",)
    settings: ClassVar[tuple[str, ...]] = (*LoRA.settings, "n_iter")
    core: nn.Parameter
    found: nn.Parameter
    frozen_A: Tensor
    frozen_B: Tensor
    n_iter: int

    def __init__(self, spec: Spec, own: Tensor | None, *, buffer: bool, device: torch.device | None) -> None:
        super().__init__(spec, own, buffer=buffer, device=device)
        self.__dict__.update(n_iter=spec.settings["svd_niter"])
        a, b = KINDS[spec.kind].factor_shapes(spec.shape, spec.r)
        for name, size in (("frozen_A", a), ("frozen_B", b)):
            empty = torch.empty(size, device=device, dtype=self.core.dtype)
            self.register_buffer(name, empty, persistent=False)

    @classmethod
    def shapes(cls, spec: Spec, own: Tensor | None) -> dict[str, Shape]:
        return {"core": (spec.r, spec.r), "found": (3, spec.r)}

    @classmethod
    def refusal(cls, spec: Spec, raw: bool) -> str:
        if told := super().refusal(spec, raw):
            return told
        a, b = KINDS[spec.kind].factor_shapes(spec.shape, spec.r)
        most = min(b[0], torch.Size(a[1:]).numel())
        return f"a matrix of {most} directions, of which r={spec.r} are to be taken" if spec.r > most else ""

    @classmethod
    def from_file(cls, spec: Spec, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(values)

    def to_file(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, stored in self.row.stored.items():
            yield stored.key, values[name]

    def refuses_room(self, max_r: int) -> str:
        return "has a core of one rank"

    def initialise(self, layer: nn.Module) -> None:
        with torch.no_grad():
            if self.init is True:
                self.core.zero_()
            else:
                self.core.copy_(torch.randn(self.core.shape, generator=generator(self), device="cpu"))
            matrix = self.own_matrix(layer)
            if matrix.is_meta:
                return
            u, s, vh = low_rank.top_singular(matrix.double(), self.r, self.n_iter or None)
            sign = vh.gather(1, vh.abs().argmax(1, keepdim=True)).sign()
            a, b = vh * sign, u * sign.mT
            self.found.copy_(low_rank.traits(a, b, s))
            self.frozen_A.copy_(a.reshape(self.frozen_A.shape))
            self.frozen_B.copy_((b * s).reshape(self.frozen_B.shape))

    def factors(self) -> tuple[Tensor, Tensor]:
        _, b = self._kind.flat(self.frozen_A, self.frozen_B)
        return self.frozen_A, (b @ self.core).reshape(self.frozen_B.shape)
