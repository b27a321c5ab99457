"""The learning rates that differ from the common one: LoRA+ for B, and rates of their own for heads and embeddings.

    lr(B) = ratio * lr(A)

Hayou et al. 2024, arXiv:2402.12354: with one rate for both, features of a wide model hardly move, because A and B start
at different sizes and see inputs of different sizes; a ratio well above 1 (the paper's choice is 16) trains both.
"""

import warnings
from dataclasses import dataclass, fields

from ..config.rules import is_positive
from ..errors import ConfigError


@dataclass(frozen=True)
class LearningRates:
    """What a model's parameters get instead of the optimizer's learning rate; None leaves them at it.

    loraplus_lr_ratio: what B's rate is multiplied by. The other two are rates themselves.
    """

    loraplus_lr_ratio: float | None = None
    loraplus_lr_embedding: float | None = None
    head_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if problems := [p for f in fields(self) for p in check_rate(f.name, getattr(self, f.name), optional=True)]:
            raise ConfigError(" ".join(problems))
        if self.loraplus_lr_ratio is not None and self.loraplus_lr_ratio < 1:
            warnings.warn(
                f"loraplus_lr_ratio={self.loraplus_lr_ratio:g} trains B more slowly than A, the opposite of LoRA+; the "
                "ratio is B's learning rate divided by A's.",
                stacklevel=4,
            )

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) is not None for f in fields(self))

    def __str__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return ", ".join(f"{name}={value:g}" for name, value in given.items() if value is not None)


def check_rate(name: str, value: object, optional: bool = False) -> list[str]:
    """Return what is wrong with a rate or a ratio: nothing where it is a positive, finite number, or None if it may."""
    if is_positive(value) or (optional and value is None):
        return []
    return [f"{name}={value!r}, but it must be a positive, finite number."]
