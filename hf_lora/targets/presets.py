"""From a preset's name to the full names of what it adapts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from ..config.keys import PRESETS, Preset
from ..errors import TargetError
from ..wording import numberless
from .attention import Block, find_blocks
from .backbone import backbone, block_linears
from .tree import Tree, is_convolution, is_linear


def preset_targets(model: nn.Module, preset: Preset) -> tuple[str, ...]:
    """Return the full names of the modules (and raw expert parameters) that `preset` adapts, in model order.

    "auto": query and value projections, or the fused qkv. "attention": every projection of every attention.
    "all-linear": every linear layer of the repeated blocks, experts included: no head, no router, no indexer.
    A model without attention has the linear layers of its blocks (or its convolutions) under "auto" too.
    The model is only looked at; it may be on the meta device, and may have adapters already.

    Raises TargetError for an unknown preset, for a model with nothing to adapt, and for attention that no adapter
    fits; it names the modules.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
    >>> preset_targets(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), "all-linear")
    ('layers.0.self_attn', 'layers.0.linear1', 'layers.0.linear2')
    """
    if preset not in PRESETS:
        raise TargetError(f"{preset!r} is no preset. Use one of {', '.join(map(repr, PRESETS))}, or name modules.")
    tree = Tree(model)
    root = backbone(tree)
    blocks = find_blocks(tree, root)
    if (
        not blocks and root is not model
    ):  # attention only outside the base model: a text recogniser on a convolutional base
        blocks = find_blocks(tree, model)
        root = model if blocks else root
    if preset == "all-linear":
        found = block_linears(tree, root, blocks)
    elif blocks:
        _refuse(model, blocks)
        found = {name for block in blocks for name in (block.query_value if preset == "auto" else block.every)}
    elif preset == "auto":
        found = block_linears(tree, root, blocks, only_called=True)
    else:
        found = set()
    if not found:
        raise _nothing(tree, preset)
    return _in_model_order(tree, found)


def _in_model_order(tree: Tree, found: Iterable[str]) -> tuple[str, ...]:
    """Return the names in the order of `named_modules`, parameters after their module's name."""
    order = {name: index for index, name in enumerate(tree.modules)}

    def key(name: str) -> tuple[int, int]:
        if name in order:
            return order[name], 0
        owner, _, parameter = name.rpartition(".")
        return order[owner], 1 + list(tree.modules[owner]._parameters).index(parameter)

    return tuple(sorted(found, key=key))


def _refuse(model: nn.Module, blocks: list[Block]) -> None:
    """Raise if any attention holds its projections in a form no adapter fits."""
    refused = [name for block in blocks for name in block.refused]
    if refused:
        raise TargetError(
            f"{type(model).__name__} keeps attention projections in a form that no adapter fits: "
            f"{_patterns(refused)}. Use 'all-linear', or name other modules in target_modules."
        )


def _nothing(tree: Tree, preset: str) -> TargetError:
    kinds = {
        name.rpartition(".")[2] for name, m in tree.modules.items() if name and (is_linear(m) or is_convolution(m))
    }
    names = f"Its layers end in {', '.join(sorted(kinds))}; name some of them" if kinds else "It has no linear layer"
    instead = ", or use 'auto' or 'all-linear'" if kinds and preset == "attention" else ""
    return TargetError(f"{preset!r} matches no layer of {type(tree.root).__name__}. {names}{instead}.")


def _patterns(names: Iterable[str]) -> str:
    counts = Counter(numberless(name) for name in names)
    return ", ".join(f"{pattern} ({count})" for pattern, count in counts.items())
