"""Which positions of a batch count where the inputs of layers are looked at: padding does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_NO_LABEL = -100  # of padding, in the labels that Transformers' losses take


class Positions:
    """The positions of a batch that count for a layer, which are others in an encoder than in a decoder.

    The decoder's are those that decoder_attention_mask attends, else those with a label; without either it is given the
    encoder's text (BART's classifier). Layers that read the encoder's output have the encoder's. label: positions of
    this label do not count; None where labels say nothing but where padding is.
    """

    def __init__(self, model: Any, label: int | None = None) -> None:
        two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        decoder = model.get_decoder() if two and hasattr(model, "get_decoder") else None
        self.decoder = None if decoder is model else decoder
        self.label = label
        self.mask: Tensor | None = None
        self.of_encoder: Tensor | None = None
        self.of_decoder: Tensor | None = None
        self.memory: Any = None  # what the decoder reads of the encoder

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Follow where the model goes from its encoder to its decoder."""
        enter, decoder = self._enter_decoder, self.decoder
        hook = None if decoder is None else decoder.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()
            self.memory = None

    def begin(self, batch: Any) -> None:
        """Note which positions of a batch count: those that are attended, and of labelled ones those with a label."""
        self.memory, given = None, batch if isinstance(batch, Mapping) else {}
        attended, labels = _mask(given, "attention_mask"), given.get("labels")
        labels = labels if isinstance(labels, Tensor) and labels.ndim == 2 else None
        labelled = None if labels is None or self.label is None else labels != self.label
        if self.decoder is None:
            self.mask = _both((attended, labelled))
            return
        self.mask = self.of_encoder = attended
        own = _mask(given, "decoder_attention_mask")
        if own is None and labels is not None:
            own = labels != _NO_LABEL
        elif own is None and not {"decoder_input_ids", "decoder_inputs_embeds"} & given.keys():
            own = attended
        self.of_decoder = _both((own, labelled))

    def _enter_decoder(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.mask, self.memory = self.of_decoder, kwargs.get("encoder_hidden_states")

    def rows(self, x: Tensor) -> Tensor:
        """Return a layer's inputs at the positions that count, (n, in), of its inputs (..., in)."""
        mask = self.mask if self.memory is None or x is not self.memory else self.of_encoder
        if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape:
            return x[mask.to(x.device)]
        return x.reshape(-1, x.shape[-1])


def _mask(batch: Mapping[str, Any], key: str) -> Tensor | None:
    found = batch.get(key)
    return found.bool() if isinstance(found, Tensor) and found.ndim == 2 else None


def _both(masks: Iterable[Tensor | None]) -> Tensor | None:
    """Return what all masks of the first one's shape leave in, None without any."""
    given = [mask for mask in masks if mask is not None]
    same = [mask for mask in given if mask.shape == given[0].shape]
    return torch.stack(same).all(0) if same else None
