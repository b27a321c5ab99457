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

from .scanning import Found, Path, Scan

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
            scan = Scan(each, code.co_varnames[: min(code.co_argcount, 1)] if is_method else (), found)
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
