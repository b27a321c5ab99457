"""Rows that generate together, each by its own adapter; they join and leave between two steps."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

BASE = "__base__"  # whose row no adapter answers


class Batch:
    """The running rows: the names of their adapters, and keys and values of their tokens, padded on the left.

    model: a LoRAModel whose cache is the keys and values of all tokens. Every method computes what each adapter alone
    would, up to the rounding that another batch size changes.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._takes = inspect.signature(model.forward).parameters
        self._device = model.get_input_embeddings().weight.device
        self.clear()

    def clear(self) -> None:
        """Drop all rows."""
        self.names: list[str] = []
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._device)  # (rows, length), 1 where a token is
        self._cache = DynamicCache()

    def join(self, name: str, prompt: list[int]) -> Tensor:
        """Compute a prompt by its adapter, and add its row. Return the next token's logits (1, vocab)."""
        mask, cache = torch.ones(1, len(prompt), dtype=torch.long, device=self._device), DynamicCache()
        logits = self._forward([name], [prompt], mask, cache)
        if self.names:
            length = max(mask.shape[1], self._mask.shape[1])
            mask = torch.cat([F.pad(each, (length - each.shape[1], 0)) for each in (self._mask, mask)])
            joined = DynamicCache()
            for i, layers in enumerate(zip(self._cache.layers, cache.layers, strict=True)):
                keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
                joined.update(_joined(keys, length), _joined(values, length), i)
            cache = joined
        self.names, self._mask, self._cache = [*self.names, name], mask, cache
        return logits

    def step(self, tokens: list[int]) -> Tensor:
        """Add a token to every row, in the order of `names`. Return the next ones' logits (rows, vocab)."""
        self._mask = F.pad(self._mask, (0, 1), value=1)
        return self._forward(self.names, [[token] for token in tokens], self._mask, self._cache)

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but some, by their places, and the columns that are padding in all that stay."""
        if not rows:
            return self.clear()
        index = torch.tensor(rows, device=self._device)
        self._cache.batch_select_indices(index)
        self._mask, self.names = self._mask[index], [self.names[i] for i in rows]
        first = int(self._mask.argmax(1).min())
        self._mask = self._mask[:, first:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[..., first:, :], layer.values[..., first:, :]
        return None

    @torch.no_grad()
    def _forward(self, names: list[str], tokens: list[list[int]], mask: Tensor, cache: DynamicCache) -> Tensor:
        ids = torch.tensor(tokens, device=self._device)
        more = {
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            "logits_to_keep": 1,  # else a prompt's logits are all made
        }
        more = {key: value for key, value in more.items() if key in self._takes}
        output = self.model(
            ids, attention_mask=mask, past_key_values=cache, use_cache=True, adapter_names=names, **more
        )  # fmt: skip
        return output.logits[:, -1]


def _joined(rows: list[Tensor], length: int) -> Tensor:
    """Return keys or values (rows, heads, tokens, size) as one tensor, with zeros on the left up to a length."""
    return torch.cat([F.pad(each, (0, 0, length - each.shape[-2], 0)) for each in rows])


@torch.no_grad()
def check(model: Any) -> None:
    """Raise ValueError for a model whose rows can't be padded and joined: it is tried."""
    batch, tokens = Batch(model), [1, 2, 3, 2, 1, 3]
    try:
        for prompt in (tokens[:4], tokens, tokens[:2]):
            batch.join(BASE, prompt)
        batch.step([1, 2, 3])
        batch.keep([0, 2])
        got = batch.step([2, 1])[1]
        whole = torch.tensor([[*tokens[:2], 3, 1]], device=got.device)
        want = model(whole, use_cache=False, adapter_names=[BASE]).logits[0, -1]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{type(model).__name__} keeps no keys and values that rows can share: {error}") from error
    if not (got - want).abs().max() <= torch.finfo(got.dtype).eps ** 0.5 * want.abs().max():
        raise ValueError(f"{type(model).__name__} computes something else where rows are padded and joined.")
