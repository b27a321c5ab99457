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
    owner: type = type(parent)
    return any(name.endswith(f".{ending}") for base in owner.__mro__ for ending in _rescaled(base.__module__))


def is_named_in_a_call(parent: nn.Module, child: str) -> bool:
    """Tell whether any code beside that of `parent` calls something of the child's name: `self.child(...)`.

    True where the source cannot be had.
    """
    owner: type = type(parent)
    sources = [_source(base.__module__) for base in owner.__mro__ if base.__module__.startswith("transformers.models")]
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
    for base in cls.__mro__:
        if base in (nn.Module, object):
            break
        own = _module_uses(base.__module__).get(base.__qualname__, _Uses())
        found.read |= own.read
        found.called |= own.called
        found.mentioned |= own.mentioned
    return found


@cache
def _module_uses(module: str) -> dict[str, _Uses]:
    """Return how each class written in a Python module uses its children, by qualified name; a file is parsed once."""
    try:
        tree = ast.parse(_source(module))
    except SyntaxError:
        return {}
    found: dict[str, _Uses] = {}
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        prefix, node = pending.pop()
        for child in ast.iter_child_nodes(node):
            inside = prefix
            if isinstance(child, ast.ClassDef):
                found[prefix + child.name] = _class_uses(child)
                inside = f"{prefix}{child.name}."
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = f"{prefix}{child.name}.<locals>."
            if isinstance(child, ast.stmt):
                pending.append((inside, child))
    return found


def _class_uses(definition: ast.ClassDef) -> _Uses:
    found = _Uses()
    for node in definition.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith(_SETTING_UP):
            _scan(node, found)
    return found


def _scan(function: ast.AST, found: _Uses) -> None:
    """Add to `found` what one method does with the children of `self`."""
    parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    aliases = _aliases(function)
    for node in ast.walk(function):
        children = _children_of_self(node, aliases)
        if not children or isinstance(getattr(node, "ctx", None), ast.Store):
            continue
        found.mentioned.update(children)
        above = parents.get(node)
        if isinstance(above, ast.Attribute):
            if above.attr == "weight" and _computes(above, parents):
                found.read.update(children)
            elif above.attr == "forward":
                found.called.update(children)
        elif (isinstance(above, ast.Subscript) and above.value is node) or (
            not _is_asking(above) and not _is_alias(above) and not _is_iterated(above, parents)
        ):
            found.called.update(children)


def _children_of_self(node: ast.AST, aliases: dict[str, set[str]]) -> set[str]:
    """Return the children an expression stands for: `self.x`, `getattr(self, "x")`, or a name given to one."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return {node.attr}
    if isinstance(node, ast.Name):
        return aliases.get(node.id, set())
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        match node.args[:2]:
            case [ast.Name(id="self"), ast.Constant(value=str(name))]:
                return {name}
    return set()


def _aliases(function: ast.AST) -> dict[str, set[str]]:
    """Return the local names that stand for children: `layer = self.x`, `for layer in (self.x, self.y)`."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(function):
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.iter, (ast.Tuple, ast.List)):
            pairs = [(node.target, element) for element in node.iter.elts]
        for target, value in pairs:
            children = _children_of_self(value, {})
            if isinstance(target, ast.Name) and children:
                found.setdefault(target.id, set()).update(children)
    return found


def _computes(weight: ast.Attribute, parents: dict[ast.AST, ast.AST]) -> bool:
    """Tell whether a mention of a weight uses its numbers."""
    if isinstance(weight.ctx, (ast.Store, ast.Del)):
        return False
    above = parents.get(weight)
    if isinstance(above, ast.Attribute):
        if above.attr == "data":
            return _computes(above, parents)
        return _METADATA.fullmatch(above.attr) is None
    if isinstance(above, ast.Compare):
        return not all(isinstance(op, (ast.Is, ast.IsNot)) for op in above.ops)
    return not _is_asking(above)


def _is_asking(node: ast.AST | None) -> bool:
    """Tell whether the node is a call such as `isinstance(...)`, or a comparison with None."""
    if isinstance(node, ast.Compare):
        return all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ASKING


def _is_alias(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets)


def _is_iterated(node: ast.AST | None, parents: dict[ast.AST, ast.AST]) -> bool:
    if not isinstance(node, (ast.Tuple, ast.List)):
        return False
    above = parents.get(node)
    return isinstance(above, (ast.For, ast.comprehension)) and above.iter is node
