"""Reading files strictly: a name comes once, JSON means one thing, numbers are finite, pickles run nothing."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from hf_lora import LoRAConfig
from hf_lora.errors import AdapterFileError

from .fuzz import BOMBS, archive, joined, pickled
from .peek import read_head, read_json, read_notes, read_tensors

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_head_is_read_without_the_numbers_behind_it(tmp_path: Path) -> None:
    raw = save({"a": torch.ones(2, 3), "b": torch.ones(4).half()}, metadata={"hf_lora": '{"tensors": 2}'})
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw[:-32])
    os.truncate(path, len(raw))
    entries, notes = read_head(path)
    assert (entries, notes) == ({"a": ("F32", (2, 3)), "b": ("F16", (4,))}, {"tensors": 2})
    for cut in (raw[:-1], raw[:40], raw[:7], struct.pack("<Q", 10**8 + 1) + raw[8:]):
        path.write_bytes(cut)
        with pytest.raises(AdapterFileError, match="damaged"):
            read_head(path)


@pytest.mark.parametrize(
    ("head", "match"),
    [
        (f'{{"x": {json.dumps(ENTRY)}, "x": {json.dumps(ENTRY)}}}', "'x' comes more than once"),
        ({"x": ENTRY, "__metadata__": {"a": 1}}, "damaged"),
        ({"x": []}, "damaged"),
        ({"x": {**ENTRY, "shape": [-2]}}, "damaged"),
        ({"x": {**ENTRY, "shape": [3]}}, "safetensors"),
        ({"x": {**ENTRY, "shape": [2**40, 2**40]}}, "safetensors"),
        ({"x": {**ENTRY, "data_offsets": [0, 2**40]}}, "damaged"),
    ],
)
def test_an_error_in_a_head_is_told(head: object, match: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(joined(head, bytes(8)))
    with pytest.raises(AdapterFileError, match=match):
        read_tensors(tmp_path / "x.safetensors")


def test_tensors_that_do_not_lie_on_their_own_boundary_are_read_right(tmp_path: Path) -> None:
    header = {"byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "float": {**ENTRY, "data_offsets": [1, 9]}}
    (tmp_path / "x.safetensors").write_bytes(joined(header, struct.pack("<Bff", 7, 1.5, -2)))
    got = read_tensors(tmp_path / "x.safetensors")
    assert (got["float"].tolist(), got["byte"].tolist()) == ([1.5, -2], [7])
    assert got["float"].data_ptr() % 4 == 0


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    tensors = {n: torch.ones(3) for n in "abcd"}
    tensors["b"][1], tensors["d"][2] = float("nan"), float("-inf")
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.bin")
    for name in ("x.safetensors", "x.bin"):
        with pytest.raises(AdapterFileError, match="b, d"):
            read_tensors(tmp_path / name)
    save_file({"large": torch.full((9,), 3e38)}, tmp_path / "x.safetensors")  # whose sum is not finite
    assert read_tensors(tmp_path / "x.safetensors")["large"].isfinite().all()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"r": 1, "r": 1}', "'r'"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "1e999"),
        ('{"a": ' + "9" * 30 + "}", "64"),
        ('{"a":' * 50_000, "JSON"),
        ("[]", "list"),
        ('{"a": "\\ud800"}', "surrogates"),
        ("{", "JSON"),
    ],
)
def test_json_that_could_mean_two_things_or_nothing_is_refused(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(AdapterFileError, match=match):
        read_json(tmp_path / "x.json")


def test_a_json_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(AdapterFileError, match="bytes"):
        read_json(tmp_path / "x.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_and_devices_are_not_opened_for_ever(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "x.safetensors", "x.bin"):
        os.mkfifo(tmp_path / name)
    for read, name in (
        (LoRAConfig.from_pretrained, ""),
        (read_tensors, "x.safetensors"),
        (read_tensors, "x.bin"),
        (read_notes, "x.safetensors"),
    ):
        with pytest.raises(AdapterFileError, match="pipe"):
            read(tmp_path / name)


def test_a_bare_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(AdapterFileError, match=r"1\.6.*weights_only=True"):
        read_tensors(tmp_path / "x.bin")
    torch.save({"a": torch.ones(2), "b": torch.ones(2).bfloat16()}, tmp_path / "x.bin")
    assert read_tensors(tmp_path / "x.bin").keys() == {"a", "b"}


TRAPS = [*(archive({"archive/data.pkl": bomb, "archive/version": b"3\n"}) for bomb in BOMBS),
         pickled({"x": torch.zeros(1).expand(2**40)})]  # fmt: skip


@pytest.mark.parametrize("trap", range(len(TRAPS)))
def test_a_pickle_that_would_take_for_ever_or_all_memory_is_refused(trap: int, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(TRAPS[trap])
    with pytest.raises(AdapterFileError, match="damaged or no tensor file"):
        read_tensors(tmp_path / "x.bin")


def test_a_file_that_the_system_does_not_open_is_told(tmp_path: Path) -> None:
    for name, match in (
        ("a\0b.json", "cannot be read"),
        ("x" * 300 + ".json", "cannot be read"),
        ("x.json", "not exist"),
    ):
        with pytest.raises(AdapterFileError, match=match):
            read_json(tmp_path / name)


def test_a_config_may_say_its_numbers_as_json_does(tmp_path: Path) -> None:
    values = json.loads(LoRAConfig(r=4, lora_alpha=0.5).to_json())
    (tmp_path / "adapter_config.json").write_text(json.dumps(values).replace("0.5", "5e-1"))
    assert LoRAConfig.from_pretrained(tmp_path).lora_alpha == 0.5
