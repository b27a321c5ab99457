"""AdaLoRA's budget: how many components all layers have together falls in training, and the most important ones stay.

    I  = |w * gradient of w|                           of each entry w of A, E and B
    S <- beta1 S + (1 - beta1) I                       sensitivity
    U <- beta2 U + (1 - beta2) |I - S|                 uncertainty
    importance of a component = S U of its E + the mean of S U over its row of A + that over its column of B
    budget at step t = target + (first - target) (1 - (t - tinit) / (total - tinit - tfinal))^3

Zhang et al. 2023, arXiv:2303.10512; numbers and order as in PEFT, which takes w after the optimizer's step. Of equal
components the first stay, so that the budget is kept exactly; PEFT takes away all that are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterMismatchError
from .adalora import AdaLoRA

_PARTS = ("lora_A", "lora_B", "lora_E")


class Budget:
    """The components of a model's AdaLoRA adapters, by name of the layer.

    settings: those of the formula's row, total_step among them. first, target: the number of components at the
    beginning and at the end. kept: which stay once the budget is reached; empty before.
    """

    def __init__(self, adapters: Mapping[str, AdaLoRA], settings: Mapping[str, Any]) -> None:
        self.adapters, self.settings = dict(adapters), dict(settings)
        self.first = sum(adapter.r for adapter in self.adapters.values())
        self.target = self.settings["target_r"] * len(self.adapters)
        self.last = self.settings["total_step"] - self.settings["tfinal"]
        self.sensitivity: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        for adapter in self.adapters.values():
            adapter.is_kept = True

    def allowed(self, step: int) -> int:
        """Return how many components there may be after a step, the first of which is 1."""
        tinit = self.settings["tinit"]
        if step <= tinit:
            return self.first
        left = 1 - (step - tinit) / (self.last - tinit) if step < self.last else 0.0
        return int((self.first - self.target) * left**3 + self.target)

    def components(self) -> int:
        """Return how many components there are now."""
        return sum(int(adapter.lora_E.count_nonzero()) for adapter in self.adapters.values())

    @torch.no_grad()
    def regularise(self) -> None:
        """Add to the gradients of A and B that of the distance from orthogonality, where they have one.

        orth_reg_weight times the mean, over all A and B, of |A A' - I| and |B' B - I|, Frobenius norms.
        """
        factors = [rows for a in self.adapters.values() for rows in ((a.lora_A, False), (a.lora_B, True))]
        weight = self.settings["orth_reg_weight"] / max(len(factors), 1)
        for factor, is_columns in factors if weight else ():
            if factor.grad is not None:
                rows = factor.mT if is_columns else factor
                off = rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
                gradient = (2 * weight / torch.linalg.matrix_norm(off).clamp_min(1e-30)) * (off @ rows)
                factor.grad.add_((gradient.mT if is_columns else gradient).to(factor.grad.dtype))

    @torch.no_grad()
    def settle(self, step: int, *, measures: bool = True) -> None:
        """Measure the importances after an optimizer's step, and take away what the budget has no place for.

        measures: whether the gradients are those of this step.
        """
        if measures and step < self.last:
            self._measure()
        if step > self.last:
            for name, kept in self.kept.items():
                self.adapters[name].lora_E.mul_(kept)
        elif step == self.last or (step > self.settings["tinit"] and step % self.settings["deltaT"] == 0):
            kept = self._most_important(self.allowed(step))
            for name, adapter in self.adapters.items():
                adapter.lora_E.mul_(kept[name])
            if step == self.last:
                self.kept = kept

    def _measure(self) -> None:
        beta1, beta2 = self.settings["beta1"], self.settings["beta2"]
        for name, adapter in self.adapters.items():
            for part in _PARTS:
                tensor, key = getattr(adapter, part), f"{name}.{part}"
                zero = tensor.new_zeros(tensor.shape)
                now = zero if tensor.grad is None else (tensor * tensor.grad).abs()
                mean = self.sensitivity[key] = beta1 * self.sensitivity.get(key, zero) + (1 - beta1) * now
                off = (now - mean).abs()
                self.uncertainty[key] = beta2 * self.uncertainty.get(key, zero) + (1 - beta2) * off

    def scores(self) -> dict[str, Tensor]:
        """Return the importance of each component, (r,), by layer."""
        return {name: self._score(name) for name in self.adapters}

    def _score(self, name: str) -> Tensor:
        keys = [f"{name}.{part}" for part in _PARTS]
        if keys[0] not in self.sensitivity:  # no step had a gradient yet
            return torch.zeros_like(self.adapters[name].lora_E).flatten()
        a, b, e = (self.sensitivity[key] * self.uncertainty[key] for key in keys)
        return e.flatten() + a.mean(dim=1) + b.mean(dim=0)

    def _most_important(self, count: int) -> dict[str, Tensor]:
        """Return 1 for each component that is among the most important ones, 0 for others, (r, 1), by layer."""
        scores = self.scores()
        every = torch.cat([score.detach().cpu() for score in scores.values()])
        kept = torch.zeros_like(every)
        kept[every.sort(descending=True, stable=True).indices[:count]] = 1
        parts = kept.split([len(score) for score in scores.values()])
        return {name: part[:, None].to(score) for (name, score), part in zip(scores.items(), parts, strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what a training that goes on later has to know, by name."""
        parts = {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty, "kept": self.kept}
        return {f"{what}.{key}": tensor for what, each in parts.items() for key, tensor in each.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` returned. Raises AdapterMismatchError for what another budget returned."""
        read: dict[str, dict[str, Tensor]] = {"sensitivity": {}, "uncertainty": {}, "kept": {}}
        for key, tensor in tensors.items():
            what, _, rest = key.partition(".")
            name, _, part = (rest, "", "lora_E") if what == "kept" else rest.rpartition(".")
            own = getattr(self.adapters.get(name), part, None) if part in _PARTS else None
            if what not in read or own is None or own.shape != tensor.shape:
                raise AdapterMismatchError(f"{key} {tuple(tensor.shape)} is nothing that this budget measures.")
            read[what][rest] = tensor.to(own.device)
        if len({len(each) for what, each in read.items() if what != "kept"}) > 1:
            raise AdapterMismatchError("a part of what the budget measured is not there.")
        self.sensitivity, self.uncertainty, self.kept = read.values()
