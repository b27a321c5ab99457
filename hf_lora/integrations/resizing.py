"""Resizing the vocabulary: which rows are new is noted, so that an adapter added later trains and saves them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["notes_new_rows"]


def notes_new_rows(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap PreTrainedModel.resize_token_embeddings: what it does is left as it is."""

    @functools.wraps(original)
    def resize_token_embeddings(self: Any, *args: Any, **kwargs: Any) -> Any:
        from ..model.vocabulary import new_rows_noted

        with new_rows_noted(self):
            return original(self, *args, **kwargs)

    return resize_token_embeddings
