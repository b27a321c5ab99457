"""A model as ONNX, with its adapters live or merged, for any batch size and length; compared in onnxruntime."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ArgumentError, EngineError, MergeError
from ...files.disk import free_place, room_beside
from ...formats.engines.factors import package
from ...layers.specialising import is_pretrained
from ..merged_files import sample_inputs
from ..quantised import is_packed

_TOLERANCE = 1e-3  # |a - b| / |a| of an output: float32 in another order
_LIMIT = 2**31  # bytes of one protobuf
_OTHER = "Try the other of live adapters and a merged model (merge_and_unload)."
_LOUD = ("torch.onnx", "onnxscript", "onnx_ir", "transformers.modeling_utils")  # loggers
_MORE = 3  # tokens that the longer inputs have


class _Outputs(nn.Module):
    """A model that takes its inputs by position, and returns the tensors of its output by name without a cache."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.model, self.names = model, [*names]

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs that are tensors."""
        has_cache = hasattr(getattr(self.model, "config", None), "use_cache")
        given = dict(zip(self.names, inputs, strict=True))
        out = self.model(**given, **({"use_cache": False} if has_cache else {}))
        named = out.items() if hasattr(out, "items") else {"output": out}.items()
        return {key: value for key, value in named if isinstance(value, Tensor)}


def export_onnx(model: nn.Module, path: str | os.PathLike[str], inputs: Mapping[str, Tensor] | None = None) -> float:
    """Write a model as ONNX, and return by how much its outputs differ in onnxruntime: |a - b| / |a|, the largest.

    model: a LoRAModel, whose selected adapters become products of their own, or any other, a merged one among them; it
    stays as it is. path: a new file .onnx; weights of more than 1 GiB lie beside it. inputs: by name, as the model is
    called with; token ids and a mask, or a picture, unless given. Every first dimension is free, and the second of
    token ids and of integers as long as they are.

    The file computes in float32 whatever the model's dtype, and attention as products and a softmax ("eager"). It is
    run on inputs of other sizes than those it was traced with, and is not there where a result differs.
    Raises EngineError, ArgumentError, AdapterFileError where the path is taken or cannot be written, MissingExtraError.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name)
    target = free_place(path, ".onnx")
    free_place(_weights_of(target), ".data")
    plain = _portable(model)
    given = _samples(plain) if inputs is None else _checked(inputs)
    with room_beside(target) as beside:
        beside.mkdir()
        return _written(plain, given, beside, target)


def _written(model: nn.Module, given: dict[str, Tensor], beside: Path, target: Path) -> float:
    """Write the file into a folder beside its place, move it there where it is right, and return its difference."""
    resized, single = _resized(model, given), {name: each[:1] for name, each in given.items()}
    wanted = [_computed(model, each) for each in (given, resized, single)]
    # A size of 1 would be taken for one that never changes.
    traced = resized if any(1 in each.shape[: _free(name, given)] for name, each in given.items()) else given
    _write(model, beside / target.name, traced, [*wanted[0]])
    found = _largest(
        _compare(beside / target.name, each, outputs)
        for each, outputs in zip((given, resized, single), wanted, strict=True)
    )
    if not found <= _TOLERANCE:
        raise EngineError(
            f"the ONNX file's outputs differ by {found:.1e} from the model's; nothing was written. {_OTHER}"
        )
    for file in sorted(beside.iterdir(), reverse=True):  # the weights before the file that names them
        file.rename(target.parent / file.name)
    return found


def _weights_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.data")


def _portable(model: Any) -> Any:
    """Return a copy in eval mode and float32, whose attention is plain products. What is float32 is the model's own.

    onnxruntime computes bfloat16 nowhere, and float64 in parts. Fused attention is exported right for some sizes and
    masks alone, grouped products of experts not at all.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"a model is wanted, not a {type(model).__name__}.")
    if is_packed(model):
        raise EngineError(
            f"{type(model).__name__} is quantised, and torch exports no packed weights to ONNX: merge the adapter into "
            "a plain model first (merge_and_unload, or hf-lora merge), and export that."
        )
    held = (*model.parameters(), *model.buffers())
    plain: Any = copy.deepcopy(model, {id(each): _in_float32(each) for each in held}).eval()
    own: Any = getattr(model, "_lora", None)
    if own is not None:
        plain._lora.instead = own.route  # of a block around the call as well
    with _quietly():
        for module in filter(is_pretrained, plain.modules()):
            module.set_attn_implementation("eager")
            if getattr(module.config, "_experts_implementation", None) == "grouped_mm":
                module.set_experts_implementation("batched_mm")
    return plain


def _in_float32(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == torch.float32:
        return tensor
    cast = tensor.detach().float()
    return nn.Parameter(cast, requires_grad=False) if isinstance(tensor, nn.Parameter) else cast


def _samples(model: Any) -> dict[str, Tensor]:
    try:
        found = sample_inputs(model)
    except (MergeError, AttributeError) as error:
        raise EngineError(
            f"nobody knows what a {type(model).__name__} takes: give inputs={{name: tensor}}, as it is called with."
        ) from error
    if model.main_input_name == "input_ids":
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        found["attention_mask"][0, -2:] = 0
    return {name: tensor.to(model.device) for name, tensor in found.items()}


def _checked(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a caller's inputs, numbers in float32. Raises ArgumentError for what is no mapping of tensors."""
    if not isinstance(inputs, Mapping) or not inputs or not all(map(_has_batch, inputs.values())):
        raise ArgumentError("inputs= is a mapping of names to tensors with a batch, as a tokenizer returns it.")
    return {str(name): _in_float32(each.detach()).contiguous() for name, each in inputs.items()}


def _has_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) > 0


def _write(model: nn.Module, file: Path, given: Mapping[str, Tensor], outputs: list[str]) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(range(_free(name, given)), dynamic) for name in given)
    with _quietly():
        try:
            program = torch.onnx.export(
                _Outputs(model, given).eval(), tuple(given.values()), input_names=[*given], output_names=outputs,
                dynamic_shapes=(shapes,), dynamo=True, verbose=False,
            )  # fmt: skip
        except Exception as error:  # of the exporter's many, all wrapped in its own
            raise EngineError(
                f"{type(model).__name__} cannot be exported to ONNX by torch {torch.__version__}: "
                f"{_told(error.__cause__ or error)} {_OTHER}"
            ) from error
    assert program is not None
    program.save(file, external_data=sum(p.nbytes for p in model.parameters()) > _LIMIT // 2)


def _free(name: str, given: Mapping[str, Tensor]) -> int:
    """Return how many dimensions may have any size: the batch, of tokens and what is as long as they the length too."""
    integers = {key: each for key, each in given.items() if not each.is_floating_point() and each.ndim > 1}
    tokens = {key: each for key, each in integers.items() if key.endswith("ids") or len(integers) == len(given)}
    lengths = {each.shape[1] for each in tokens.values()}
    return 2 if name in integers and integers[name].shape[1] in lengths else 1


def _resized(model: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs of another batch size and another length, a larger one where the model has positions for it."""
    longest = max((each.shape[1] for name, each in given.items() if _free(name, given) > 1), default=0)
    has_room = longest + 2 * _MORE <= _positions(model)

    def resized(name: str, tensor: Tensor) -> Tensor:
        wider = torch.cat([tensor, tensor[:1]])
        if _free(name, given) == 1:
            return wider
        return torch.cat([wider[:, :_MORE], wider], 1) if has_room else wider[:, _MORE:].contiguous()

    return {name: resized(name, each) for name, each in given.items()}


def _positions(model: Any) -> float:
    """Return how many tokens a model has positions for, infinity where nobody says."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    keys = ("max_position_embeddings", "max_target_positions")
    return min((n for key in keys if isinstance(n := getattr(text, key, None), int)), default=float("inf"))


def _computed(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's outputs by name. Raises EngineError where it does not take these inputs."""
    try:
        with torch.inference_mode():
            found: dict[str, Tensor] = _Outputs(model, given)(*given.values())
    except Exception as error:  # of the model's own code
        raise EngineError(
            f"{type(model).__name__} cannot be called with {_sizes(given)}: {_told(error)} Give "
            "inputs={name: tensor} that it takes in any batch size and length."
        ) from error
    if not found:
        raise EngineError(f"{type(model).__name__} returns no tensor by a name, so there is nothing to export.")
    return found


def _sizes(given: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(each.shape)}" for name, each in given.items())


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") + "."


def _compare(file: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what it raises is told below
    try:
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        needed = {each.name for each in session.get_inputs()}
        found = session.run([*wanted], {name: each.cpu().numpy() for name, each in given.items() if name in needed})
    except Exception as error:  # of its own classes
        raise EngineError(
            f"onnxruntime cannot run what torch exported on {_sizes(given)}, so nothing was written: "
            f"{_told(error)} {_OTHER}"
        ) from error
    pairs = [
        (torch.as_tensor(got).double(), want.double().cpu()) for got, want in zip(found, wanted.values(), strict=True)
    ]
    return _largest(float((got - want).norm() / want.norm().clamp_min(1e-12)) for got, want in pairs)


def _largest(differences: Iterable[float]) -> float:
    """Return the largest number, NaN where one of them is none: max() keeps what it had before a NaN."""
    return float(torch.tensor([*differences], dtype=torch.float64).max())


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter from telling that torchvision is not installed, what it folds, and what is out of date."""
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
