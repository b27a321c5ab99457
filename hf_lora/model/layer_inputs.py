"""Which directions a few batches give the inputs of layers, and the ranks that explain most of them (EVA).

Paischer et al. 2024, arXiv:2410.07170.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..config.lora_config import LoRAConfig, key_for
from ..errors import ArgumentError, ConfigError, TargetError, some
from ..maths.directions import Directions, spread
from ..targets.site import Site
from .batches import Shown, run
from .positions import Positions


def of_inputs(
    model: Any,
    modules: Mapping[str, nn.Module],
    config: LoRAConfig,
    sites: list[Site],
    batches: Iterable[Any],
    settings: Mapping[str, Any],
) -> tuple[LoRAConfig, Shown]:
    """Follow the inputs of layers until their directions stay, and give each layer the rank that explains most."""
    if unseen := [s.module for s in sites if not s.behind or s.parameter != "weight"]:
        raise TargetError(
            f"{some(unseen)}: the model reads this weight instead of calling the layer, so that it has no inputs for "
            f"init_lora_weights={config.init_lora_weights!r}. Name it in exclude_modules."
        )
    ranks = {s.module: s.r for s in sites}
    most = {s.module: min(round(s.r * settings["rho"]), *s.shape) for s in sites}
    k, label = max(most.values(), default=1), settings["label_mask_value"] if settings["use_label_mask"] else None
    inputs = _Ranked(lambda: Directions(k), Positions(model, label))
    with torch.no_grad(), inputs.positions.watched(), ExitStack() as hooks:
        for name in ranks:
            hooks.callback(modules[name].register_forward_pre_hook(inputs.of(name), with_kwargs=True).remove)
        for batch in batches:
            inputs.begin(batch)
            run(model, batch)
            if inputs.stay(ranks, most, settings["tau"]):
                break
    if lacking := [n for n, r in ranks.items() if n not in inputs.leader or inputs.seen(n).rows <= r]:
        raise ConfigError(
            f"the data shows {some(lacking)} no more positions than the rank has: give more batches, or name layers "
            "that they never reach in exclude_modules."
        )
    found: Shown = {(n, "weight"): (inputs.seen(n).components, inputs.seen(n).values) for n in ranks}
    return _with_ranks(config, ranks, inputs.ranks(ranks, most), settings), found


class Summary(Protocol):
    """What is kept of rows that come in batches. rows: how many came."""

    rows: int

    def update(self, rows: Tensor) -> None:
        """Take further rows in. rows: (n, in), float32 or wider."""


Kept = TypeVar("Kept", bound=Summary)


class Inputs(Generic[Kept]):
    """A summary of each layer's inputs, one for all layers that are given the same tensor.

    new: makes an empty one. positions: those that count.
    """

    def __init__(self, new: Callable[[], Kept], positions: Positions) -> None:
        self.new, self.positions = new, positions
        self.leader: dict[str, str] = {}
        self.kept: dict[str, Kept] = {}
        self.given: list[tuple[weakref.ref[Tensor], str]] = []

    def begin(self, batch: Any) -> None:
        """Begin with a batch: other tensors come, and other positions count."""
        self.given = []
        self.positions.begin(batch)

    def of(self, name: str) -> Callable[..., None]:
        """Return the hook of a layer."""

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if not x.is_floating_point():  # an embedding's, which are numbers of rows
                return
            if name not in self.leader:
                self.leader[name] = next((n for held, n in self.given if held() is x), name)
            if self.leader[name] == name:
                self.given.append((weakref.ref(x), name))
                rows = self.positions.rows(x)
                if not rows.isfinite().all():
                    raise ArgumentError(
                        f"data= gives {name} inputs that are not finite, computed in {x.dtype}: look at the base's "
                        "weights and at the data, or load the base in float32."
                    )
                self.kept.setdefault(name, self.new()).update(rows.to(torch.promote_types(x.dtype, torch.float32)))

        return look

    def seen(self, name: str) -> Kept:
        """Return what was seen of a layer's inputs. Raises KeyError where it was never called."""
        return self.kept[self.leader[name]]


class _Ranked(Inputs[Directions]):
    """Directions of layers' inputs, of which the ranks are chosen."""

    def ranks(self, ranks: Mapping[str, int], most: Mapping[str, int]) -> dict[str, int]:
        """Return the ranks, of the same sum, that explain most."""
        return spread({n: self.seen(n).shares()[: most[n]] for n in ranks}, sum(ranks.values()))

    def stay(self, ranks: Mapping[str, int], most: Mapping[str, int], tau: float) -> bool:
        """Return whether the directions that are going to be taken are what they were a batch before."""
        if not all(n in self.leader and self.seen(n).rows for n in ranks):
            return False
        wanted = self.ranks(ranks, most)
        return all(bool((self.seen(n).alike[: wanted[n]] >= tau).all()) for n in ranks)


def _with_ranks(
    config: LoRAConfig, before: Mapping[str, int], ranks: Mapping[str, int], settings: Mapping[str, Any]
) -> LoRAConfig:
    """Return a config with other ranks for layers, without those of rank 0."""
    kept = {n: r for n, r in ranks.items() if r}
    if kept == before:
        return config
    changes: dict[str, Any] = {}
    if len(kept) < len(ranks):
        changes = {"target_modules": [*kept], "layers_to_transform": None, "layers_pattern": None}
    by_depth = sorted(kept, key=lambda n: -n.count("."))
    alphas = {n: config.alpha_of(n) for n in by_depth}
    if settings["adjust_scaling_factors"]:
        alphas = {n: alpha * kept[n] / before[n] for n, alpha in alphas.items()}
    own = {n: kept[n] for n in by_depth if kept[n] != config.r or key_for(config.rank_pattern, n)}
    own_alphas = {n: a for n, a in alphas.items() if a != config.lora_alpha or key_for(config.alpha_pattern, n)}
    return config.copy(**changes, rank_pattern=own, alpha_pattern=own_alphas)
