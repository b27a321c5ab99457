"""`hf-lora merge`: a base with an adapter inside, as a model of its own."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from ..errors import ArgumentError, MergeError
from .showing import hush, remark

__all__ = ["merge"]

_MOST_ROWS = 512  # to calibrate with
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
    requantize: Annotated[
        bool, Option("--requantize", help="pack the merged weights again, as the quantised base's are")
    ] = False,
    calibration: Annotated[
        str | None,
        Option(metavar="ROWS", help="rows as it was trained on: --requantize keeps what layers make of them"),
    ] = None,
) -> None:
    """Write the model that a base and an adapter are together, in Transformers' own files.

    Weights are merged as they are written, a file at a time, so that memory holds one file of them beside what is
    mapped from the base's. The folder is there when all of it is written, or not at all.

    Examples:

        hf-lora merge outputs/reviews merged --verify

        hf-lora merge me/reviews-lora merged --dtype float32 --max-shard-size 2GB

        hf-lora merge outputs/qlora merged --requantize --calibration reviews.csv
    """
    from ..files.disk import free_place, made_whole

    merging = _Merge(adapter, base_model, dtype, max_shard_size, verify, tolerance, requantize, calibration)
    free_place(output)
    merging.check()
    hush()
    model, batches = merging.opened()
    with made_whole(output) as beside:
        told = merging.write(model, batches, beside)
    print(f"wrote {output}{told}.")


@dataclass(frozen=True)
class _Merge:
    """The options of a merge, as the command's help has them."""

    adapter: str
    base_model: str | None
    dtype: str | None
    max_shard_size: str
    verify: bool
    tolerance: float | None
    requantize: bool
    calibration: str | None

    def check(self) -> None:
        """Raise ArgumentError for options that are none, or of which one leaves another without effect."""
        if self.calibration is not None and not self.requantize:
            raise ArgumentError("--calibration chooses how packed weights are rounded: give --requantize as well.")
        if self.requantize and self.dtype is not None:
            raise ArgumentError(
                f"--dtype {self.dtype}, but --requantize keeps the base's packed format; leave one of them out."
            )
        if self.requantize and self.verify and self.tolerance is None:
            raise ArgumentError(
                "--requantize --verify: packed weights are rounded, and only you know how much is too much; say it "
                "with --tolerance, as 0.1."
            )
        if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", self.max_shard_size):
            raise ArgumentError(
                f"--max-shard-size {self.max_shard_size}: it is a number of bytes with a unit, as 500MB or 5GB."
            )

    def opened(self) -> tuple[Any, list[dict[str, Any]] | None]:
        """Return the adapter on its base, and the batches of --calibration. Raises ArgumentError, MergeError."""
        model, batches = (self._loaded(), None) if self.calibration is None else self._with_batches()
        if self.requantize:
            _packs(model)
        return model, batches

    def write(self, model: Any, batches: list[dict[str, Any]] | None, folder: Path) -> str:
        """Write the merged model, with its tokenizer or processor, and return what to tell of it."""
        packs = _packs(model) if self.requantize else ""
        named = model.peft_config["default"].base_model_name_or_path
        plain = self._saved(model, folder, batches)
        _save_processor(self.adapter, str(named if self.base_model is None else self.base_model), folder)
        told = f", packed by {packs}" if packs else f" in {str(plain.config.dtype).removeprefix('torch.')}"
        if self.verify:
            found = _verified(self._loaded(), type(plain).from_pretrained(folder), self.tolerance)
            told += f"; its outputs differ by {found:.1e} from those of base and adapter"
        return told

    def _loaded(self) -> Any:
        """Return the adapter on its base, in float unless it is to be packed again."""
        from ..model.loading import opened
        from ..model.lora_model import LoRAModel
        from ..model.settings import is_quantised

        given: dict[str, Any] = {} if self.base_model is None else {"base_model": self.base_model}
        given |= {"dtype": self.dtype} if self.dtype in _NARROW else {}
        if not self.requantize and is_quantised(opened(self.adapter).notes):
            remark(
                "the adapter was trained on a quantised base, and is merged into the base in float, which differs a "
                "little."
            )
            given["quantization_config"] = None
        return LoRAModel.from_pretrained(self.adapter, **given).eval()

    def _with_batches(self) -> tuple[Any, list[dict[str, Any]]]:
        """Return the adapter on its base, and rows of --calibration, spread over their file, as batches for it."""
        from ..training.data.reading import read_rows
        from ..training.run.using import load_run

        run, rows = load_run(self.adapter, base_model=self.base_model), str(self.calibration)
        with tempfile.TemporaryDirectory() as scratch:
            every = read_rows(rows, Path(scratch))
            found = list(every.select(range(0, len(every), -(-len(every) // _MOST_ROWS))))
            return run.model, run.batches(found, rows)

    def _saved(self, model: Any, folder: Path, batches: list[dict[str, Any]] | None) -> Any:
        """Write the merged model, and return it."""
        from ..model.merged_files import save_merged
        from ..model.quantised import is_packed

        if not is_packed(model):
            return save_merged(model, folder, None if self.dtype in _NARROW else self.dtype, self.max_shard_size)
        plain = model.merge_and_unload(dtype=self.dtype, requantize=self.requantize, calibration=batches)
        plain.save_pretrained(folder, max_shard_size=self.max_shard_size)
        return plain


def _packs(model: Any) -> str:
    """Return the name of what packs a base. Raises ArgumentError for nothing, MergeError for what has no files."""
    from ..model.quantised import is_packed, saves_as

    if not is_packed(model):
        raise ArgumentError("--requantize, but the base of the adapter is not quantised: leave it out.")
    return saves_as(model)


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
