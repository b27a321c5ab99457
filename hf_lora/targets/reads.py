"""Which layers' weights are read by their parent's own code, past the layer's forward.

An adapter that adds to a layer's output is dead where the parent computes with `self.layer.weight` and never calls
`self.layer`: WavLM hands its projections to `F.multi_head_attention_forward`, Mamba multiplies by `dt_proj.weight`.
The parent's source is read, never run.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from dataclasses import dataclass, field
from functools import cache

from torch import nn

# What can be asked of a weight without computing with it.
_METADATA = re.compile(
    "dtype|device|shape|size|n?dim|numel|data_ptr|element_size|requires_grad_?|grad|is_cuda|is_meta|"
    "stride|is_contiguous|is_floating_point|itemsize|nbytes|layout|_is_hf_initialized"
)
_ASKING = frozenset({"isinstance", "hasattr", "type", "id", "callable"})
_SETTING_UP = ("__init__", "_init_", "init_", "reset_", "__setstate__", "__repr__", "extra_repr", "_load_from")


@dataclass
class _Uses:
    """What a class does with its children: those whose weight it reads, calls or hands on, and mentions at all."""

    read: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    mentioned: set[str] = field(default_factory=set)


def weight_is_read(parent: nn.Module, child: str) -> bool:
    """Tell whether the code of `parent` computes with `self.<child>.weight` itself.

    Asking for the weight's dtype, device or shape does not count, nor does initialising it. False where the source
    cannot be had.

    >>> weight_is_read(nn.MultiheadAttention(4, 1), "out_proj")
    True
    """
    owner: type = type(parent)
    return child in _uses(owner).read


def child_is_called(parent: nn.Module, child: str) -> bool:
    """Tell whether the code of `parent` calls `self.<child>`, hands it on, or leaves unsaid how it is used.

    >>> child_is_called(nn.MultiheadAttention(4, 1), "out_proj")
    False
    """
    owner: type = type(parent)
    uses = _uses(owner)
    return child in uses.called or child not in uses.mentioned


def weight_is_rescaled(parent: nn.Module, name: str) -> bool:
    """Tell whether the model's code multiplies or divides the weight of the layer of that full name in place.

    RWKV does so between training and evaluation: what an adapter adds beside such a weight keeps its old scale.
    """
    return any(name.endswith(f".{ending}") for base in type(parent).__mro__ for ending in _rescaled(base.__module__))


def is_named_in_a_call(parent: nn.Module, child: str) -> bool:
    """Tell whether any code beside that of `parent` calls something of the child's name: `self.child(...)`.

    True where the source cannot be had.
    """
    modules = {base.__module__ for base in type(parent).__mro__}
    sources = [_source(module) for module in modules if module.startswith("transformers.models")]
    return not sources or any(re.search(rf"\.{re.escape(child)}\(", source) for source in sources)


@cache
def _rescaled(module: str) -> frozenset[str]:
    """Return the two-word endings of layers whose weights a Python module's code rescales in place."""
    if not module.startswith("transformers"):
        return frozenset()
    found = re.findall(r"\b(\w+\.\w+)\.weight(?:\.data)?\.(?:mul|div)_\(", _source(module))
    return frozenset(f for f in found if not f.startswith(("self.", "module.")))


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return ""


@cache
def _uses(cls: type) -> _Uses:
    """Return how the methods of a class, and of those it inherits from, use its children."""
    found = _Uses()
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        for method in _methods(base.__module__).get(base.__name__, ()):
            _scan(method, found)
    return found


@cache
def _methods(module: str) -> dict[str, list[ast.stmt]]:
    """Return the methods of each class written in a Python module that use its children; a file is parsed once."""
    try:
        classes = [node for node in ast.walk(ast.parse(_source(module))) if isinstance(node, ast.ClassDef)]
    except SyntaxError:
        return {}
    return {cls.name: [node for node in cls.body if _is_method(node)] for cls in classes}


def _is_method(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(_SETTING_UP)


def _scan(function: ast.AST, found: _Uses) -> None:
    """Add to `found` what one method does with the children of `self`."""
    parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    aliases = _aliases(function)
    for node in ast.walk(function):
        children = _children_of_self(node, aliases)
        if not children or isinstance(getattr(node, "ctx", None), ast.Store):
            continue
        found.mentioned |= children
        above = parents.get(node)
        if isinstance(above, ast.Attribute):
            if above.attr == "weight" and _computes(above, parents):
                found.read |= children
            elif above.attr == "forward":
                found.called |= children
        elif not (_is_asking(above) or _is_alias(above) or _is_iterated(above, parents)):
            found.called |= children


def _children_of_self(node: ast.AST, aliases: dict[str, set[str]]) -> set[str]:
    """Return the children an expression stands for: `self.x`, `getattr(self, "x")`, or a name given to one."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return {name}
        case ast.Name(id=name):
            return aliases.get(name, set())
        case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id="self"), ast.Constant(value=str(name)), *_]):
            return {name}
    return set()


def _aliases(function: ast.AST) -> dict[str, set[str]]:
    """Return the local names that stand for children: `layer = self.x`, `for layer in (self.x, self.y)`."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=targets, value=value):
                pairs += [(target, value) for target in targets]
            case ast.For(target=target, iter=ast.Tuple(elts=elements) | ast.List(elts=elements)):
                pairs += [(target, element) for element in elements]
            case ast.comprehension(target=target, iter=ast.Tuple(elts=elements) | ast.List(elts=elements)):
                pairs += [(target, element) for element in elements]
    found: dict[str, set[str]] = {}
    for target, value in pairs:
        if isinstance(target, ast.Name) and (children := _children_of_self(value, {})):
            found.setdefault(target.id, set()).update(children)
    return found


def _computes(weight: ast.Attribute, parents: dict[ast.AST, ast.AST]) -> bool:
    """Tell whether a mention of a weight uses its numbers."""
    above = parents.get(weight)
    if isinstance(weight.ctx, ast.Store | ast.Del) or _is_asking(above):
        return False
    if isinstance(above, ast.Attribute):
        return _computes(above, parents) if above.attr == "data" else _METADATA.fullmatch(above.attr) is None
    return True


def _is_asking(node: ast.AST | None) -> bool:
    """Tell whether the node is a call such as `isinstance(...)`, or a comparison with None."""
    match node:
        case ast.Compare(ops=ops):
            return all(isinstance(op, ast.Is | ast.IsNot) for op in ops)
        case ast.Call(func=ast.Name(id=name)):
            return name in _ASKING
    return False


def _is_alias(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets)


def _is_iterated(node: ast.AST | None, parents: dict[ast.AST, ast.AST]) -> bool:
    above = parents.get(node) if isinstance(node, ast.Tuple | ast.List) else None
    return isinstance(above, ast.For | ast.comprehension) and above.iter is node
