"""What a file's tensors must be, besides fitting in shape, before an adapter takes them over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from .config import LoRAConfig
from .errors import AdapterMismatchError
from .layer import base_modules, own_tensor
from .plan import Site
from .targets import saved_modules
from .variants import Adapter

__all__ = ["check_dtypes", "check_saved"]


def check_dtypes(found: Iterable[tuple[Site, Adapter, Mapping[str, Tensor]]]) -> None:
    """Raise AdapterMismatchError where a file holds integers for what is trained, or numbers for what counts."""
    odd = [
        f"{site.module}.{site.parameter}: {attribute} holds {tensor.dtype}"
        for site, adapter, values in found
        for attribute, tensor in values.items()
        if tensor.is_floating_point() != getattr(adapter, attribute).is_floating_point()
    ]
    if odd:
        raise AdapterMismatchError(
            f"{len(odd)} tensors of the adapter's file are of a type that cannot stand for what is trained: "
            f"{'; '.join(odd[:6])}. Save its weights as floating-point numbers."
        )


def check_saved(
    modules: Mapping[str, nn.Module], config: LoRAConfig, found: Iterable[tuple[Site, Mapping[str, Tensor]]]
) -> None:
    """Raise AdapterMismatchError where modules_to_save names parameters that the file does not hold."""
    held = {(site.module, site.parameter) for site, _ in found}
    missing = [
        ".".join(filter(None, (name, inner, leaf)))
        for name in saved_modules(config.modules_to_save or (), modules)
        for inner, module in base_modules(modules[name])
        for leaf in module._parameters
        if own_tensor(module, leaf) is not None and (".".join(filter(None, (name, inner))), leaf) not in held
    ]
    if missing:
        raise AdapterMismatchError(
            f"the adapter's file lacks {len(missing)} tensors of modules_to_save={list(config.modules_to_save or ())}: "
            f"{', '.join(missing[:6])}. Without them the model would compute with untrained ones. Save the adapter "
            "again with its modules, or take the names out of modules_to_save where they were never trained."
        )
