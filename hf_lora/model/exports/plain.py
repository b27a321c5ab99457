"""An adapter as plain LoRA, which every engine reads: one rank, lora_alpha = r, nothing that only the base tells.

    W + s (B A - B0 A0) = W + [s B, -s B0] [A; A0]      filled up with zeros to the largest rank

A formula that is no sum of a weight and a product is approximated: its merged weight less the base's, by the largest
singular values.
"""

from dataclasses import replace
from typing import Any

from ...errors import EngineError
from ...formats.contents import Contents
from ...layers.state import CHANGES
from ...variants.initial import INITS
from ...variants.table import formula_of
from ..approximating import Approximation
from ..attaching import put_on
from ..bases import load_base_of
from ..combining import combined
from ..creating import add_saved, enter
from ..extracting import extract
from ..lora_model import LoRAModel
from ..recipes import Request
from ..selecting import remove, select
from ..settings import is_quantised, rows_of_table
from ..truncating import truncate
from ..vocabulary import make_room

NAME = "default"


def plain_model(
    files: Contents, base_model: str | None = None, rank: int | None = None
) -> tuple[Any, Approximation | None]:
    """Return a LoRAModel whose only adapter is a file's as plain LoRA, and what a rank loses of it, layer by layer.

    Where the adapter needs no numbers of the base, the base is hollow: its config alone is read. rank: the most that
    the result may have; None for what is exact.
    Raises EngineError where only a rank could make it plain, and what loading raises.
    """
    formula = formula_of(files.config)
    is_sum = not formula.adapter.exclusive
    if rank is None and not is_sum:
        raise EngineError(
            f"{files.source.name}: {formula.title} adds no product to the weight, so it is no plain LoRA. Give a rank "
            "to approximate it by (--rank 64), or merge it into its base (hf-lora merge)."
        )
    lost: Approximation | None = None
    if is_sum:
        start = INITS[files.config.init_lora_weights]
        model = loaded(files, base_model, weights=formula.reads_base or start.computed_again)
    else:
        lost = extract(_base(files, base_model), loaded(files, base_model).merge_and_unload(), rank)
        model = lost.model
    state = model._lora
    origin = state.records[NAME].origin  # what its file says of its base, which a hollow one cannot
    if rank is not None and is_sum:
        lost = truncate(model, rank)
    with CHANGES:
        groups, record = combined(model, state, Request((NAME,), (1.0,), "cat"))
        remove(state, NAME)
        put_on(model, state, NAME, groups, replace(record, origin=origin))
        select(state, NAME)
    return model, lost


def _base(files: Contents, base_model: str | None, weights: bool = True) -> Any:
    """Return an adapter's base in float, with the vocabulary that it was trained with."""
    quantised: dict[str, Any] = {"quantization_config": None} if is_quantised(files.notes) else {}
    model = load_base_of(files, base_model, None, quantised, weights)
    make_room(model, files.config, files.tensors, rows_of_table(files.notes))
    return model


def loaded(files: Contents, base_model: str | None = None, weights: bool = True) -> Any:
    """Return a LoRAModel of an adapter on its base in float. weights: whether the base's are read and compared."""
    base = _base(files, base_model, weights)
    enter(LoRAModel, base)
    add_saved(base, files, NAME, is_trainable=False, check_base=weights)
    return base
