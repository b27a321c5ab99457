"""What a combination of adapters is made of, and how: PEFT's arguments, checked, and what files tell of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, get_args

from ..config.rules import is_int, is_number
from ..errors import ArgumentError
from ..maths import combining as maths


@dataclass(frozen=True)
class Request:
    """What is asked for: `LoRAModel.add_weighted_adapter`'s arguments. Raises ArgumentError where they cannot be."""

    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    combination_type: str = "svd"
    svd_rank: int | None = None
    svd_clamp: float | None = None
    svd_driver: str | None = None
    density: float | None = None
    majority_sign_method: maths.Sign = "total"
    seed: int | None = None

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise ArgumentError(f"add_weighted_adapter: {' '.join(problems)}")

    @classmethod
    def of(cls, adapters: Sequence[str], weights: Sequence[float], *others: Any) -> Request:
        """Return what a caller asks for. Raises ArgumentError where names or weights are no sequences."""
        for given in (adapters, weights):
            if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
                raise ArgumentError(
                    f"add_weighted_adapter: {given!r}: give a list of names and one of weights, ['a', 'b'], [0.7, 0.3]."
                )
        return cls(tuple(adapters), tuple(float(w) if isinstance(w, Real) else w for w in weights), *others)

    @property
    def method(self) -> maths.Method:
        """What the combination is."""
        return maths.METHODS[self.combination_type]

    def recipe(self) -> dict[str, Any]:
        """Return what a file and a card tell of it: what was chosen, without what is left at its default."""
        default = Request(("",), (1.0,))
        chosen = {key: value for key, value in vars(self).items() if value != getattr(default, key)}
        return {**chosen, "adapters": list(self.adapters), "weights": list(self.weights),
                "combination_type": self.combination_type}  # fmt: skip


def _problems(asked: Request) -> list[str]:
    """Return what is wrong with a request, whatever the model has."""
    method, said = maths.METHODS.get(asked.combination_type), []
    if method is None:
        near = difflib.get_close_matches(str(asked.combination_type).lower(), maths.METHODS, 1, 0.6)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        return [f"combination_type={asked.combination_type!r} is none of {', '.join(maths.METHODS)}.{meant}"]
    if not asked.adapters or len({*asked.adapters}) != len(asked.adapters):
        said.append(f"adapters={list(asked.adapters)}: name at least one, and none twice (add up its weights).")
    if len(asked.weights) != len(asked.adapters) or not all(map(is_number, asked.weights)):
        said.append(f"weights={list(asked.weights)}: give a finite number for each of {list(asked.adapters)}.")
    density, used = asked.density, f"combination_type={asked.combination_type!r} does not use it"
    if method.prune and not (density is not None and is_number(density) and 0 < density <= 1):
        said.append(f"density={density!r}: {asked.combination_type} keeps this share of the values, in (0, 1].")
    if not method.prune and density is not None:
        said.append(f"density={density!r}: {used}; leave it out.")
    if asked.majority_sign_method not in get_args(maths.Sign):
        said.append(f"majority_sign_method={asked.majority_sign_method!r} is neither 'total' nor 'frequency'.")
    elif asked.majority_sign_method != "total" and not method.elects:
        said.append(f"majority_sign_method={asked.majority_sign_method!r}: {used}; leave it out.")
    if asked.seed is not None and type(asked.seed) is not int:
        said.append(f"seed={asked.seed!r}: give an integer.")
    elif asked.seed is not None and method.prune != "random":
        said.append(f"seed={asked.seed!r}: {used}, as nothing is drawn; leave it out.")
    for name in ("svd_rank", "svd_clamp", "svd_driver") if method.acts_on != "update" else ():
        if getattr(asked, name) is not None:
            said.append(f"{name}={getattr(asked, name)!r}: {used}; leave it out.")
    if asked.svd_rank is not None and not is_int(asked.svd_rank):
        said.append(f"svd_rank={asked.svd_rank!r}: a rank is a positive integer.")
    if asked.svd_clamp is not None and not (is_number(asked.svd_clamp) and 0 <= asked.svd_clamp <= 1):
        said.append(f"svd_clamp={asked.svd_clamp!r}: it is a quantile, between 0 and 1.")
    return said
