"""The low-rank products of an adapter's file, read without a model."""

import torch
from torch import Tensor

from ..config.lora_config import LoRAConfig
from ..errors import AdapterMismatchError, AdapterStateError
from ..variants.adapter import NO_SUM, Product
from ..variants.initial import INITS
from ..variants.table import formula_of
from .contents import Contents
from .keys import plain_keys, split_key


def products_of(contents: Contents) -> dict[str, Product]:
    """Return what an adapter adds to each layer's matrix, or stack of matrices, by the layer's name in the file.

    Raises AdapterStateError where only a model says what it adds, AdapterMismatchError where a layer's factors are no
    pair of the rank that its config gives it.
    """
    config, where = contents.config, contents.source.name
    if formula_of(config).adapter.exclusive:
        raise AdapterStateError(f"{where} is {formula_of(config).title}, {NO_SUM}.")
    if contents.fit is not None or INITS[config.init_lora_weights].moves_base or config.has_old_experts:
        raise AdapterStateError(
            f"{where}: what it adds depends on the model (its start, {config.init_lora_weights!r}, or its layout). "
            "Load it onto its base, and name the adapters there: compare('a', 'b', model=model)."
        )
    factors: dict[str, dict[str, Tensor]] = {}
    for key, plain in plain_keys(contents.tensors).items():
        path, _, attribute = split_key(plain)
        if attribute in ("lora_A", "lora_B"):
            factors.setdefault(path, {})[attribute] = contents.tensors[key]
    return {path: _product(path, pair, config) for path, pair in factors.items()}


def _product(path: str, pair: dict[str, Tensor], config: LoRAConfig) -> Product:
    """Return a layer's product: of a convolution its matrix, of one in groups or of experts a stack."""
    a, b, r = pair.get("lora_A", torch.empty(0)), pair.get("lora_B", torch.empty(0)), config.rank_of(path)
    if min(a.ndim, b.ndim) >= 2:
        (rows, columns), scaling = (len(a), b.shape[1]), config.scaling_of(path)
        a, b = a.flatten(1), b.flatten(1)
        if rows == columns == r:
            return Product(a, b, scaling)
        if rows == r and columns and rows % columns == 0 and len(b) % (rows // columns) == 0:
            groups = rows // columns
            return Product(a.reshape(groups, columns, -1), b.reshape(groups, -1, columns), scaling)
        if rows == columns and rows % r == 0:  # experts: B has the ranks first
            stack = a.reshape(rows // r, r, -1), b.reshape(len(b), r, -1).permute(2, 0, 1)
            return Product(*stack, scaling)
    raise AdapterMismatchError(
        f"{path}: its factors, A {tuple(a.shape)} and B {tuple(b.shape)}, are no pair of the rank {r} in its config."
    )
