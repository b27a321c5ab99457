"""Finding attention blocks and reading their projections as letters."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import full_name
from .tree import Projection, Tree
from .words import EXPERTS, FIRST_FACTOR, INDEXER, SIDE, is_output, letters, says, says_attention, words


@dataclass(frozen=True)
class Block:
    """An attention block.

    module: where it was found; query_value: what `auto` adapts; every: what `attention` adapts;
    refused: the names of projections that no adapter fits.
    """

    module: nn.Module
    query_value: Sequence[str]
    every: Sequence[str]
    refused: Sequence[str] = ()


def find_blocks(tree: Tree, module: nn.Module) -> list[Block]:
    """Return the attention blocks at or below `module`, in model order. A found block is not searched any further."""
    if isinstance(module, nn.MultiheadAttention):
        name = tree.names[module]
        return [Block(module, (name,), (name,))]
    block = _lettered_block(tree, module)
    inner = [
        found
        for label, child in tree.children(module)
        if not says(label, INDEXER) and (block is None or isinstance(child, nn.MultiheadAttention))
        for found in find_blocks(tree, child)
    ]
    if block is None and not inner and says_attention(type(module).__name__):
        block = _fused_block(tree, module) or _parameter_block(tree, module)
    return ([block] if block else []) + inner


def _lettered_block(tree: Tree, module: nn.Module) -> Block | None:
    """Return the block whose projections are named by letters."""
    # It has query and value, or value and an output, or either letter in a class that says attention.
    projections = tree.projections(module)
    lettered = [p for p in projections if letters(p.label)]
    core = [p for p in lettered if not says(p.label, SIDE)]
    found = {letter for p in core for letter in letters(p.label)}
    closed = "q" in found or any(is_output(p.label) for p in projections)
    if not ("v" in found and closed) and not (says_attention(type(module).__name__) and found & {*"qv"}):
        return None
    query, value = _made(lettered, "q"), _made(lettered, "v") or _made(lettered, "k")
    value = value or _widening(projections, lettered)
    if not query:
        stand_ins = _stand_ins(projections, value)
        query = stand_ins[:1] or _query_experts(tree, module)
        core += stand_ins
    output = _outputs(tree, module, query + value)
    return _assembled(module, query + value, core + query + value + output)


def _assembled(module: nn.Module, query_value: list[Projection], every: list[Projection]) -> Block:
    refused = [p for p in query_value + every if not p.usable]
    return Block(module, *(tuple(dict.fromkeys(p.target for p in part)) for part in (query_value, every, refused)))


def _made(lettered: list[Projection], letter: str) -> list[Projection]:
    """Return the projections that make `letter`: of a low-rank pair the second factor; a gated one if no other does."""
    making = [p for p in lettered if letter in letters(p.label)]
    whole = [p for p in making if not says(p.label, FIRST_FACTOR)] or making
    return [p for p in whole if not says(p.label, SIDE)] or ([] if whole is making else whole)


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
    free = [p for p in projections if not (letters(p.label) or says(p.label, SIDE) or is_output(p.label))]
    return [p for p in free if p.fan_out in {v.fan_out for v in value}]


def _query_experts(tree: Tree, module: nn.Module) -> list[Projection]:
    """Return the stack of matrices through which a mixture of attention heads makes its queries."""
    experts = next((child for label, child in tree.children(module) if says(label, EXPERTS)), None)
    return [] if experts is None else [p for p in tree.projections(experts) if "input" in words(p.label)]


def _outputs(tree: Tree, module: nn.Module, core: list[Projection]) -> list[Projection]:
    """Return the output projections: in the block, one level further in, or beside it (BERT's `output.dense`)."""

    def inside(*holders: nn.Module) -> list[Projection]:
        found = [p for holder in holders for p in tree.projections(holder) if is_output(p.label)]
        return [p for p in found if p.target not in {c.target for c in core}]

    own = inside(module) or inside(*(child for _, child in tree.children(module)))
    parent = tree.parents.get(module)
    if own or parent is None or isinstance(parent, (nn.ModuleList, nn.Sequential)):
        return own
    return [p for p in inside(parent) if p.fan_in in {width for c in core for width in (c.fan_in, c.fan_out)}]


def _fused_block(tree: Tree, module: nn.Module) -> Block | None:
    """Return the block whose one widening projection makes query, key and value."""
    fused = _widening(tree.projections(module), [])
    return _assembled(module, fused, fused + _outputs(tree, module, fused)) if fused else None


def _parameter_block(tree: Tree, module: nn.Module) -> Block | None:
    """Return the block that holds query and value as parameters of its own: refused."""
    names = [n for n, p in module.named_parameters(recurse=False) if p.dim() >= 2 and not says(n, SIDE)]
    raw = [n for n in names if letters(n) or is_output(n)]
    if not {"q", "v"} <= {letter for n in raw for letter in letters(n)}:
        return None
    return Block(module, (), (), [full_name(tree.names[module], n) for n in raw])
