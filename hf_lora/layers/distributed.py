"""Tensors that are spread over processes: told apart, gathered whole, filled, and refused where none can be adapted.

FSDP2 and tensor parallel plans leave DTensors in a model; DeepSpeed ZeRO-3 leaves empty parameters, which know their
whole shape as `ds_shape`. Older tensor parallel plans leave plain local pieces, which only the model knows of.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError, ModelError


def is_spread(tensor: object) -> bool:
    """Return whether a tensor's values lie in several processes, which must gather them together."""
    return hasattr(tensor, "full_tensor") or hasattr(tensor, "ds_id")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all of its values, detached; what is not spread comes as it is.

    Every process must call it, in the same order, and each gets all values: on the device where the processes talk to
    each other, which is not where they are offloaded to. Raises AdapterStateError where a partition cannot be gathered.
    """
    if hasattr(tensor, "full_tensor"):
        return tensor.detach().to(tensor.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    if not hasattr(tensor, "ds_id"):
        return tensor.detach()
    with _gathered(tensor):
        return tensor.detach().clone()


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor in place; where it is spread, each process keeps its part of them.

    values: of the whole tensor's shape. Where the tensor is spread every process must call it with the same ones.
    Raises AdapterStateError where the tensor is offloaded: what is copied there is lost.
    """
    if tensor.is_meta:
        raise AdapterStateError(
            "adapters that are offloaded (accelerate's cpu_offload or disk_offload) take no values in place: load the "
            "adapter under another name, or remove_hook_from_submodules(model) first."
        )
    with torch.no_grad():
        if hasattr(tensor, "full_tensor"):
            tensor.to_local().copy_(spread_like(values, tensor).to_local())  # type: ignore[attr-defined]
        else:
            tensor.copy_(values)


def refuse_spread(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Raise ModelError where a model's weights are spread over processes already: adapters come before that.

    modules: the model's own, by full name, without what adapters added, so that many of these cost nothing.
    Beside a piece of a weight, an adapter would have the wrong size, or be computed once per process and summed.
    """
    kind = type(model).__name__
    for module in modules.values():
        if (module.__dict__.get("_tp_size") or 1) > 1:
            raise ModelError(
                f"{kind} was loaded with a tensor parallel plan: its layers are pieces, one a process, which cannot "
                "carry adapters. Load it without tp_plan or distributed_config, add the adapter, and spread it with "
                "FSDP2 (TrainingArguments(fsdp=True)) or DeepSpeed; to serve it, merge_and_unload(), save it, and "
                "load what was saved with the plan."
            )
    own = ((f"{name}.{key}", p) for name, m in modules.items() for key, p in m._parameters.items())
    spread, parameter = next(((name, p) for name, p in own if is_spread(p)), (None, None))
    if spread is None:
        return
    if hasattr(parameter, "ds_id"):
        how, way = "DeepSpeed ZeRO-3", "load it before TrainingArguments(deepspeed=...) is made, or without zero.Init()"
    else:
        how, way = "fully_shard or a parallel plan", "load it without, or adapt it before fully_shard()"
    raise ModelError(
        f"{kind} is spread over processes already ({spread}, by {how}), and an adapter must be there before: {way}; "
        "the adapter is then spread with it."
    )


def refuse_partitions(model: nn.Module) -> None:
    """Raise AdapterStateError where DeepSpeed ZeRO-3 holds a model's weights: its engine alone fills them."""
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise AdapterStateError(
            "the model's weights are partitioned by DeepSpeed ZeRO-3, which adapters are not read into one by one; "
            "call engine.load_checkpoint(folder, load_module_strict=False), as the Trainer does."
        )


def spread_like(values: Tensor, model: Tensor) -> Tensor:
    """Return whole values as a DTensor, spread as another one is; every process must call it."""
    from torch.distributed.tensor import distribute_tensor

    mesh = model.device_mesh  # type: ignore[attr-defined]
    return distribute_tensor(values.to(mesh.device_type), mesh, model.placements).to(model.device)  # type: ignore[attr-defined]


def _gathered(tensor: Tensor) -> AbstractContextManager[None]:
    """Return DeepSpeed's context in which a partitioned parameter is whole."""
    try:
        from deepspeed import zero
    except ImportError:
        raise AdapterStateError(
            f"a parameter of {tuple(tensor.ds_shape)} is partitioned by DeepSpeed ZeRO-3, which is not installed here "  # type: ignore[attr-defined]
            "to gather it: this process holds nothing of it that could be saved."
        ) from None
    return zero.GatheredParameters([tensor])
