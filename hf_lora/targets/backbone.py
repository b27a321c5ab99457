"""The backbone without its heads, its repeated blocks, and every linear layer in them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .attention import Block
from .reads import child_is_called
from .tree import Tree, is_convolution, is_linear, is_stacked
from .words import is_experts, is_head, is_indexer, is_layer, is_router, words


def backbone(tree: Tree) -> nn.Module:
    """Return the base model inside a model with a head, by the name Transformers gives it; else the model itself."""
    prefix = getattr(tree.root, "base_model_prefix", "")
    base = tree.root._modules.get(prefix) if isinstance(prefix, str) and prefix else None
    return tree.root if base is None else base


def block_linears(tree: Tree, root: nn.Module, blocks: list[Block], only_called: bool = False) -> set[str]:
    """Return the names of the linear layers and raw expert parameters in the repeated blocks: no head, no router.

    only_called: leave out layers that their parent only reads and never calls.
    """
    layers = _layers(tree, root, blocks)
    found = {name for layer in layers for name in _linears(tree, layer, only_called)}
    found |= {name for block in blocks if not block.refused for name in block.every}
    if found:
        return found
    found = {name for layer in layers for name in _convolutions(tree, layer)}
    return found or set(_linears(tree, root, only_called)) or set(_convolutions(tree, root))


def _layers(tree: Tree, root: nn.Module, blocks: list[Block]) -> list[nn.Module]:
    """Return the repeated blocks: the items of lists with attention in an item, or of a layer's class.

    Where a model has neither attention nor such classes, every list counts.
    """
    attentions = {block.module for block in blocks}
    holders = {holder for attention in attentions for holder in _above(tree, attention)}
    lists: list[nn.Module] = [m for m in _open(tree, root) if isinstance(m, (nn.ModuleList, nn.Sequential))]
    stacks = [m for m in lists if any(item in holders or _is_layer(item) for _, item in tree.children(m))]
    if not stacks and not attentions:
        stacks = lists
    bare = [stack for stack in stacks if any(item in attentions for _, item in tree.children(stack))]
    stacks += [twin for stack in bare for twin in _twins(tree, stack)]
    layers = [item for stack in stacks for _, item in tree.children(stack) if next(item.children(), None) is not None]
    inside = {module for layer in layers for module in tree.below(layer)}
    lone = [_surrounding(tree, root, block) for block in blocks if block.module not in inside]
    return layers + [layer for layer in lone if layer is not None]


def _is_layer(item: nn.Module) -> bool:
    return is_layer(type(item).__name__)


def _above(tree: Tree, module: nn.Module) -> Iterator[nn.Module]:
    current: nn.Module | None = module
    while current is not None:
        yield current
        current = tree.parents.get(current)


def _twins(tree: Tree, stack: nn.Module) -> Iterator[nn.Module]:
    """Yield the lists as long as a stack of bare attentions, beside it: XLM keeps its MLPs in a list of their own."""
    parent = tree.parents.get(stack)
    for label, child in tree.children(parent) if parent is not None else ():
        if child is stack or not isinstance(child, nn.ModuleList) or is_head(label):
            continue
        if len(child) == len(list(stack.children())):
            yield child


def _surrounding(tree: Tree, root: nn.Module, block: Block) -> nn.Module | None:
    """Return the layer around an attention that stands in no list: the first module above with more linear layers."""
    own = {*_linears(tree, block.module, False), *block.every}
    for above in _above(tree, block.module):
        if above is root or any(isinstance(m, (nn.ModuleList, nn.Sequential)) for m in tree.below(above)):
            return None
        if set(_linears(tree, above, False)) - own:
            return above
    return None


def _open(tree: Tree, module: nn.Module) -> Iterator[nn.Module]:
    """Yield the module and what is below it, but no head, no router, no indexer, and nothing inside of one."""
    yield module
    if isinstance(module, nn.MultiheadAttention):
        return
    labels = [label for label, _ in tree.children(module)]
    mixture = any(is_experts(label) for label in labels)
    for label, child in tree.children(module):
        closed = is_head(label) or is_router(label) or is_indexer(label)
        gate = words(label)[-1:] == ("gate",) and (mixture or _is_scalar(child))
        if not closed and not gate:
            yield from _open(tree, child)


def _is_scalar(module: nn.Module) -> bool:
    return is_linear(module) and getattr(module, "out_features", 0) == 1


def _linears(tree: Tree, layer: nn.Module, only_called: bool) -> Iterator[str]:
    """Yield the names of a layer's linear maps."""
    for module in _open(tree, layer):
        name = tree.names[module]
        if isinstance(module, nn.MultiheadAttention):
            yield name
        elif is_linear(module):
            parent = tree.parents.get(module)
            if not only_called or parent is None or child_is_called(parent, name.rpartition(".")[2]):
                yield name
        elif is_stacked(module):
            yield f"{name}.weight"
        elif is_experts(type(module).__name__) or is_experts(name.rpartition(".")[2]):
            yield from _expert_parameters(module, name)


def _expert_parameters(module: nn.Module, name: str) -> Iterator[str]:
    for label, parameter in module.named_parameters(recurse=False):
        if parameter.dim() >= 2 and "bias" not in words(label):
            yield f"{name}.{label}"


def _convolutions(tree: Tree, layer: nn.Module) -> Iterator[str]:
    """Yield the names of a layer's convolutions over all channels."""
    for module in _open(tree, layer):
        if is_convolution(module) and getattr(module, "groups", 1) == 1:
            yield tree.names[module]
