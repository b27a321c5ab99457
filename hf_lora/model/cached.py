"""One adapter of a cache (`model/cache.py`): its files, and its way onto a model, into CPU memory, and back."""

import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..config.lora_config import LoRAConfig
from ..formats.contents import Contents
from ..layers.memory.head import own_head
from ..layers.state import CHANGES, Record
from ..variants.adapter import Adapter
from ..variants.initial import INITS
from . import adding, attaching
from .loading import opened
from .settings import warn_of_others
from .swapping import wait_for_devices


@dataclass(eq=False)
class Cached:
    """A registered adapter. asked, kwargs: what `opened` takes; pins: how many requests use it.

    size: bytes on the device, an estimate until it was there. moves: whether it is on its way. files: read, and not
    built yet. built: its adapters and record, while it is on the model or in CPU memory. devices, left: where its
    tensors lay when it left, and what its layers were.
    """

    asked: tuple[str | os.PathLike[str], LoRAConfig | None, bool]
    kwargs: Mapping[str, Any]
    check_base: bool
    pins: int = 0
    size: int = 0
    moves: bool = False
    files: Contents | None = None
    built: tuple[attaching.Groups, Record] | None = None
    devices: dict[Adapter, torch.device] = field(default_factory=dict)
    left: list[Any] = field(default_factory=list)
    reading: threading.Lock = field(default_factory=threading.Lock)

    def is_on(self, model: Any, name: str) -> bool:
        """Return whether a model has this adapter, and no other of its name."""
        records = model._lora.records if hasattr(model, "_lora") else {}
        return self.built is not None and records.get(name) is self.built[1]

    def read(self, model: Any) -> Contents | None:
        """Return the files for a model, None where they are built; others wait for the same ones."""
        with self.reading:
            if self.built is not None:
                return None
            if (files := self.files) is None:
                files = opened(*self.asked, **self.kwargs).onto(model)
                width = 8 if any(p.dtype == torch.float64 for p in model.parameters()) else 4  # bytes of a master
                sizes = [t.numel() * max(width, t.element_size()) for t in files.tensors.values()]
                self.size = sum(sizes) * (2 if INITS[files.config.init_lora_weights].computed_again else 1)
                self.files = files
            return files

    def bring(self, model: Any, name: str) -> None:
        """Put it onto a model, from CPU memory or as it was read; raises what `load_adapter` raises."""
        if self.built is not None and self._layers(model) != self.left:
            self.built = None
        if self.built is None:
            files = self.read(model)  # again where it left CPU memory since
            assert files is not None
            warn_of_others(files.notes, model, ())
            with own_head(model):
                self.built, self.files = adding.read(model, model._lora, files, False, self.check_base), None
            held = {id(t): t.nbytes for a in self._adapters() for t in a.held().values()}  # some are of several layers
            self.devices, self.size = {}, sum(held.values())
        for adapter, device in self.devices.items():
            adapter.to(device)
        with own_head(model):
            attaching.put_on(model, model._lora, name, *self.built)

    def put_away(self, model: Any, name: str) -> None:
        """Take it off a model into CPU memory; of one that became another meanwhile nothing is kept."""
        wait_for_devices(self._adapters())  # kernels of calls that have ended may still read it
        with CHANGES:
            if not self.is_on(model, name):
                self.built = None
                return
            self.left = self._layers(model)
            model.delete_adapter(name)
        self.devices = {a: next(iter(a.held().values())).device for a in self._adapters()}
        for adapter in self.devices:
            adapter.to("cpu")

    def _adapters(self) -> set[Adapter]:
        groups = self.built[0] if self.built else {}
        return {adapter for group in groups.values() for _, adapter in group.values()}

    def _layers(self, model: Any) -> list[Any]:
        """Return what its layers are now, because an adapter that left comes back to the same ones only."""
        found: list[Any] = []
        for module, group in self.built[0].items() if self.built else ():
            try:
                layer = model.get_submodule(module)
            except AttributeError:
                return []  # it is gone
            for site, _ in group.values():
                own, device = site.found(layer)
                found.append((weakref.ref(layer), device, own is not None and (own.shape, own.dtype)))
        return found
