"""LoRALayer: a base layer whose class is specialised, so that it carries named adapters and stays what it was.

An adapter sits behind the forward, y' = y + update(x, y), or in the read of a parameter, for which the class then has a
property. A layer that is called here and read there has both: its own forward reads what is its own.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterStateError
from ..kinds.probe import forward_factor
from ..kinds.table import KINDS
from ..variants.adapter import Adapter
from ..variants.initial import taken_anew
from .forward import Watch, adapted, followed, read_property, reading_its_own, unwatch, watch
from .offload import keep_flags
from .packing import Unpacked
from .specialising import Specialised, base_of, refine, restore
from .state import AdapterState
from .steps import Steps, StepsOfReplica
from .tying import is_plain

TAKEN = ("adapters", "_lora", "_originals", "_steps", "_unpacked", "_watch")  # what a layer has with adapters
_MERGED = "hf_lora_merged"  # of a layer's entry in a state dict's metadata: parameters with adapters inside
_LINEAR_FORWARDS = (nn.Linear.forward, Conv1D.forward)


class LoRALayer(Specialised, nn.Module):
    """A specialised layer. `adapters` holds name -> key -> Adapter; the base's parameters keep their keys."""

    _lora_prefix = "LoRA"
    adapters: nn.ModuleDict
    _lora: AdapterState
    _steps: Steps
    _originals: dict[str, Tensor]  # parameter -> the base's own tensor, while merged
    _unpacked: Unpacked | None  # what the library's layer was, while a plain weight is merged in its place
    _watch: Watch | None  # where somebody gave the layer itself a forward

    @classmethod
    def _lora_content(cls, base: type, *key: Any) -> dict[str, Any]:
        """Return the class's own forward, where adapters sit behind one, and a property for each parameter read.

        key: whether adapters sit behind the forward, the names of the parameters that are adapted in the read, and
        whether others read what sits behind the forward.
        """
        behind, reads, shown = key
        content: dict[str, Any] = {parameter: read_property(parameter) for parameter in reads}
        if not behind:
            return {**content, "forward": followed(base)}
        forward = adapted(base)
        return {**content, "forward": reading_its_own(forward) if shown else forward}

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica = super()._replicate_for_data_parallel()
        replica.__dict__["_steps"] = StepsOfReplica(self, replica)
        return replica

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move or cast the layer, and with it the tensors that merging set aside."""
        # What its forward multiplies by (a scaled embedding's) is rounded anew by a cast.
        super()._apply(fn, recurse)
        for adapter in (a for group in self.adapters.values() for a in group._modules.values()):
            if getattr(adapter, "factor", 1.0) != 1.0:
                adapter.factor = forward_factor(KINDS[adapter.kind], self, base_of(type(self))) or adapter.factor
        for name, own in self._originals.items():
            with torch.no_grad():
                moved = fn(own.data if is_plain(own) else own)
            if is_plain(own) and torch._has_compatible_shallow_copy_type(own.data, moved):
                own.data = moved  # the same object, so that ties come back
            else:
                wrapped = isinstance(own, nn.Parameter) and not isinstance(moved, nn.Parameter)
                self._originals[name] = nn.Parameter(moved, False) if wrapped else moved
        return self

    def __delattr__(self, name: str) -> None:
        if name in self._parameters:
            self._refuse_to_compute(name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter as torch does; what another will be computed from must not have adapters inside."""
        self._refuse_to_compute(name.rpartition("_")[0])
        super().register_parameter(name, param)

    def _refuse_to_compute(self, parameter: str) -> None:
        if parameter in self._steps.reads and parameter not in self.__dict__:
            raise AdapterStateError(
                f"{parameter} of {type(self).__name__} is read with its adapters inside, so it cannot be pruned, "
                "normalised or parametrised now: unload() the adapters, do it, and add or load them again."
            )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._originals and hasattr(destination, "_metadata"):
            destination._metadata.setdefault(prefix[:-1], {})[_MERGED] = sorted(self._originals)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        inside = local_metadata.get(_MERGED, ())
        for name in {*self._originals, *inside}:
            if f"{prefix}{name}" in state_dict and (name in inside) != (name in self._originals):
                what = "were merged into it when it was taken" if inside else "are merged into the model, not into it"
                raise AdapterStateError(
                    f"{prefix}{name} of a state dict: adapters {what}, so they would act twice or not at all. Call "
                    "unmerge_adapter() before either."
                )
        read = [(n, a) for n, a in self.adapters.named_modules() if getattr(a, "is_computed_again", False)]
        loaded = [a for n, a in read if any(f"{prefix}adapters.{n}.{key}" in state_dict for key in a.tensors())]
        with taken_anew(self, loaded):  # their factors are loaded after this
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def train(self, mode: bool = True) -> Any:
        """Set the training flag, and put the adapters behind a forward that the layer was given since."""
        watch(self)
        return super().train(mode)

    def behind(self, name: str) -> set[str]:
        """Return the keys of the adapters of one name that add to the output; the others live in the read."""
        return {key for key, adapter in self.carried(name).items() if self._steps.is_behind(name, adapter)}

    def carried(self, name: str) -> dict[str, Adapter]:
        """Return the adapters of one name by key, in the order in which they apply; empty where there are none."""
        group = self.adapters._modules.get(name)
        return {} if group is None else dict(group._modules)


def attach(
    layer: nn.Module,
    state: AdapterState,
    name: str,
    adapters: dict[str, Adapter],
    behind: set[str],
    shown: bool = False,
) -> LoRALayer:
    """Give a layer the adapters of one name, specialising its class, and return it.

    adapters: key -> Adapter, in the order in which they apply. behind: the keys that add to the forward's output;
    the others live in the read. shown: whether others read the layer too, which then get those behind it as well. The
    layer's training flag and its own tensors are left as they are.
    """
    if not isinstance(layer, LoRALayer):
        # Whether it computes x W^T + bias with a weight of torch's own, which one product can do together.
        fuses = base_of(type(layer)).forward in _LINEAR_FORWARDS and is_plain(layer._parameters.get("weight"))
        layer.add_module("adapters", nn.ModuleDict().train(layer.training))
        own = {"_lora": state, "_originals": {}, "_steps": Steps(state, fuses, {}, {})}
        layer.__dict__.update(own, _unpacked=None, _watch=None)
        watch(layer)
    group = layer.adapters._modules.setdefault(name, nn.ModuleDict())
    group._modules.update(adapters)  # a parameter may be called what a method of ModuleDict is
    group.train(layer.training)
    layer.__dict__["_steps"] = layer._steps.having(name, adapters, behind, shown or layer._steps.shown)
    try:
        _specialise(layer)
    except BaseException:
        detach(layer, name)
        raise
    assert isinstance(layer, LoRALayer)
    return layer


def put_in_read(layer: LoRALayer) -> None:
    """Have every adapter of a layer live in the read of its parameter, for code that never calls the layer.

    What each computes stays the same up to rounding; a weight of the layer's size is made at every read.
    """
    layer._steps = layer._steps.all_read()
    _specialise(layer)


def detach(layer: LoRALayer, name: str) -> None:
    """Take the adapters of one name away; with the last one the layer gets its own class back."""
    layer._steps = layer._steps.without(name)
    if name in layer.adapters:
        del layer.adapters[name]
    if layer.adapters:
        _specialise(layer)
        return
    if isinstance(layer, LoRALayer):  # and not one whose class could not be made
        restore(layer)
        keep_flags(layer, False)
    unwatch(layer)
    del layer.adapters
    kept = {"_lora"} if "_hf_peft_config_loaded" in layer.__dict__ else set()  # a model that is a layer itself goes on
    for attribute in {*TAKEN[1:]} - kept:
        del layer.__dict__[attribute]


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (full name, module) as `named_modules` does, leaving out what adapters added."""
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module | None]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        for child, below in reversed(module._modules.items()):
            if child != "adapters" or not isinstance(module, LoRALayer):
                waiting.append((f"{name}.{child}" if name else child, below))


def _specialise(layer: nn.Module) -> None:
    steps: Steps = layer._steps
    refine(layer, LoRALayer, steps.has_behind, steps.reads, steps.shown)
    keep_flags(layer, True)
