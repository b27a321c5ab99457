"""What of a model gets no gradient: heads that pool for nobody, layers behind the hidden state that is taken, codecs.

A model that holds another one (a vision tower, a base) calls it and takes some fields of its output. Gemma 3 takes the
last hidden state, so SigLIP's pooling head gets no gradient; LLaVA takes `hidden_states[-2]`, so the last layer gets
none. The holder's source is read, never run; where it leaves anything unsaid, everything counts as taken.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from .scanning import parents_in
from .source import methods_of
from .tree import Tree
from .words import QUANTIZER, is_head, says

_LAST, _POOLED, _ALL = "last_hidden_state", "pooler_output", "hidden_states"
_Place = tuple[bool, str] | int | None


@dataclass
class _Taken:
    """What a class takes of the output of a child that it calls.

    fields: their names. layers: for each `hidden_states[...]` the number, or the attribute that it is: of the module
    itself (True) or of its config; None where it is said in another way. skipped: what every call asks to leave out.
    """

    fields: set[str] = field(default_factory=set)
    layers: list[_Place] = field(default_factory=list)
    skipped: set[str] | None = None


def unreached(tree: Tree) -> Iterator[nn.Module]:
    """Yield the modules of a model that compute what nothing takes; what is below them is not yielded again."""
    for holder in tree.modules.values():
        towers = {label: child for label, child in tree.children(holder) if hasattr(child, "base_model_prefix")}
        for tower in towers.values():  # one that hands over codes gives no gradient: a tokenizer of images
            if any(says(type(m).__name__, QUANTIZER) for _, m in tree.children(tower)):
                yield tower
        takes = _taken(_class(holder)) if towers else {}
        for label, tower in towers.items():
            if (taken := takes.get(label)) is None:
                continue
            yield from (child for name, child in tree.children(tower) if name in (taken.skipped or ()))
            while (inner := tower._modules.get(_handed_on(_class(tower)).get("forward", ""))) is not None:
                tower = inner
            if _POOLED not in taken.fields and not taken.fields.isdisjoint({_LAST, _ALL}):
                yield from (child for name, child in tree.children(tower) if name in _pooling(_class(tower)))
            if taken.fields.isdisjoint({_LAST, _POOLED}):
                yield from _later_layers(tree, holder, tower, taken)


def _class(module: nn.Module) -> type:
    cls: type = type(module)
    return cls


def _later_layers(tree: Tree, holder: nn.Module, tower: nn.Module, taken: _Taken) -> Iterator[nn.Module]:
    """Yield the layers of a tower behind the last one whose hidden state is taken."""
    depth = getattr(getattr(tower, "config", None), "num_hidden_layers", None)
    stack = next((m for m in tree.below(tower) if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    if stack is None or not taken.layers:
        return
    numbers: list[int] = []
    for place in taken.layers:
        value: Any = place
        if isinstance(place, tuple):
            value = getattr(holder if place[0] else getattr(holder, "config", None), place[1], None)
        each = [value] if isinstance(value, int) else value
        if not isinstance(each, list | tuple) or not all(isinstance(n, int) for n in each):
            return
        numbers += each
    if -1 in numbers or not numbers:
        return
    yield from stack[max(n if n >= 0 else len(stack) + 1 + n for n in numbers) :]


@cache
def _pooling(cls: type) -> frozenset[str]:
    """Return the heads whose results a class gives as `pooler_output`."""
    found: set[str] = set()
    for method in methods_of(cls):
        nodes = list(ast.walk(method))
        given = [n.value for n in nodes if isinstance(n, ast.keyword) and n.arg == _POOLED]
        names = {n.id for n in given if isinstance(n, ast.Name)}
        given += [n.value for n in nodes if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", None) in names]
        found |= {_called(n) for value in given for n in ast.walk(value)}
    return frozenset(name for name in found if is_head(name))


@cache
def _handed_on(cls: type) -> dict[str, str]:
    """Return the methods of a class that return the output of a child as it is, with the child."""
    returned = ((m.name, n.value) for m in methods_of(cls) for n in ast.walk(m) if isinstance(n, ast.Return))
    return {name: child for name, value in returned if (child := _called(value))}


def _called(node: ast.AST | None) -> str:
    """Return x of a call `self.x(...)`, "" for anything else."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
            return name
    return ""


@cache
def _taken(cls: type) -> dict[str, _Taken]:
    """Return what the methods of a class take of each child that they call and whose output has named fields."""
    found: dict[str, _Taken] = {}
    handed_on = _handed_on(cls)
    for method in methods_of(cls):
        parents = parents_in(method)
        names: dict[str, str] = {}
        for node in ast.walk(method):
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=value)
                ):
                    if called := _called(value):
                        names[name] = handed_on.get(called, called)
        stored = {n.value.id for n in ast.walk(method) if _is_pooled(n, ast.Store) and isinstance(n.value, ast.Name)}  # type: ignore[attr-defined]
        for node in ast.walk(method):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else ""
            called = _called(node)
            if child := names.get(name) or handed_on.get(called, called):
                taken = found.setdefault(child, _Taken())
                if called == child:
                    taken.skipped = (_skipped(node) if taken.skipped is None else taken.skipped) & _skipped(node)
                _add(node, parents, taken, is_replaced=name in stored)
    return found


def _is_pooled(node: ast.AST, context: type) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == _POOLED and isinstance(node.ctx, context)


def _skipped(call: ast.AST) -> set[str]:
    """Return x of every argument `skip_x=True`."""
    given = call.keywords if isinstance(call, ast.Call) else []
    said = [k.arg for k in given if k.arg and isinstance(k.value, ast.Constant) and k.value.value is True]
    return {arg.removeprefix("skip_") for arg in said if arg.startswith("skip_")}


def _add(node: ast.AST, parents: dict[ast.AST, ast.AST], taken: _Taken, is_replaced: bool) -> None:
    """Note what one mention of an output takes. is_replaced: whether the method puts another pooled output in it."""
    match parents.get(node), node:
        case ast.Assign() | ast.AnnAssign(), _:  # it gets a name, whose mentions are looked at
            pass
        case ast.Return(), ast.Call():  # it is handed on, and looked at where that method is called
            pass
        case ast.Return(), _ if is_replaced:
            pass
        case ast.Attribute(ctx=ast.Store()), _:
            pass
        case ast.Attribute(attr=attr) as above, _:
            taken.fields.add(_ALL if attr == _LAST and _is_by_number(above, parents) else attr)
            if attr == _ALL and not isinstance(parents.get(above), ast.keyword):  # else it is reported
                taken.layers.append(_place(above, parents))
        case ast.Subscript(slice=ast.Constant(value=0)), _:
            taken.fields.add(_LAST)
        case _:
            taken.fields.add(_POOLED)
            taken.layers.append(None)


def _is_by_number(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Tell whether the last hidden state is taken only where its number is asked for: `if layer == -1:`."""
    while (above := parents.get(node)) is not None:
        if isinstance(above, ast.If | ast.IfExp) and ast.unparse(above.test).endswith(" == -1"):
            return node is above.body or (isinstance(above.body, list) and node in above.body)
        node = above
    return False


def _place(states: ast.AST, parents: dict[ast.AST, ast.AST]) -> _Place:
    """Return where the number of `hidden_states[...]` comes from; a loop's variable stands for what is looped over."""
    above = parents.get(states)
    number: ast.AST | None = above.slice if isinstance(above, ast.Subscript) else None
    node: ast.AST | None = above
    wanted = ast.unparse(number) if number is not None else ""
    while isinstance(number, ast.Name) and node is not None:
        node = parents.get(node)
        for loop in getattr(node, "generators", [node]):
            if isinstance(loop, ast.For | ast.comprehension) and ast.unparse(loop.target) == wanted:
                number = loop.iter
    match number:
        case ast.Constant(value=int(n)):
            return n
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(n))):
            return -n
        case ast.Name(id=name):
            return False, name
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return True, name
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr="config"), attr=name):
            return False, name
    return None
