"""Finding attention blocks and reading their projections as letters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..wording import full_name
from .tree import Projection, Tree
from .words import is_experts, is_first_factor, is_indexer, is_output, is_side, letters, says_attention, words


@dataclass(frozen=True)
class Block:
    """An attention block.

    module: where it was found; query_value: what `auto` adapts; every: what `attention` adapts;
    refused: the names of projections that no adapter fits.
    """

    module: nn.Module
    query_value: tuple[str, ...]
    every: tuple[str, ...]
    refused: tuple[str, ...] = ()


def find_blocks(tree: Tree, module: nn.Module) -> list[Block]:
    """Return the attention blocks at or below `module`, in model order. A found block is not searched any further."""
    if isinstance(module, nn.MultiheadAttention):
        name = tree.names[module]
        return [Block(module, (name,), (name,))]
    block = _lettered_block(tree, module)
    inner = [
        found
        for label, child in tree.children(module)
        if not is_indexer(label) and (block is None or isinstance(child, nn.MultiheadAttention))
        for found in find_blocks(tree, child)
    ]
    if block is None and not inner:
        block = _fused_block(tree, module) or _parameter_block(tree, module)
    return ([block] if block else []) + inner


def _lettered_block(tree: Tree, module: nn.Module) -> Block | None:
    """Return the block whose projections are named by letters.

    It has query and value, or value and an output, or either letter in a class that says attention.
    """
    projections = tree.projections(module)
    lettered = [p for p in projections if letters(p.label)]
    found = {letter for p in lettered if not is_side(p.label) for letter in letters(p.label)}
    closed = "q" in found or any(is_output(p.label) for p in projections)
    attentive = says_attention(type(module).__name__) and not found.isdisjoint("qv")
    if ("v" in found and closed) or attentive:
        return _block(tree, module, lettered)
    return None


def _block(tree: Tree, module: nn.Module, lettered: list[Projection]) -> Block:
    projections = tree.projections(module)
    query, value = _made(lettered, "q"), _made(lettered, "v") or _made(lettered, "k")
    if not _made(lettered, "v") and not _made(lettered, "k"):
        value = _widening(projections, lettered)
    core = [p for p in lettered if not is_side(p.label)]
    if not query:
        stand_ins = _stand_ins(projections, value)
        query = stand_ins[:1] or _query_experts(tree, module)
        core += stand_ins
    output = _outputs(tree, module, query + value)
    return _assembled(module, query + value, core + query + value + output)


def _assembled(module: nn.Module, query_value: list[Projection], every: list[Projection]) -> Block:
    return Block(
        module,
        tuple(dict.fromkeys(p.target for p in query_value)),
        tuple(dict.fromkeys(p.target for p in every)),
        tuple(dict.fromkeys(p.target for p in query_value + every if not p.usable)),
    )


def _made(lettered: list[Projection], letter: str) -> list[Projection]:
    """Return the projections that make `letter`: of a low-rank pair the second factor; a gated one if no other does."""
    making = [p for p in lettered if letter in letters(p.label)]
    whole = [p for p in making if not is_first_factor(p.label)] or making
    return [p for p in whole if not is_side(p.label)] or ([] if whole is making else whole)


def _widening(projections: list[Projection], lettered: list[Projection]) -> list[Projection]:
    """Return the projection that makes several letters under no letter's name, as `c_attn` does."""
    free = [p for p in projections if p not in lettered]
    back = {p.fan_out for p in free if is_output(p.label)}
    for p in free:
        whole = p.fan_in > 0 and p.fan_out in (2 * p.fan_in, 3 * p.fan_in)
        if whole or (p.fan_out > p.fan_in > 0 and p.fan_in in back):
            return [p]
    return []


def _stand_ins(projections: list[Projection], value: list[Projection]) -> list[Projection]:
    """Return the projections as wide as a value that have no other part: query, and key, under other names."""
    return [
        p
        for p in projections
        if not letters(p.label) and not is_side(p.label) and not is_output(p.label)
        if p.fan_out in {v.fan_out for v in value}
    ]


def _query_experts(tree: Tree, module: nn.Module) -> list[Projection]:
    """Return the stack of matrices through which a mixture of attention heads makes its queries."""
    for label, child in tree.children(module):
        if is_experts(label):
            return [p for p in tree.projections(child) if "input" in words(p.label)]
    return []


def _outputs(tree: Tree, module: nn.Module, core: list[Projection]) -> list[Projection]:
    """Return the output projections: in the block, one level further in, or beside it (BERT's `output.dense`)."""
    taken = {p.target for p in core}
    own = [p for p in tree.projections(module) if is_output(p.label) and p.target not in taken]
    if own:
        return own
    for _, child in tree.children(module):
        own += [p for p in tree.projections(child) if is_output(p.label) and p.target not in taken]
    if own:
        return own
    parent = tree.parents.get(module)
    if parent is None or isinstance(parent, (nn.ModuleList, nn.Sequential)):
        return []
    fits = {width for p in core for width in (p.fan_in, p.fan_out)}
    beside = [p for p in tree.projections(parent) if is_output(p.label) and p.fan_in in fits]
    return [p for p in beside if p.target not in taken]


def _fused_block(tree: Tree, module: nn.Module) -> Block | None:
    """Return the block of a class saying attention whose one widening projection makes query, key and value."""
    if not says_attention(type(module).__name__):
        return None
    fused = _widening(tree.projections(module), [])
    return _assembled(module, fused, fused + _outputs(tree, module, fused)) if fused else None


def _parameter_block(tree: Tree, module: nn.Module) -> Block | None:
    """Return the block of a class saying attention that holds query and value as parameters of its own: refused."""
    names = [n for n, p in module.named_parameters(recurse=False) if p.dim() >= 2 and not is_side(n)]
    raw = [n for n in names if letters(n) or is_output(n)]
    made = {letter for n in raw for letter in letters(n)}
    if not says_attention(type(module).__name__) or not {"q", "v"} <= made:
        return None
    return Block(module, (), (), tuple(full_name(tree.names[module], n) for n in raw))
