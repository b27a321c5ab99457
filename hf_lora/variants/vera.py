"""VeRA: two random matrices, frozen and shared by all layers, and two vectors of each layer's own to train.

    W' = W + diag(lambda_b) B diag(lambda_d) A

Kopiczko et al. 2023, arXiv:2310.11454. A is (r, the widest input) and B (the widest output, r); a smaller layer takes
their first columns and rows, as in PEFT. Both come from the generator that `projection_prng_key` seeds, A first, so
that a file without them (`save_projection=False`) says all. There is no scaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..kinds.kind import Shape
from ..kinds.table import KINDS
from ..maths.vectors import between_linear
from .filling import drawn, generator
from .lora import LoRA
from .spec import Spec

_MATRICES = ("vera_A", "vera_B")


class VeRA(LoRA):
    """lambda_b, (out,), starting at zero, and lambda_d, (r,); vera_A and vera_B are those of the group.

    key: the seed of the matrices. saves: whether a file holds them.
    """

    role: ClassVar[str] = "vera"
    places = "linear layers"
    vanishing: ClassVar[tuple[str, ...]] = ("lambda_b", "lambda_d")
    settings: ClassVar[tuple[str, ...]] = (*LoRA.settings, "key", "saves")
    key: int
    saves: bool
    start: float
    lambda_b: nn.Parameter
    lambda_d: nn.Parameter
    vera_A: nn.Parameter
    vera_B: nn.Parameter

    def __init__(self, spec: Spec, own: Tensor | None, *, buffer: bool, device: torch.device | None) -> None:
        super().__init__(spec, own, buffer=buffer, device=device)
        key, saves, start = (spec.settings[k] for k in ("projection_prng_key", "save_projection", "d_initial"))
        self.__dict__.update(key=key, saves=saves, start=start)

    @classmethod
    def shapes(cls, spec: Spec, own: Tensor | None) -> dict[str, Shape]:
        a, b = KINDS[spec.kind].factor_shapes(spec.shape, spec.r)
        out, inputs = spec.widest or (b[0], a[1])
        return {"lambda_b": b[:1], "lambda_d": a[:1], "vera_A": (spec.r, inputs), "vera_B": (out, spec.r)}

    @classmethod
    def group_of(cls, spec: Spec, module: str) -> str:
        return "all layers"

    @classmethod
    def left_out(cls, spec: Spec) -> tuple[str, ...]:
        return () if spec.settings["save_projection"] else _MATRICES

    @classmethod
    def from_file(cls, spec: Spec, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(values)

    def to_file(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, stored in self.row.stored.items():
            if self.saves or name not in _MATRICES:
                yield stored.key, values[name]

    def conflicts(self, spec: Spec) -> Iterator[str]:
        yield from super().conflicts(spec)
        if (other := spec.settings["projection_prng_key"]) != self.key:
            yield f" has projection_prng_key={other} in the file, {self.key} on the model"

    def initialise(self, layer: nn.Module) -> None:
        with torch.no_grad():
            if self.init is True:
                self.lambda_b.zero_()
                self.lambda_d.fill_(self.start)
            else:
                self.lambda_b.fill_(1.0)
                drawn(self.lambda_d, lambda d, _, source: d.normal_(generator=source), self, generator(self))
        if self.leads:
            self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        source = torch.Generator("cpu").manual_seed(self.key)
        for matrix in (self.vera_A, self.vera_B):
            values = torch.empty(matrix.shape, dtype=torch.float32, device="cpu")
            matrix.copy_(nn.init.kaiming_uniform_(values, generator=source))

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """Return the part of A and of B that this layer takes, where its own vectors are."""
        a, b = self._kind.factor_shapes(self.shape, self.r)
        return self.vera_A[:, : a[1]].to(self.lambda_d.device), self.vera_B[: b[0]].to(self.lambda_d.device)

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = self._matrices()
        return a, self.lambda_b[:, None] * b * self.lambda_d

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        a, b = self._matrices()
        own = (layer.weight, layer.bias, a, self.lambda_d, b, self.lambda_b)
        return between_linear(x, *own, self.scaling, self._p(), self.transposed)
