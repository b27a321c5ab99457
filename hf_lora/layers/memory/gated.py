"""A gated product of which only gate and up are kept for backward, where the rest is computed again.

    p = act(gate) * up,   y = down(p)
    d up = act(gate) * dp,   d gate = act'(gate) * (up * dp)

Autograd keeps gate, up, act(gate) and p (which down saves where a trained matrix reads it); the last two are made
again from the first two in backward, with the same operations, hence to the same bits. Chen et al. 2016,
arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...maths.autocast import ambient

Activation = Callable[[Tensor], Tensor]


def gated(act: Activation, gate: Tensor, up: Tensor, down: Callable[[Tensor], Tensor]) -> Tensor:
    """Return down(act(gate) * up), keeping gate and up for backward and neither the activation nor the product.

    gate, up: (..., intermediate), as down expects their product. act: elementwise, without parameters or chance.
    """
    plain = type(gate) is Tensor and type(up) is Tensor
    if not (plain and (gate.requires_grad or up.requires_grad)):  # otherwise nothing else keeps gate and up
        return down(act(gate) * up)
    product = _GatedProduct.apply(act, gate, up)
    saver = _Saver(act, gate, up, product)
    with saved_tensors_hooks(saver.pack, _Kept.unpack):
        y = down(product)
    saver.settle()
    return y


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, act: Activation, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act, ctx.ambient = act, ambient(gate.device)
        return act(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        again = torch.is_grad_enabled()  # a gradient of this gradient is wanted
        with torch.enable_grad(), ctx.ambient():
            source = gate if again or not ctx.needs_input_grad[1] else gate.detach().requires_grad_()
            active = ctx.act(source)
        d_gate = d_up = None
        if ctx.needs_input_grad[1]:
            (d_gate,) = torch.autograd.grad(active, source, (grad * up).to(active.dtype), create_graph=again)
        if ctx.needs_input_grad[2]:
            d_up = (grad * (active if again else active.detach())).to(up.dtype)
        return None, d_gate, d_up


class _Saver:
    """Packs what a layer saves: of whatever lies in the product's memory only its place there."""

    def __init__(self, act: Activation, gate: Tensor, up: Tensor, product: Tensor) -> None:
        self.act, self.ambient = act, ambient(gate.device)
        self.inputs: tuple[Tensor, ...] = (gate, up)
        self.pointer, self.dtype, self.version = product.untyped_storage().data_ptr(), product.dtype, product._version
        self.layout = product.size(), product.stride()
        self.pending: list[tuple[_Kept, tuple[Tensor, ...]]] = []

    def pack(self, tensor: Tensor) -> _Kept:
        recomputed = self._is_product(tensor)
        kept = _Kept(self._remake(tensor) if recomputed else lambda own: own)
        self.pending.append((kept, self.inputs if recomputed else (tensor,)))
        return kept

    def _is_product(self, tensor: Tensor) -> bool:
        plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.dtype == self.dtype
        same = plain and tensor.untyped_storage().data_ptr() == self.pointer
        return same and tensor._version == self.version  # not where the layer has written into it

    def _remake(self, tensor: Tensor) -> Callable[..., Tensor]:
        act, context, layout = self.act, self.ambient, self.layout
        view = tensor.size(), tensor.stride(), tensor.storage_offset()

        def remake(gate: Tensor, up: Tensor) -> Tensor:
            with torch.no_grad(), context():
                product = act(gate) * up
            if product.stride() != layout[1]:  # where hooks gave gate and up back in another layout
                product = torch.empty_strided(*layout, dtype=product.dtype, device=product.device).copy_(product)
            return product.as_strided(*view)

        return remake

    def settle(self) -> None:
        """Hand what was packed to autograd, under the hooks that are around the layer (checkpointing, offloading)."""
        for kept, tensors in self.pending:
            kept.hold(tensors)
        self.pending, self.inputs = [], ()  # autograd holds on to the hooks


class _Kept:
    """One saved tensor: a node of its own that keeps what it is made of, alive through its output, and the making."""

    def __init__(self, remake: Callable[..., Tensor]) -> None:
        self.remake = remake
        self.output: Any = None

    def hold(self, tensors: tuple[Tensor, ...]) -> None:
        self.output = _Keep.apply(torch.empty(0, requires_grad=True, device="cpu"), *tensors)

    def unpack(self) -> Tensor:
        return self.remake(*self.output.grad_fn.saved_tensors)


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0, device="cpu")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise AssertionError("nothing is computed from this node")
