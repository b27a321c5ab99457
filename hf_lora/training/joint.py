"""One forward, and one backward, for the batches of several trainings: what each gets is what it would get alone.

Each training has a twin (`model/twins.py`): its batch reaches the twin's trunk, waits there for the others', is
computed with them by the model that carries all adapters, and comes back as leaves of the training's own graph. Head,
loss and their gradients are the twin's own. Then the gradients of all leaves go through the trunk at once. Batches of
other widths are padded on the right and their outputs cut again (`calls.py`).
"""

import copy
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import AdapterStateError, some
from ..layers.rows import mapped
from ..model.twins import mirror_checkpointing
from .calls import ALONE, IDS, MASKS, Backward, Call, Draws, Shares, differing
from .turns import Training, World

# The batches that are compared with each training's own: the first, and one where fresh adapters have an effect.
_CHECKED = (1, 4)


class Joint:
    """Computes the trunks of several trainings at once, on the model that carries their adapters."""

    def __init__(self, carrier: Any) -> None:
        """Serve the trainings whose adapters a LoRAModel carries."""
        self.carrier, self.is_drawn = carrier, True
        self._tape: list[tuple[Shares, dict[int, tuple[Tensor, dict[int, Tensor]]]]] = []
        self._seen: set[Hashable] = set()
        self._times: Counter[tuple[str, bool]] = Counter()  # of a trunk, in batches with and without padding
        self._config: Any = getattr(carrier, "config", None)
        settings = {} if self._config is None else vars(self._config)
        heads = {value for name, value in settings.items() if "head" in name and isinstance(value, int)}
        self._sizes = heads | {size for p in carrier.parameters() for size in p.shape}  # none of a batch's widths

    def serve(self, trainings: list[Training]) -> None:
        """Answer what trainings wait for."""
        if isinstance(trainings[0].request, Backward):
            self._backward()
            for training in trainings:
                training.answer = ALONE
            return
        groups: dict[Hashable, list[Call]] = {}
        for training in trainings:
            groups.setdefault(training.request.kind(), []).append(training.request)
        if len(groups) == len(trainings) > 1 and trainings[0].request.grad and "apart" not in self._seen:
            self._seen.add("apart")
            warnings.warn(
                f"{some(training.name for training in trainings)}: their batches differ in more than their rows and "
                "widths (in the inputs they have, dtypes, or lengths without a mask), so each is computed on its own.",
                stacklevel=2,
            )
        for calls in groups.values():
            wide = self._padded(calls) if len(calls) > 1 else None
            answers = [ALONE] * len(calls) if wide is None else self._together(calls, wide)
            for call, answer in zip(calls, answers, strict=True):
                call.training.answer = answer

    def _padded(self, calls: Sequence[Call]) -> dict[str, int] | None:
        """Return how wide a batch of several becomes, by mask, where they differ; None where it would be too wide."""
        # Nothing else of the model has that size, so that what is padded is known by it.
        every = [call.widths() for call in calls]
        own = {mask: {widths[mask] for widths in every} for mask in every[0]}
        most = getattr(self._config, "max_position_embeddings", None) or float("inf")
        taken = self._sizes | {width for widths in own.values() if len(widths) == 1 for width in widths}
        wide: dict[str, int] = {}
        for mask, widths in own.items():
            if len(widths) > 1:
                found = width = max(widths)
                while found in taken:
                    found += 1
                if width < found > most - 2:
                    return None
                wide[mask] = found
                taken |= {found}
        return wide

    def _together(self, calls: Sequence[Call], wide: dict[str, int]) -> list[Any]:
        first = calls[0]
        module = self.carrier.get_submodule(first.trunk)
        if ("checkpoints", first.trunk) not in self._seen:
            self._seen.add(("checkpoints", first.trunk))
            self.is_drawn = not mirror_checkpointing(first.module, module, self.carrier) and self.is_drawn
        widths = {size: [call.widths()[mask] for call in calls] for mask, size in wide.items()}
        before = [copy.copy(call.training.world) for call in calls]
        shares = Shares.of(calls, widths, self.is_drawn)
        arguments = self._arguments(calls, wide)
        out = self._computed(module, shares, arguments, first.module.training)
        leaves: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
        answers = [mapped(out, partial(_leaf, leaves, shares, i)) for i in range(len(calls))]
        if first.grad:
            self._tape.append((shares, leaves))
            case = first.trunk, bool(wide)
            self._times[case] += 1
            if self._times[case] in _CHECKED:
                self._check(module, shares, arguments, answers, before)
        return answers

    def _computed(self, module: nn.Module, shares: Shares, arguments: dict[str, Any], training: bool) -> Any:
        module.train(training)
        state = self.carrier._lora
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(shares.calls[0].grad))
            stack.enter_context(shares.calls[0].in_precision())
            stack.enter_context(state.routed(shares, "training together", trains=True))
            if training and shares.is_drawn:
                stack.enter_context(Draws(shares))
            return module(**arguments)

    def _arguments(self, calls: Sequence[Call], wide: dict[str, int]) -> dict[str, Any]:
        """Return the arguments of all calls as those of one batch."""
        found: dict[str, Any] = {}
        for name in dict.fromkeys(name for call in calls for name in call.arguments):
            given: list[Any] = [call.arguments.get(name) for call in calls]
            if not any(isinstance(value, Tensor) for value in given):
                found[name] = given[0]
            elif MASKS.get(name) == name:
                found[name] = self._mask(name, calls, wide)
            else:
                value = self._fill if name in IDS else 0
                found[name] = torch.cat([_wider(each, wide.get(MASKS.get(name, "")), value) for each in given])
        return {**found, **{name: self._mask(name, calls, wide) for name in wide}}

    def _mask(self, name: str, calls: Sequence[Call], wide: dict[str, int]) -> Tensor:
        """Return the mask of a batch of several, ones where a call has none."""
        given = [call.arguments.get(name) for call in calls]
        like: Any = next((each for each in given if each is not None), None)
        device = next(t.device for t in calls[0].arguments.values() if isinstance(t, Tensor))
        dtype = torch.long if like is None else like.dtype
        made = [
            torch.ones(call.rows, call.widths()[name], dtype=dtype, device=device) if each is None else each
            for call, each in zip(calls, given, strict=True)
        ]
        return torch.cat([_wider(each, wide.get(name), 0) for each in made])

    @property
    def _fill(self) -> int:
        found = getattr(self._config, "pad_token_id", None)
        return found if isinstance(found, int) and found >= 0 else 0

    def _backward(self) -> None:
        """Bring the gradients of all leaves through what was computed together, the last first."""
        while self._tape:
            shares, leaves = self._tape.pop()
            outputs, gradients = [], []
            for output, own in leaves.values():
                if output.requires_grad and any(leaf.grad is not None for leaf in own.values()):
                    gradient = torch.zeros_like(output)
                    for i, leaf in own.items():
                        if leaf.grad is not None:
                            share = shares.part(gradient, i)
                            share.copy_(leaf.grad.reshape(share.shape))
                    outputs.append(output)
                    gradients.append(gradient)
            if outputs:
                torch.autograd.backward(outputs, gradients)

    def _check(
        self, module: nn.Module, shares: Shares, arguments: dict[str, Any], answers: list[Any], before: list[World]
    ) -> None:
        """Compare what each training gets with what it computes alone."""
        calls, training = shares.calls, shares.calls[0].module.training
        if not (told := differing(calls, answers, before)):
            return
        for call in calls:
            call.module.eval()
        out = self._computed(module, shares, arguments, False)
        calm = [mapped(out, partial(_leaf, {}, shares, i)) for i in range(len(calls))]
        others = differing(calls, calm, before)
        for each in (module, *(call.module for call in calls)):
            each.train(training)  # a backward pass may compute some of it again
        if others:
            raise AdapterStateError(
                f"{shares.calls[0].trunk}: computed in one batch with others, {some(others)} would get other "
                "results than alone, because this model's rows, or what they are padded with, have a say in each "
                "other's. Train these one after the other" + (", or pad all to one length." if shares.widths else ".")
            )
        warnings.warn(
            f"{shares.calls[0].trunk}: {some(told)} draw other random numbers (dropout) in one batch than alone, so "
            "they train as alone in distribution only.",
            stacklevel=2,
        )


def _leaf(leaves: dict[int, tuple[Tensor, dict[int, Tensor]]], shares: Shares, i: int, output: Tensor) -> Tensor:
    """Return a training's share of an output as a leaf of its own graph, noted to take its gradient."""
    own = leaves.setdefault(id(output), (output, {}))[1]
    if i not in own:
        own[i] = shares.own(output.detach(), i).requires_grad_(output.requires_grad)
    return own[i]


def _wider(x: Tensor, width: int | None, value: int) -> Tensor:
    return x if width is None else F.pad(x, [0, 0] * (x.ndim - 2) + [0, width - x.shape[1]], value=value)
