"""What one function does with the modules below `self`: which it calls, whose weights it reads, which it hands on."""

import ast
import re

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


def parents_in(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    """Return the node above each node of a tree."""
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


class Scan:
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
