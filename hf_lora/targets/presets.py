"""From a preset's name to the full names of what it adapts."""

from __future__ import annotations

from collections import Counter

from torch import nn

from ..config.keys import Preset
from ..errors import TargetError, full_name, numberless, some
from .attention import find_blocks
from .backbone import backbone, block_linears
from .tree import Tree, is_convolution, is_linear


def preset_targets(model: nn.Module, preset: Preset) -> tuple[str, ...]:
    """Return the full names of the modules (and raw expert parameters) that `preset` adapts, in model order.

    "auto": query and value projections, or the fused qkv. "attention": every projection of every attention.
    "all-linear": every linear layer of the repeated blocks, experts included: no head, no router, no indexer.
    A model without attention has the linear layers of its blocks (or its convolutions) under "auto" too.
    The model is only looked at; it may be on the meta device, and may have adapters already.

    Raises TargetError for a model with nothing to adapt, and for attention that no adapter fits; it names the modules.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
    >>> preset_targets(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), "all-linear")
    ('layers.0.self_attn', 'layers.0.linear1', 'layers.0.linear2')
    """
    tree = Tree(model)
    root = backbone(tree)
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
        found = block_linears(tree, root, blocks, only_called=preset == "auto")
    else:
        found = {name for block in blocks for name in (block.query_value if preset == "auto" else block.every)}
    if not found:
        raise _nothing(tree, preset)
    ordered = (
        each for name, m in tree.modules.items() for each in (name, *(full_name(name, p) for p in m._parameters))
    )
    return tuple(name for name in ordered if name in found)


def _nothing(tree: Tree, preset: str) -> TargetError:
    found = [name for name, m in tree.modules.items() if name and (is_linear(m) or is_convolution(m))]
    layers = {name.rpartition(".")[2] for name in found}
    names = f"Its layers end in {some(sorted(layers), 20)}; name some of them" if layers else "It has no linear layer"
    instead = ", or use 'auto' or 'all-linear'" if layers and preset == "attention" else ""
    return TargetError(f"{preset!r} matches no layer of {type(tree.root).__name__}. {names}{instead}.")
