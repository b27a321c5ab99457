"""Two switches that lower the memory of a training step, for `LoRAModel`: they change no result and no state dict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import head, mlp

__all__ = ["MemorySwitches"]


class MemorySwitches:
    """What a LoRAModel does about the memory of its training step.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from hf_lora import LoRAConfig, LoRAModel
    >>> sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "vocab_size": 16}
    >>> base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, bos_token_id=0, eos_token_id=1, **sizes))
    >>> model = LoRAModel.from_model(base, LoRAConfig(r=2, target_modules="all-linear")).train()
    >>> model.enable_mlp_recompute()
    >>> model.enable_linear_cross_entropy()
    >>> ids = torch.arange(2, 8).view(1, 6)
    >>> model(ids, labels=ids).loss.backward()
    """

    def enable_mlp_recompute(self) -> None:
        """Keep less of every gated MLP for backward: its input, gate and up, not the activation and the product.

        For modules that compute down(act(gate(x)) * up(x)) (the Llama line, Phi-3, GLM, ...); others are left alone.
        Outputs and gradients keep their bits. Raises ModelError where there is no such module.
        """
        mlp.enable_mlp_recompute(_module(self))

    def disable_mlp_recompute(self) -> None:
        """Keep everything for backward again."""
        mlp.disable_mlp_recompute(_module(self))

    def enable_linear_cross_entropy(self) -> None:
        """Compute the loss over the vocabulary a few rows at a time, so that a step never holds all its logits.

        In training, `outputs.logits` is then computed when it is first looked at; a loss that is not
        `F.cross_entropy` of the logits (cast, sliced, scaled or capped) looks at them, and saves nothing. Gradients are
        the same up to rounding. They are taken in forward, so they cannot be differentiated again. Compiled models
        and evaluation compute logits as ever. Raises ModelError where the model has no output layer.
        """
        head.enable_linear_cross_entropy(_module(self))

    def disable_linear_cross_entropy(self) -> None:
        """Compute all logits at once again."""
        head.disable_linear_cross_entropy(_module(self))

    @contextmanager
    def _own_head(self) -> Iterator[None]:
        """Give the output layer its own class inside a `with` block, where adapters come or go."""
        was_lazy = head.disable_linear_cross_entropy(_module(self))
        try:
            yield
        finally:
            if was_lazy:
                head.enable_linear_cross_entropy(_module(self))


def _module(model: Any) -> Any:
    return model
