"""From a preset's name to the full names of what it adapts.

That is attention's projections (`attention.py`), or every linear layer in the repeated blocks of the backbone, which is
the model without its heads.
"""

from collections import Counter
from collections.abc import Iterator

from torch import nn

from ..config.keys import Preset
from ..errors import TargetError, full_name, numberless, some
from .attention import Block, find_blocks
from .reach import unreached
from .tree import Tree, is_convolution, is_linear, is_stacked
from .words import EXPERTS, INDEXER, ROUTER, is_head, is_layer, says, words

_LISTS = (nn.ModuleList, nn.Sequential)


def preset_targets(model: nn.Module, preset: Preset) -> tuple[str, ...]:
    """Return the full names of the modules (and raw expert parameters) that `preset` adapts, in model order.

    "auto": query and value projections, or the fused qkv. "attention": every projection of every attention.
    "all-linear": every linear layer of the repeated blocks, experts included: no head, no router, no indexer.
    None has what the model computes and never takes (`reach.py`).
    A model without attention has the linear layers of its blocks (or its convolutions) under "auto" too.
    The model is only looked at; it may be on the meta device, and may have adapters already.

    Raises TargetError for a model with nothing to adapt, and for attention that no adapter fits; it names the modules.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
    >>> preset_targets(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), "all-linear")
    ('layers.0.self_attn', 'layers.0.linear1', 'layers.0.linear2')
    """
    tree = Tree(model)
    prefix = getattr(model, "base_model_prefix", "")
    base = model._modules.get(prefix) if isinstance(prefix, str) and prefix else None
    root = model if base is None else base
    blocks = find_blocks(tree, root)
    if not blocks and root is not model:  # attention outside the base model alone: a text recogniser's
        blocks = find_blocks(tree, model)
        root = model if blocks else root
    if preset != "all-linear" and (refused := [name for block in blocks for name in block.refused]):
        counts = Counter(numberless(name) for name in refused)
        raise TargetError(
            f"{type(model).__name__} keeps attention projections in a form that no adapter fits: "
            f"{', '.join(f'{name} ({count})' for name, count in counts.items())}. Use 'all-linear', or name other "
            "modules in target_modules."
        )
    if preset == "all-linear" or (preset == "auto" and not blocks):
        found = _block_linears(tree, root, blocks, only_called=preset == "auto")
    else:
        found = {name for block in blocks for name in (block.query_value if preset == "auto" else block.every)}
    if not found:
        raise _nothing(tree, preset)
    ordered = (
        each for name, m in tree.modules.items() for each in (name, *(full_name(name, p) for p in m._parameters))
    )
    idle = tuple(f"{tree.names[module]}." for module in unreached(tree))
    found = {name for name in found if not f"{name}.".startswith(idle)} or found
    return tuple(name for name in ordered if name in found)


def _nothing(tree: Tree, preset: str) -> TargetError:
    found = [name for name, m in tree.modules.items() if name and (is_linear(m) or is_convolution(m))]
    layers = {name.rpartition(".")[2] for name in found}
    names = f"Its layers end in {some(sorted(layers), 20)}; name some of them" if layers else "It has no linear layer"
    instead = ", or use 'auto' or 'all-linear'" if layers and preset == "attention" else ""
    return TargetError(f"{preset!r} matches no layer of {type(tree.root).__name__}. {names}{instead}.")


def _block_linears(tree: Tree, root: nn.Module, blocks: list[Block], only_called: bool = False) -> set[str]:
    """Return the names of the linear layers and raw expert parameters in the repeated blocks: no head, no router."""
    layers = _layers(tree, root, blocks)
    found = {name for layer in layers for name in _linears(tree, layer, only_called)}
    found |= {name for block in blocks if not block.refused for name in block.every}
    found = found or {name for layer in layers for name in _convolutions(tree, layer)}
    return found or set(_linears(tree, root, only_called)) or set(_convolutions(tree, root))


def _layers(tree: Tree, root: nn.Module, blocks: list[Block]) -> list[nn.Module]:
    """Return the repeated blocks: the items of lists with attention in an item, or of a layer's class."""
    # Where a model has neither attention nor such classes, every list counts.
    attentions = {block.module for block in blocks}
    holders = {holder for attention in attentions for holder in tree.above(attention)}
    lists: dict[nn.Module, list[nn.Module]] = {
        m: [item for _, item in tree.children(m)] for m in _open(tree, root) if isinstance(m, _LISTS)
    }
    stacks: list[nn.Module] = [
        m for m, items in lists.items() if any(i in holders or is_layer(type(i).__name__) for i in items)
    ]
    if not stacks and not attentions:
        stacks = [*lists]
    stacks += [twin for stack in stacks if not attentions.isdisjoint(lists[stack]) for twin in _twins(tree, stack)]
    layers = [item for stack in stacks for _, item in tree.children(stack) if next(item.children(), None) is not None]
    inside = {module for layer in layers for module in tree.below(layer)}
    lone = [_surrounding(tree, root, block) for block in blocks if block.module not in inside]
    return layers + [layer for layer in lone if layer is not None]


def _twins(tree: Tree, stack: nn.Module) -> list[nn.Module]:
    """Return the lists as long as a stack of bare attentions, beside it: XLM keeps its MLPs in a list of their own."""
    beside = tree.children(tree.parents[stack]) if stack in tree.parents else ()
    lists = [m for label, m in beside if m is not stack and isinstance(m, nn.ModuleList) and not is_head(label)]
    return [m for m in lists if len(m) == len(list(stack.children()))]


def _surrounding(tree: Tree, root: nn.Module, block: Block) -> nn.Module | None:
    """Return the layer around an attention that stands in no list: the first module above with more linear layers."""
    own = {*_linears(tree, block.module), *block.every}
    for above in tree.above(block.module):
        if above is root or any(isinstance(m, _LISTS) for m in tree.below(above)):
            return None
        if not own.issuperset(_linears(tree, above)):
            return above
    return None


def _open(tree: Tree, module: nn.Module) -> Iterator[nn.Module]:
    """Yield the module and what is below it, but no head, no router, no indexer, and nothing inside of one."""
    yield module
    if isinstance(module, nn.MultiheadAttention):
        return
    is_mixture = any(says(label, EXPERTS) for label, _ in tree.children(module))
    for label, child in tree.children(module):
        is_scalar = is_linear(child) and getattr(child, "out_features", 0) == 1
        is_gate = words(label)[-1:] == ("gate",) and (is_mixture or is_scalar)
        if not (is_gate or is_head(label) or says(label, ROUTER) or says(label, INDEXER)):
            yield from _open(tree, child)


def _linears(tree: Tree, layer: nn.Module, only_called: bool = False) -> Iterator[str]:
    """Yield the names of a layer's linear maps."""
    for module in _open(tree, layer):
        name = tree.names[module]
        label = name.rpartition(".")[2]
        if isinstance(module, nn.MultiheadAttention):
            yield name
        elif is_linear(module):
            if not only_called or tree.uses.of(module).is_called:
                yield name
        elif is_stacked(module):
            yield f"{name}.weight"
        elif says(type(module).__name__, EXPERTS) or says(label, EXPERTS):
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.dim() >= 2 and "bias" not in words(key):
                    yield full_name(name, key)


def _convolutions(tree: Tree, layer: nn.Module) -> Iterator[str]:
    """Yield the names of a layer's convolutions over all channels."""
    for module in _open(tree, layer):
        if is_convolution(module) and getattr(module, "groups", 1) == 1:
            yield tree.names[module]
