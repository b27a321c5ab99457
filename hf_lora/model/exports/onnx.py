"""A model as ONNX, with its adapters live or merged, for any batch size and length; compared in onnxruntime."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AdapterFileError, EngineError
from ...files.disk import temporary
from ...formats.engines.factors import package
from ..merged_files import sample_inputs

_TOLERANCE = 1e-3  # |a - b| / |a| of an output: float32 in another order
_LIMIT = 2**31  # bytes of one protobuf


class _Outputs(nn.Module):
    """A model that takes its inputs by position, and returns the tensors of its output by name without a cache."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs that are tensors."""
        has_cache = hasattr(getattr(self.model, "config", None), "use_cache")
        given = dict(zip(self.names, inputs, strict=True))
        out = self.model(**given, **({"use_cache": False} if has_cache else {}))
        named = out.items() if hasattr(out, "items") else {"output": out}.items()
        return {key: value for key, value in named if isinstance(value, Tensor)}


def export_onnx(model: nn.Module, path: str | os.PathLike[str], inputs: Mapping[str, Tensor] | None = None) -> float:
    """Write a model as ONNX, and return by how much its outputs differ in onnxruntime: |a - b| / |a|, the largest.

    model: a LoRAModel, whose selected adapters become products of their own, or any other, a merged one among them.
    path: a new file .onnx; weights of more than 2 GB lie beside it. inputs: by name, as the model is called with; token
    ids and a mask, or a picture, unless given. Every first dimension is free, and the second of what has integers.

    The file is run on inputs of other sizes than those it was traced with, and is not there where a result differs.
    Raises EngineError, AdapterFileError where the path is taken, MissingExtraError.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name)
    target = Path(path)
    if target.suffix != ".onnx":
        raise AdapterFileError(f"{target}: the name of an ONNX file ends in .onnx, as {target}.onnx.")
    if target.exists():
        raise AdapterFileError(f"{target} is there already; name another file, or remove it.")
    given = dict(inputs) if inputs is not None else _samples(model)
    was_training = model.training
    beside = temporary(target)
    try:
        model.eval()
        beside.mkdir(parents=True)
        _write(model, beside / target.name, given)
        found = _largest(_compare(model, beside / target.name, each) for each in (given, _larger(given)))
        if not found <= _TOLERANCE:
            raise EngineError(
                f"the ONNX file's outputs differ by {found:.1e} from the model's; nothing was written. Export the "
                "merged model (merge_and_unload) in float32."
            )
        for file in sorted(beside.iterdir(), reverse=True):  # the weights before the file that names them
            file.rename(target.parent / file.name)
    finally:
        model.train(was_training)
        shutil.rmtree(beside, ignore_errors=True)
    return found


def _samples(model: Any) -> dict[str, Tensor]:
    found = sample_inputs(model)
    if model.main_input_name == "input_ids":
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        found["attention_mask"][0, -2:] = 0
    return {name: tensor.to(model.device) for name, tensor in found.items()}


def _write(model: nn.Module, file: Path, given: Mapping[str, Tensor]) -> None:
    dynamic, free = torch.export.Dim.DYNAMIC, ("batch", "length")
    shapes = tuple({at: dynamic for at, _ in zip(_free(each), free, strict=False)} for each in given.values())
    whole = _Outputs(model, [*given]).eval()
    with torch.inference_mode():
        names = [*whole(*given.values())]
    with _quietly():
        try:
            program = torch.onnx.export(
                whole, tuple(given.values()), input_names=[*given], output_names=names, dynamic_shapes=(shapes,),
                dynamo=True, verbose=False,
            )  # fmt: skip
        except Exception as error:  # of the exporter's many, all wrapped in its own
            told = " ".join(str(error.__cause__ or error).split())[:300]
            raise EngineError(f"{type(model).__name__} cannot be exported to ONNX by torch: {told}") from error
    assert program is not None
    program.save(file, external_data=sum(p.nbytes for p in model.parameters()) > _LIMIT // 2)


def _free(tensor: Tensor) -> range:
    """Return the dimensions that may have any size: the batch, of tokens and their masks the length too."""
    return range(min(tensor.ndim, 1 if tensor.is_floating_point() else 2))


def _larger(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs of another batch size and another length."""
    return {name: _longer(torch.cat([each, each[:1]])) for name, each in given.items()}


def _longer(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() or tensor.ndim < 2 else torch.cat([tensor[:, :3], tensor], 1)


@torch.inference_mode()
def _compare(model: nn.Module, file: Path, given: Mapping[str, Tensor]) -> float:
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    wanted = _Outputs(model, [*given])(*given.values())
    needed = {each.name for each in session.get_inputs()}
    found = session.run([*wanted], {name: each.cpu().numpy() for name, each in given.items() if name in needed})
    pairs = [
        (torch.as_tensor(got).double(), want.double().cpu()) for got, want in zip(found, wanted.values(), strict=True)
    ]
    return _largest(float((got - want).norm() / want.norm().clamp_min(1e-12)) for got, want in pairs)


def _largest(differences: Iterable[float]) -> float:
    """Return the largest number, NaN where one of them is none: max() keeps what it had before a NaN."""
    return float(torch.tensor([*differences], dtype=torch.float64).max())


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch's exporter from telling that torchvision is not installed, and what of itself is out of date."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logger.setLevel(level)
