"""`hf-lora merge`: a base with an adapter inside, as a model of its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from ..errors import AdapterFileError, ArgumentError, MergeError
from .showing import hush, remark

__all__ = ["merge"]

_NARROW = ("bfloat16", "float16")  # the base is loaded so, as for a training with --dtype
# The largest |a - b| / |a| of the outputs that `--verify` lets pass: rounding, in both ways to compute them.
_TOLERANCES = {4: 1e-4, 2: 3e-2}  # by the bytes of a weight


def merge(
    adapter: Annotated[str, Argument(metavar="ADAPTER", help="a folder, or a repo of the Hub")],
    output: Annotated[Path, Argument(metavar="OUT", help="the folder to make; it must not be there yet, or be empty")],
    base_model: Annotated[str | None, Option(metavar="ID_OR_PATH", help="the base, where it lies elsewhere")] = None,
    dtype: Annotated[
        Literal["float64", "float32", "bfloat16", "float16"] | None,
        Option(help="of the weights (default: the base checkpoint's); wider ones lose nothing of the adapter"),
    ] = None,
    max_shard_size: Annotated[str, Option(metavar="SIZE", help="of a file of weights, as 500MB or 5GB")] = "5GB",
    verify: Annotated[bool, Option("--verify", help="compare outputs with those of base and adapter")] = False,
    tolerance: Annotated[
        float | None,
        Option(min=0, help="what --verify lets pass (default: 1e-4, in half precision 3e-2)"),
    ] = None,
) -> None:
    """Write the model that a base and an adapter are together, in Transformers' own files.

    Weights are merged as they are written, a file at a time, so that memory holds one file of them beside what is
    mapped from the base's. The folder is there when all of it is written, or not at all.

    Examples:

        hf-lora merge outputs/reviews merged --verify

        hf-lora merge me/reviews-lora merged --dtype float32 --max-shard-size 2GB
    """
    _check_free(output)
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", max_shard_size):
        raise ArgumentError(f"--max-shard-size {max_shard_size}: it is a number of bytes with a unit, as 500MB or 5GB.")
    from ..files.disk import sweep, temporary
    from ..model.merged_files import save_merged  # not above: it imports torch
    from ..training.run.folder import check_place

    check_place(output)
    hush()
    beside = temporary(output)
    narrow = dtype if dtype in _NARROW else None
    try:
        model = _loaded(adapter, base_model, narrow)
        output.parent.mkdir(parents=True, exist_ok=True)
        sweep(output.parent, [output.name])  # of a merge that was killed
        known = model.peft_config["default"].base_model_name_or_path if base_model is None else base_model
        plain = save_merged(model, beside, None if narrow else dtype, max_shard_size)
        _save_processor(adapter, str(known), beside)
        told = f"wrote {output} in {str(plain.config.dtype).removeprefix('torch.')}"
        if verify:
            found = _verified(_loaded(adapter, base_model, narrow), type(plain).from_pretrained(beside), tolerance)
            told += f"; its outputs differ by {found:.1e} from those of base and adapter"
        if output.is_dir():
            output.rmdir()  # empty: a rename would not replace it on every system
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    print(f"{told}.")


def _check_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise AdapterFileError(f"{output} is there already; name a folder that is not, or remove it.")


def _loaded(adapter: str, base_model: str | None, dtype: str | None) -> Any:
    """Return the adapter on its base in float: into quantised weights nothing can be merged. dtype: of the base."""
    from ..model.loading import opened
    from ..model.lora_model import LoRAModel
    from ..model.settings import is_quantised

    given: dict[str, Any] = {} if base_model is None else {"base_model": base_model}
    given |= {} if dtype is None else {"dtype": dtype}
    if is_quantised(opened(adapter).notes):
        remark(
            "the adapter was trained on a quantised base, and is merged into the base in float, which differs a little."
        )
        given["quantization_config"] = None
    return LoRAModel.from_pretrained(adapter, **given).eval()


def _save_processor(adapter: str, base: str, folder: Path) -> None:
    """Write the adapter's tokenizer or processor, or else the base's."""
    from transformers import AutoProcessor

    for name in (adapter, base):
        try:
            AutoProcessor.from_pretrained(name).save_pretrained(folder)
            return
        except (OSError, ValueError, KeyError, ImportError):
            continue
    remark(f"neither {adapter} nor {base} has a tokenizer or processor, so the merged model has none.")


def _verified(separate: Any, merged: Any, tolerance: float | None) -> float:
    """Return by how much the outputs of the merged model differ. Raises MergeError where that is too much."""
    from ..model.merged_files import difference, sample_inputs

    found = difference(separate, merged, sample_inputs(merged))
    allowed = _TOLERANCES[min(separate.dtype.itemsize, 4)] if tolerance is None else tolerance
    if not found <= allowed:
        raise MergeError(
            f"the merged model's outputs differ by {found:.1e} from those of base and adapter, more than "
            f"{allowed:.1e}; nothing was written. --dtype float32 loses nothing to rounding."
        )
    return found
