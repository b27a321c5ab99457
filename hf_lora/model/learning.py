"""How a LoRAModel is told the learning rates of its parameters."""

from __future__ import annotations

import warnings

from torch import nn

from ..layers.rates import LearningRates
from ..layers.state import AdapterState

__all__ = ["Learning"]


class Learning(nn.Module):
    """What a LoRAModel does about learning rates."""

    _lora: AdapterState

    def set_learning_rates(
        self,
        *,
        loraplus_lr_ratio: float | None = None,
        loraplus_lr_embedding: float | None = None,
        head_learning_rate: float | None = None,
    ) -> None:
        """Give parameters learning rates of their own, in optimizers that are built from now on.

        The stock Trainer's own optimizer, whatever `optim=` says, and `hf_lora.parameter_groups` follow them; an
        optimizer that does not is an error when training starts. What is left out goes back to the common rate.
        loraplus_lr_ratio: LoRA+. B's rate divided by A's, which is the optimizer's; 16 is the paper's choice, with a
            smaller rate for A than usual. DoRA's lengths and biases outside of `lora_bias` are not B.
        loraplus_lr_embedding: the rate of both factors on embeddings. LoRA+'s argument is about wide inputs, which
            indices are not, so the ratio leaves them alone; left out they train at the common rate (PEFT: 1e-6).
        head_learning_rate: the rate of what trains in full: `modules_to_save`, new heads, parameters of the base whose
            requires_grad was switched on. Biases from `bias=` and token rows keep the common rate.
        Raises ConfigError where one is not a positive, finite number. A ratio below 1, the opposite of LoRA+, warns.

        >>> from hf_lora import LoRAConfig, add_lora, parameter_groups
        >>> model = add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(target_modules=["0"]))
        >>> model.set_learning_rates(loraplus_lr_ratio=16)
        >>> [group["lr"] for group in parameter_groups(model, 0.001)]
        [0.001, 0.016]
        """
        rates = LearningRates(loraplus_lr_ratio, loraplus_lr_embedding, head_learning_rate)
        if loraplus_lr_ratio is not None and loraplus_lr_ratio < 1:
            warnings.warn(
                f"loraplus_lr_ratio={loraplus_lr_ratio:g} trains B more slowly than A, the opposite of LoRA+; the "
                "ratio is B's learning rate divided by A's.",
                stacklevel=2,
            )
        self._lora.rates = rates
