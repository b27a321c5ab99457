"""What the code of a class does with the modules below `self`: calls them, reads their weights, hands them on.

Functions are looked at as text and never run. The answers are generous: a name stands for whatever it is ever given.
"""

import ast
import inspect
import linecache
import re
import sys
import types
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

# A path is what stands behind `self`, the names of children: "*" is any child or none, "**" any number of them.
Path = tuple[str, ...]
Found = dict[Path, set[str]]  # of each path: whether it is "read", "called", "handed" on, or "asked" about

# What can be asked of a weight without computing with it.
_METADATA = re.compile(
    "dtype|device|shape|size|n?dim|numel|data_ptr|element_size|requires_grad_?|grad|is_cuda|is_meta|"
    "stride|is_contiguous|is_floating_point|itemsize|nbytes|layout|_is_hf_initialized"
)
_ASKING = frozenset({"isinstance", "hasattr", "type", "id", "callable", "len", "bool"})
_PASSING = frozenset({"list", "tuple", "zip", "enumerate", "reversed", "iter", "next", "sorted", "dict", "filter"})
_ITEMS = frozenset({"items", "values", "children", "named_children", "get", "__iter__", "__getitem__"})
# Methods that make a model what it is: they fill weights, tie them and hand modules out, and compute nothing.
_SETTING_UP = re.compile(
    r"__(?!call__)\w+__|_?(init|initiali[sz]e|reset|tie|untie|set|resize)_\w*|\w*weight_norm|extra_repr|"
    r"get_(input|output|position)_embeddings|get_(en|de)coder|items|keys|values|append|extend|insert|pop"
)
# Modules whose code serves every model and reads no layer by name.
_SERVING = re.compile(
    r"torch\.(?!nn\.modules\.(?!module$)).*|hf_lora\..*|transformers\.(?!models\.|modeling_layers).*|"
    + "|".join(rf"{name}(\..*)?" for name in sys.stdlib_module_names - {"__main__", "builtins"})
)


def text_of(module: str) -> str | None:
    """Return the source of a Python module, None where it cannot be had."""
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return None


def modules_of(cls: type) -> set[str]:
    """Return the Python modules that a class and its bases are written in, but those that serve every model."""
    return {base.__module__ for base in cls.__mro__ if base is not object and not _SERVING.fullmatch(base.__module__)}


@cache
def flags_of(cls: type, path: Path) -> frozenset[str]:
    """Return how the code of a class uses what stands at a path below `self`; "0" stands for every number.

    "read": its weight; "called"; "handed": on to somebody; "asked": anything else.
    """
    return _at(_uses_of(_functions_of(cls)), path)


def flags_in(function: Any, path: Path) -> frozenset[str]:
    """Return how a function uses what stands at a path below its first argument."""
    return _at(_uses_of.__wrapped__(tuple(_functions([function]))), path)


@cache
def methods_of(cls: type) -> tuple[ast.FunctionDef, ...]:
    """Return the parsed methods of a class and of those it inherits from, but for those that set it up."""
    codes = [f.__code__ for f, _ in _functions_of(cls) if not _SETTING_UP.fullmatch(f.__name__)]
    found = (_parsed(code.co_filename, False).get(code.co_firstlineno) for code in codes)
    return tuple(node for node in found if isinstance(node, ast.FunctionDef))


def parents_in(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    """Return the node above each node of a tree."""
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def _functions_of(cls: type) -> tuple[tuple[types.FunctionType, bool], ...]:
    bases = [base for base in cls.__mro__ if base is not object and not _SERVING.fullmatch(base.__module__)]
    found = dict.fromkeys(each for base in bases for each in _functions(vars(base).values()))
    return tuple(each for each in found if not _SERVING.fullmatch(each[0].__module__ or ""))


def _at(found: Found, path: Path) -> frozenset[str]:
    return frozenset(flag for pattern, flags in found.items() if _matches(pattern, path) for flag in flags)


def _matches(pattern: Path, path: Path) -> bool:
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_matches(rest, path[i:]) for i in range(len(path) + 1))
    if first == "*" and _matches(rest, path):
        return True
    return bool(path) and first in ("*", path[0]) and _matches(rest, path[1:])


def _functions(values: Iterable[Any]) -> Iterator[tuple[types.FunctionType, bool]]:
    """Yield the functions among the values of a class, also behind decorators, and whether they begin with `self`."""
    for value in values:
        inside = (getattr(value, name, None) for name in ("fget", "func", "__func__"))
        for each in filter(callable, (*inside, value)):
            if isinstance(found := inspect.unwrap(each), types.FunctionType):
                yield found, not isinstance(value, staticmethod)


@cache
def _uses_of(functions: tuple[tuple[types.FunctionType, bool], ...]) -> Found:
    """Return how functions, and those that they call by name, use what is below their first argument."""
    found: Found = {}
    waiting, seen = list(functions), {function for function, _ in functions}
    while waiting:
        function, is_method = waiting.pop()
        code = function.__code__
        node = _parsed(code.co_filename, code.co_name == "<lambda>").get(code.co_firstlineno)
        if node is None:
            _note_names(code, found)
            continue
        nodes: list[ast.AST] = [node]
        if _SETTING_UP.fullmatch(function.__name__):
            nodes = [n for n in ast.walk(node) if isinstance(n, ast.Lambda | ast.FunctionDef) and n is not node]
        for each in nodes:
            scan = _Scan(each, code.co_varnames[: min(code.co_argcount, 1)] if is_method else (), found)
            helpers = [helper for helper in _called_by_name(scan.nodes, _names(function)) if helper not in seen]
            seen.update(helpers)
            waiting += [(helper, False) for helper in helpers]
    return found


@cache
def _parsed(file: str, lambdas: bool) -> dict[int, ast.AST]:
    """Return the functions (or the lambdas) of a file or a notebook's cell by the line that they begin in."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    if lambdas:
        return {node.lineno: node for node in ast.walk(tree) if isinstance(node, ast.Lambda)}
    found = (node for node in _statements(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {min([node.lineno, *(each.lineno for each in node.decorator_list)]): node for node in found}


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from _statements(child)


def _note_names(code: types.CodeType, found: Found) -> None:
    """Note of code without source: where it names a weight, it may read the weight of whatever it names."""
    codes = [code]
    for each in codes:
        codes += [constant for constant in each.co_consts if isinstance(constant, types.CodeType)]
    names = {name for each in codes for name in each.co_names}
    if "weight" in names and not _SETTING_UP.fullmatch(code.co_name):
        for name in names - {"weight"}:
            found.setdefault(("**", name, "*"), set()).add("handed")


def _names(function: types.FunctionType) -> Mapping[str, Any]:
    """Return what stands behind the names that a function uses."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return ChainMap(
        {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}, function.__globals__
    )


def _called_by_name(nodes: list[ast.AST], names: Mapping[str, Any]) -> Iterator[types.FunctionType]:
    """Yield the functions that code calls by their names, of its own module or of another."""
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id=name)):
                helper = names.get(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
                helper = getattr(names[owner], name, None) if isinstance(names.get(owner), types.ModuleType) else None
            case _:
                continue
        helper = inspect.unwrap(helper) if callable(helper) else None
        if isinstance(helper, types.FunctionType) and not _SERVING.fullmatch(helper.__module__):
            package = helper.__module__.partition(".")[0]
            if package == names["__name__"].partition(".")[0] or "site-packages" not in helper.__code__.co_filename:
                yield helper


class _Scan:
    """What one function does with what is below `self`, added to `found`."""

    def __init__(self, function: ast.AST, itself: tuple[str, ...], found: Found) -> None:
        self._found, self.nodes, self._parents = found, [*ast.walk(function)], parents_in(function)
        self._names: dict[str, set[Path]] = {name: {()} for name in itself}
        for _ in range(2):  # an alias may be made of one that stands further down
            for node in self.nodes:
                self._name(node)
        for node in self.nodes:
            if isinstance(node, ast.Attribute | ast.Name | ast.Subscript | ast.Call):
                above = self._parents.get(node)
                if not (isinstance(above, ast.Attribute | ast.Subscript) and above.value is node):
                    for path in self._paths(node):
                        self._note(path, node)

    def _name(self, node: ast.AST) -> None:
        """Give the names that a statement sets the paths of what it gives them."""
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value):
                targets = [target]
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                self._name_items(target, value)
                return
            case _:
                return
        for target in targets:
            self._call(target, self._paths(value))

    def _name_items(self, target: ast.expr, items: ast.expr) -> None:
        """Give the names that a loop sets the paths of what it goes over."""
        match target, items:
            case ast.Tuple(elts=[_, inner]), ast.Call(func=ast.Name(id="enumerate"), args=[value, *_]):
                self._name_items(inner, value)
            case ast.Tuple(elts=[_, inner]), ast.Call(
                func=ast.Attribute(attr="items" | "named_children" | "named_modules")
            ):
                self._call(inner, self._paths(items))
            case ast.Tuple(elts=names), ast.Call(func=ast.Name(id="zip"), args=parts) if len(names) == len(parts):
                for name, part in zip(names, parts, strict=True):
                    self._name_items(name, part)
            case _:
                self._call(target, {(*path, "*") for path in self._paths(items)})

    def _call(self, target: ast.expr, paths: set[Path]) -> None:
        paths = {path for path in paths if path[:1] != ("**",) or any(part.strip("*") for part in path)}
        for name in ast.walk(target):
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and paths:
                self._names.setdefault(name.id, set()).update(paths)

    def _paths(self, node: ast.AST) -> set[Path]:
        """Return the paths of the modules that an expression may stand for."""
        match node:
            case ast.Name(id=name):
                return self._names.get(name, {("**",)})
            case ast.Attribute(value=value, attr="_modules"):
                return self._paths(value)
            case ast.Attribute(value=value, attr=name):
                return {(*path, name) for path in self._paths(value)}
            case ast.Subscript(value=value):
                return {(*path, "*") for path in self._paths(value)}
            case ast.Call(func=ast.Name(id="getattr"), args=[value, name, *_]):
                label = str(name.value) if isinstance(name, ast.Constant) else "*"
                return {(*path, label) for path in self._paths(value)}
            case ast.Call(func=ast.Attribute(value=value, attr="get_submodule"), args=[ast.Constant(value=str(name))]):
                return {(*path, *name.split(".")) for path in self._paths(value)}
            case ast.Call(func=ast.Attribute(value=value, attr="modules" | "named_modules")):
                return {(*path, "*", "**") for path in self._paths(value)}
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in _ITEMS:
                return {(*path, "*") for path in self._paths(value)}
            case ast.Call(func=ast.Name(id=name), args=parts) if name in _PASSING:
                return {(*path, "*") for part in parts for path in self._paths(part)}
            case ast.Call():
                return {("**",)}
            case ast.NamedExpr(value=value) | ast.Starred(value=value) | ast.Await(value=value):
                return self._paths(value)
            case ast.IfExp(body=first, orelse=second):
                return self._paths(first) | self._paths(second)
            case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Dict(values=parts):
                return {path for part in parts for path in self._paths(part)}
        return {("**",)}

    def _note(self, path: Path, node: ast.expr) -> None:
        """Note what is done with the module at a path, or with a weight of it."""
        if "weight" in path:
            at = path.index("weight")
            layer, rest = path[:at], [part for part in path[at + 1 :] if part != "data"]
            if layer[:1] != ("**",) or any(part not in ("*", "**") for part in layer):
                computes = not (rest and _METADATA.fullmatch(rest[0])) and self._computes(node)
                self._add(layer, "read" if computes else "asked")
        elif path[:1] == ("**",) or not path:
            return  # nothing is known of it, or it is the module itself
        else:
            self._add(*self._used(path, node))
        for i in range(1, len(path)) if path[0] != "**" else ():
            self._add(path[:i], "asked")

    def _used(self, path: Path, node: ast.expr) -> tuple[Path, str]:
        below: ast.AST | None = node
        above = self._parents.get(node)
        if path[-1] in ("forward", "__call__"):
            return path[:-1], "called"
        while isinstance(above, ast.IfExp | ast.BoolOp | ast.Tuple | ast.List | ast.Dict | ast.Starred | ast.Call):
            if isinstance(above, ast.Call):
                if above.func is below:
                    return path, "called"
                if not isinstance(above.func, ast.Name) or above.func.id not in _PASSING:
                    break
            above, below = self._parents.get(above), above
        given = isinstance(above, ast.Call | ast.keyword | ast.Return | ast.Yield | ast.YieldFrom | ast.Lambda)
        return ((*path, "*"), "handed") if given and not _is_asking(above) else (path, "asked")

    def _computes(self, weight: ast.expr) -> bool:
        """Tell whether a mention of a weight uses its numbers, and does not tie it to another."""
        above = self._parents.get(weight)
        if isinstance(getattr(weight, "ctx", None), ast.Store | ast.Del) or _is_asking(above):
            return False
        targets = above.targets if isinstance(above, ast.Assign) else ()
        return not any(isinstance(target, ast.Attribute) and target.attr == "weight" for target in targets)

    def _add(self, path: Path, flag: str) -> None:
        if path:
            path = tuple("0" if part.isdecimal() else part for part in path)
            self._found.setdefault(path, set()).add(flag)


def _is_asking(node: ast.AST | None) -> bool:
    """Tell whether the node is a call such as `isinstance(...)`, or a comparison with None."""
    match node:
        case ast.Compare(ops=ops):
            return all(isinstance(op, ast.Is | ast.IsNot | ast.In | ast.NotIn) for op in ops)
        case ast.Call(func=ast.Name(id=name)):
            return name in _ASKING
    return False
