"""Gated MLPs that keep less for backward: which modules they are, and the forward they get.

    y = down(act(gate(x)) * up(x))

with gate and up two layers or the halves of one. What a module is, is settled once and by trial: its own forward is
called on a small copy and has to equal the formula, so that a sparsity, a scale or a dropout in between rules it out.

With p = act(gate) * up, d up = act(gate) * dp and d gate = act'(gate) * (up * dp). Autograd keeps gate, up, act(gate)
and p (which down saves where a trained matrix reads it); the last two are made again from the first two in backward,
with the same operations, hence to the same bits. Chen et al. 2016, arXiv:1604.06174.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ...errors import ModelError
from ...maths.autocast import ambient
from ...maths.tracing import is_traced
from ..layer import base_modules
from ..specialising import Specialised, refine, restore


@dataclass(frozen=True)
class GatedForm:
    """The roles of an MLP's children by name; a fused first layer gives both halves, the gate first."""

    split: tuple[str, ...]
    down: str
    act: str

    def branches(self, mlp: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return gate and up of x, (..., intermediate) each."""
        children = [mlp.get_submodule(name) for name in self.split]
        first, second = children[0](x).chunk(2, dim=-1) if len(children) == 1 else (child(x) for child in children)
        return first, second


class RecomputingMLP(Specialised, nn.Module):
    """A gated MLP whose training step saves its input, gate and up; everywhere else it is what it was."""

    _gated: GatedForm

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()) or is_traced():
            return super().forward(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        gate, up = self._gated.branches(self, x)
        return gated(self.get_submodule(self._gated.act), gate, up, self.get_submodule(self._gated.down))


def enable_mlp_recompute(model: nn.Module) -> None:
    """Specialise every gated MLP of a model, in place. Raises ModelError where there is none."""
    found = [(mlp, gated_form(mlp)) for _, mlp in base_modules(model) if not isinstance(mlp, RecomputingMLP)]
    for mlp, form in found:
        if form is not None:
            mlp.__dict__["_gated"] = form
            refine(mlp, RecomputingMLP)
    if not any(isinstance(m, RecomputingMLP) for m in model.modules()):
        raise ModelError(
            f"enable_mlp_recompute: {type(model).__name__} has no gated MLP, that is no module that computes "
            "down(act(gate(x)) * up(x)) with its own linear layers and nothing in between, so there is nothing to "
            "recompute. Gradient checkpointing works on any model."
        )


def disable_mlp_recompute(model: nn.Module) -> None:
    """Give every MLP its own class back."""
    for _, mlp in base_modules(model):
        if isinstance(mlp, RecomputingMLP):
            restore(mlp)
            del mlp.__dict__["_gated"]


def gated_form(module: nn.Module) -> GatedForm | None:
    """Return how a module is a gated MLP, or None where it is something else.

    It owns two or three linear layers, one activation without parameters, and nothing else.
    """
    linear = [name for name, child in module.named_children() if hasattr(child, "in_features")]
    others = [name for name, _ in module.named_children() if name not in linear]
    own = [*module._parameters, *module._buffers]
    replaced = "forward" in module.__dict__ and "_old_forward" not in module.__dict__  # by anything but accelerate
    if own or replaced or len(linear) not in (2, 3) or len(others) != 1:
        return None
    (act,) = others
    if [*module.get_submodule(act).parameters(), *module.get_submodule(act).buffers()]:
        return None
    forms = (GatedForm(names[:-1], names[-1], act) for names in permutations(linear))
    return next((form for form in forms if _computes(module, form)), None)


def _computes(module: nn.Module, form: GatedForm) -> bool:
    """Return whether a module's own forward, in training, gives what the formula gives, on a small copy."""
    source = torch.Generator("cpu").manual_seed(0)
    halves = 2 if len(form.split) == 1 else 1
    small = {name: _random_linear(3, 5 * halves, source) for name in form.split}
    small[form.down] = _random_linear(5, 3, source)
    probe = copy.copy(module)
    probe.__dict__.update(_modules={**module._modules, **small}, training=True)
    x = torch.tensor([[0.1], [1.0], [5.0], [50.0]], device="cpu") * torch.randn(
        2, 4, 3, dtype=torch.float64, generator=source, device="cpu"
    )
    with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            got = type(module).forward(probe, x)
        except Exception:  # a forward of somebody's own may raise anything on children it was not made for
            return False
        gate, up = form.branches(probe, x)
        before = gate.clone()
        want = probe.get_submodule(form.down)(probe.get_submodule(form.act)(gate) * up)
        if not torch.equal(gate, before):  # it writes into what backward needs
            return False
    return isinstance(got, Tensor) and got.shape == want.shape and torch.allclose(got, want, rtol=1e-9, atol=1e-12)


def _random_linear(inner: int, outer: int, source: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inner, outer, device="meta")
    layer.weight = nn.Parameter(torch.randn(outer, inner, dtype=torch.float64, generator=source, device="cpu"))
    layer.bias = nn.Parameter(torch.randn(outer, dtype=torch.float64, generator=source, device="cpu"))
    return layer


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
