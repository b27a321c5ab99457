"""Site: one adapted parameter, where it is and what goes there."""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ..kinds.kind import Shape
from ..layers.offload import compute_device
from ..variants.adapter import Adapter, base_tensor, own_tensor
from ..variants.spec import Spec


@dataclass(frozen=True)
class Site(Spec):
    """One adapted parameter: where it is, what goes there, and whether it sits behind the layer's forward.

    shown: whether others read the parameter too. shares: the module whose adapter this site shares (tied embeddings).
    """

    module: str = ""
    behind: bool = False
    shown: bool = False
    shares: str = ""

    def shapes(self, layer: nn.Module) -> dict[str, Shape]:
        """Return the shapes of what the adapter holds, by attribute."""
        shapes: dict[str, Shape] = self.row.adapter.shapes(self, own_tensor(layer, self.parameter))
        return shapes

    def found(self, layer: nn.Module) -> tuple[Tensor | None, torch.device]:
        """Return the parameter, None where the layer shows none, and the device where the layer computes."""
        own = base_tensor(layer, self.parameter)
        some_tensor = own if own is not None else next(chain(layer.parameters(), layer.buffers(), [torch.empty(0)]))
        return own, compute_device(layer, some_tensor)

    def build(self, layer: nn.Module) -> Adapter:
        """Make the empty adapter on the device where the layer computes."""
        own, device = self.found(layer)
        adapter: Adapter = self.row.adapter(self, own, buffer=self.parameter in layer._buffers, device=device)
        return adapter
