"""`hf-lora convert`: an adapter in the files that an engine loads as it is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import ArgumentError, some
from .completing import engines
from .showing import hush, remark

__all__ = ["convert"]


def convert(
    adapter: Annotated[str, Argument(metavar="ADAPTER", help="a folder, or a repo of the Hub")],
    output: Annotated[Path, Argument(metavar="OUT", help="the folder to make; a file .gguf or .onnx for these")],
    engine: Annotated[
        str,
        Option(
            "--for", metavar="ENGINE", help="vllm, sglang, llama.cpp, tgi, peft, mlx or onnx", autocompletion=engines
        ),
    ],
    rank: Annotated[
        int | None, Option(min=1, help="the largest rank to write: an approximation, of which the loss is told")
    ] = None,
    max_rank: Annotated[int | None, Option(min=1, help="the server's largest rank (default: vLLM's 16)")] = None,
    base_model: Annotated[str | None, Option(metavar="ID_OR_PATH", help="the base, where it lies elsewhere")] = None,
    split_head: Annotated[
        Path | None, Option(metavar="FILE", help="a .safetensors to make of the parts trained in full (a head)")
    ] = None,
) -> None:
    """Write an adapter so that an engine loads it as it is meant.

    It becomes plain LoRA with lora_alpha = r: rsLoRA's scaling and patterns go into B, PiSSA's start into factors of
    twice the rank, fused experts are written one by one. The base's config is read, and its weights only where the
    adapter took its start out of them. For `onnx` the adapter is merged into its base, and the file is compared with it
    in onnxruntime. --split-head writes parts trained in full into a file of their own. What can only be merged (biases,
    token rows) is refused.

    Examples:

        hf-lora convert outputs/helper plain --for vllm

        hf-lora convert me/helper-lora helper.gguf --for llama.cpp

        hf-lora convert outputs/reviews plain --for sglang --split-head head.safetensors
    """
    hush()
    if engine == "onnx":
        if any(each is not None for each in (rank, max_rank, split_head)):
            raise ArgumentError("--for onnx merges the adapter: leave --rank, --max-rank and --split-head out.")
        _export(adapter, output, base_model)
        return
    from ..model.exports.for_engines import convert_for  # not above: it imports torch

    done = convert_for(
        adapter, output, engine, rank=rank, max_rank=max_rank, base_model=base_model, split_head=split_head
    )
    if done.lost is not None:
        print(done.lost)
    print(f"wrote {output}{f', and {some(done.split)} of the base into {split_head}' if done.split else ''}.")
    for each in done.checked.told if done.checked is not None else ():
        remark(f"{each.said}: {each.verdict} by {done.checked.engine}, because {each.why}.")  # type: ignore[union-attr]


def _export(adapter: str, output: Path, base_model: str | None) -> None:
    """Merge an adapter into its base and write that as ONNX."""
    from ..files.disk import free_place
    from ..model.exports.onnx import export_onnx
    from ..model.exports.plain import loaded
    from ..model.loading import opened

    free_place(output, ".onnx")
    found = export_onnx(loaded(opened(adapter), base_model).merge_and_unload(), output)
    print(f"wrote {output}; in onnxruntime its outputs differ by {found:.1e} from the model's.")
