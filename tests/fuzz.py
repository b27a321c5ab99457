"""Mutated adapter folders: a small network's adapter, sixty ways to damage it, and what each folder should give.

A folder is a dictionary of file name -> content while it is mutated. Every mutation says what must happen:

    ERROR   a LoRAError, whatever was drawn
    SAME    it loads as if nothing had happened
    INTACT  a LoRAError, or as if nothing had happened
    EITHER  a LoRAError, or exactly what the folder's files say, as `reference` reads them
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

CONFIG, WEIGHTS, BIN = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
INDEX = f"{WEIGHTS}.index.json"
SHARDS = ("adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors")
ERROR, SAME, INTACT, EITHER = "error", "same", "intact", "either"
MARKER = "executed"
Folder = dict[str, Any]  # name -> bytes; a callable makes the entry at a path by itself
PREFIX = "base_model.model."


class Net(nn.Module):
    """A table, a linear layer, a transposed one, and a head that is trained whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.fc = nn.Linear(6, 10)
        self.mix = Conv1D(8, 10)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(torch.tanh(self.fc(self.embed(ids))))))


# --- what the files say, by other readers than ours -----------------------------------------------------------------


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return a folder's tensors as safetensors and torch themselves read them."""
    if (folder / WEIGHTS).is_file():
        return safetensors.torch.load((folder / WEIGHTS).read_bytes())
    if (folder / INDEX).is_file():
        found: dict[str, Tensor] = {}
        for file in sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())):
            found |= safetensors.torch.load((folder / file).read_bytes())
        return found
    return torch.load(folder / BIN, weights_only=True)


def plain(key: str) -> str:
    """Return a key without the prefixes of PEFT and of other classes, which a loader may rewrite."""
    return re.sub(r"^(base_model\.|model\.)+", "", key)


def reference(base: dict[str, Tensor], folder: Path, ids: Tensor) -> Tensor:
    """Return the logits that a folder's files stand for, from the formula alone."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    values = {plain(k).replace(".base_layer", ""): v.float() for k, v in tensors_of(folder).items()}
    new = dict(base)
    for module in ("embed", "fc", "mix"):
        table = f"{module}.lora_embedding_A" in values
        a, b = (f"{module}.lora_{'embedding_' if table else ''}{x}{'' if table else '.weight'}" for x in "AB")
        if a not in values and b not in values:
            continue
        delta = scaling(config, module) * values.pop(b) @ values.pop(a)
        weight = f"{module}.weight"
        new[weight] = base[weight] + (delta if module == "fc" else delta.T)
    assert values.keys() <= base.keys(), f"nobody uses {values.keys() - base.keys()}"
    new |= values
    h = torch.tanh(new["embed.weight"][ids] @ new["fc.weight"].T + new["fc.bias"])
    h = torch.tanh(h @ new["mix.weight"] + new["mix.bias"])
    return h @ new["head.weight"].T + new["head.bias"]


def scaling(config: dict[str, Any], module: str) -> float:
    def of(patterns: dict[str, Any] | None, default: float) -> float:
        return next((v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", module)), default)

    r = of(config.get("rank_pattern"), 8 if config.get("r") is None else config["r"])
    alpha = of(config.get("alpha_pattern"), config.get("lora_alpha", 8))
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


# --- taking apart and putting together -------------------------------------------------------------------------------


def parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a safetensors file's JSON and its data."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: dict[str, Any] | str | bytes, data: bytes) -> bytes:
    """Return a safetensors file of a head, whatever it says, and data."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text + data


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def as_bin(folder: Folder) -> dict[str, Tensor]:
    """Make the weights a .bin and return its tensors."""
    tensors = safetensors.torch.load(folder.pop(WEIGHTS))
    folder[BIN] = pickled(tensors)
    return tensors


def as_shards(folder: Folder) -> dict[str, Any]:
    """Make the weights two shards and an index, and return the index."""
    tensors = safetensors.torch.load(folder.pop(WEIGHTS))
    places = {name: SHARDS[i % 2] for i, name in enumerate(tensors)}
    for shard in SHARDS:
        folder[shard] = safetensors.torch.save({k: v for k, v in tensors.items() if places[k] == shard})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
    folder[INDEX] = json.dumps(index).encode()
    return index


def edit(folder: Folder, **changes: Any) -> None:
    folder[CONFIG] = json.dumps({**json.loads(folder[CONFIG]), **changes}).encode()


MUTATIONS: dict[str, Callable[[Random, Folder], str]] = {}


def mutation(function: Callable[[Random, Folder], str]) -> Callable[[Random, Folder], str]:
    MUTATIONS[function.__name__] = function
    return function


def draw(number: int, original: Folder) -> tuple[str, Folder, str]:
    """Return the case of a number: what is done, the mutated folder, and what must happen."""
    random = Random(f"adapter folder {number}")
    name = list(MUTATIONS)[number % len(MUTATIONS)]
    folder = dict(original)
    return name, folder, MUTATIONS[name](random, folder)


def lay_out(folder: Folder, path: Path) -> None:
    """Write a folder's files."""
    path.mkdir()
    for name, content in folder.items():
        if callable(content):
            content(path / name)
        else:
            (path / name).write_bytes(content)


# --- bytes ----------------------------------------------------------------------------------------------------------


def flipped(random: Random, raw: bytes, start: int, end: int, count: int) -> bytes:
    result = bytearray(raw)
    for _ in range(count):
        result[random.randrange(start, min(end, len(raw)))] ^= 1 << random.randrange(8)
    return bytes(result)


def head_end(raw: bytes) -> int:
    return 8 + struct.unpack("<Q", raw[:8])[0]


@mutation
def flips_in_the_head(random: Random, folder: Folder) -> str:
    raw = folder[WEIGHTS]
    folder[WEIGHTS] = flipped(random, raw, 8, head_end(raw), random.choice((1, 1, 1, 5)))
    return EITHER


@mutation
def flips_in_the_length(random: Random, folder: Folder) -> str:
    folder[WEIGHTS] = flipped(random, folder[WEIGHTS], 0, 8, 1)
    return ERROR


@mutation
def flips_in_the_data(random: Random, folder: Folder) -> str:
    raw = folder[WEIGHTS]
    folder[WEIGHTS] = flipped(random, raw, head_end(raw), len(raw), random.choice((1, 1, 10, 300)))
    return EITHER


@mutation
def flips_in_a_bin(random: Random, folder: Folder) -> str:
    as_bin(folder)
    folder[BIN] = flipped(random, folder[BIN], 0, 10**9, random.choice((1, 1, 1, 20)))
    return INTACT  # an archive has checksums


@mutation
def flips_in_the_config(random: Random, folder: Folder) -> str:
    folder[CONFIG] = flipped(random, folder[CONFIG], 0, 10**9, random.choice((1, 1, 1, 5)))
    return EITHER


@mutation
def cut_off(random: Random, folder: Folder) -> str:
    kind = random.randrange(3)
    if kind == 1:
        as_bin(folder)
    elif kind == 2:
        as_shards(folder)
    name = random.choice(sorted(folder))
    folder[name] = folder[name][: random.randrange(len(folder[name]) - 2)]
    return ERROR


@mutation
def extended(random: Random, folder: Folder) -> str:
    folder[WEIGHTS] += random.randbytes(random.choice((1, 4, 64, 5000)))
    return ERROR


@mutation
def a_run_of_zeros(random: Random, folder: Folder) -> str:
    name = random.choice((CONFIG, WEIGHTS))
    raw = folder[name]
    start, length = random.randrange(len(raw) - 8), random.randrange(1, 200)
    folder[name] = raw[:start] + bytes(len(raw[start : start + length])) + raw[start + length :]
    return EITHER


@mutation
def other_content(random: Random, folder: Folder) -> str:
    weights = random.choice((b"", b"\0", b"\0" * 8, b"\0" * 64, b"{}", b"<html>404</html>", random.randbytes(500)))
    weights = random.choice((weights, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"))
    if random.random() < 0.3:
        folder[BIN] = weights
        del folder[WEIGHTS]
    else:
        folder[WEIGHTS] = weights
    return ERROR


@mutation
def files_of_one_another(random: Random, folder: Folder) -> str:
    folder[CONFIG], folder[WEIGHTS] = folder[WEIGHTS], folder[CONFIG]
    return ERROR


# --- a head that lies ------------------------------------------------------------------------------------------------


def one(random: Random, header: dict[str, Any]) -> str:
    return random.choice(sorted(header.keys() - {"__metadata__"}))


@mutation
def another_length(random: Random, folder: Folder) -> str:
    raw = folder[WEIGHTS]
    length = head_end(raw) - 8
    lies = (0, 1, 2, length - 1, length + 1, length - 8, len(raw), 10**8, 10**8 + 1, 2**31, 2**40, 2**63, 2**64 - 1)
    folder[WEIGHTS] = struct.pack("<Q", random.choice(lies)) + raw[8:]
    return ERROR


@mutation
def other_offsets(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    entry = header[one(random, header)]
    begin, end = entry["data_offsets"]
    lies = [
        [begin, end + 4], [begin + 4, end], [begin - 4, end - 4], [end, begin], [0, 0], [-4, end], [begin], [], None,
        [begin, end, end], [float(begin) + 0.5, end], [str(begin), str(end)], [begin, 2**62], [2**62, 2**62 + end - begin],
        [True, end], {"begin": begin}, [2**64, 2**65], [-(2**63), end], [begin, 10**30], "0:4", [len(data), len(data) + end - begin],
    ]  # fmt: skip
    entry["data_offsets"] = random.choice([lie for lie in lies if lie != [begin, end]])
    folder[WEIGHTS] = joined(header, data)
    return ERROR


@mutation
def offsets_that_overlap(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    names = [one(random, header) for _ in range(2)]
    entry = header[names[0]]
    if random.random() < 0.5 or names[0] == names[1]:  # a hole: everything behind moves on
        for value in header.values():
            if "data_offsets" in value and value["data_offsets"][0] >= entry["data_offsets"][0]:
                value["data_offsets"] = [at + 4 for at in value["data_offsets"]]
        data += bytes(4)
    else:
        begin = header[names[1]]["data_offsets"][0]
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["data_offsets"] = [begin, begin + size]
    folder[WEIGHTS] = joined(header, data)
    return ERROR


@mutation
def places_exchanged(random: Random, folder: Folder) -> str:
    """Two tensors take each other's place in the file: values, not lies."""
    header, data = parts(folder[WEIGHTS])
    first, second = header[one(random, header)], header[one(random, header)]
    first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]
    folder[WEIGHTS] = joined(header, data)
    return EITHER


@mutation
def other_shapes(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    entry = header[random.choice([n for n in sorted(header) if len(header[n].get("shape", ())) == 2])]
    rows, columns = entry["shape"]
    lies = [
        [rows * columns], [rows, columns, 1], [1, rows, columns], [rows + 1, columns], [rows, columns - 1], [], [rows],
        [0, columns], [2**40, 0], [0, 2**62, 2**62], [-rows, -columns], [float(rows), columns], [True, rows * columns],
        [2**63, 2**63], [2**32, 2**32], [rows, None], "2x6", None, {"0": rows}, [[rows], columns], [1] * 5000,
        [2**64 + rows, columns], [str(rows), columns],
    ]  # fmt: skip
    if rows != columns:
        lies += [[columns, rows]] * 3
    entry["shape"] = random.choice(lies)
    folder[WEIGHTS] = joined(header, data)
    return ERROR


@mutation
def other_dtypes(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    entry = header[one(random, header)]
    entry["dtype"] = random.choice(
        ["I32", "U32", "I64", "F64", "F16", "BF16", "BOOL", "U8", "F4", "F6_E2M3", "F8_E8M0", "F8_E4M3", "C64", "f32", "",
         "X" * 10_000, "__class__", None, 32, True, ["F32"], {}]
    )  # fmt: skip
    folder[WEIGHTS] = joined(header, data)
    return ERROR


@mutation
def keys_twice(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    name = one(random, header)
    text = json.dumps(header)
    entry = json.dumps(header[name])
    lies = (
        f'{{{json.dumps(name)}: {entry}, {text[1:]}',
        text[:-1] + f', {json.dumps(name)}: {entry}}}',
        text.replace('"dtype": "F32"', '"dtype": "F32", "dtype": "F32"', 1),
        text.replace('{"__metadata__": ', '{"__metadata__": {}, "__metadata__": ', 1),
    )  # fmt: skip
    folder[WEIGHTS] = joined(random.choice(lies), data)
    return ERROR


@mutation
def odd_entries(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    name = one(random, header)
    lies: list[Any] = [None, [], "", 1, {}, {"dtype": "F32"}, {**header[name], "extra": 1}, [header[name]]]
    header[name] = random.choice(lies)
    folder[WEIGHTS] = joined(header, data)
    return ERROR


@mutation
def odd_metadata(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    header["__metadata__"] = random.choice(
        [None, [], "x", {"a": 1}, {"a": None}, {"hf_lora": {}}, {"a": {"b": "c"}}, 7]
    )
    folder[WEIGHTS] = joined(header, data)
    return ERROR


@mutation
def odd_notes(random: Random, folder: Folder) -> str:
    """Our own notes may be anything: they are somebody's words."""
    header, data = parts(folder[WEIGHTS])
    notes = random.choice(
        ["", "{", "[]", "null", "7", "[" * 50_000, '{"id2label": 3}', '{"id2label": {"x": []}}', '{"config_sha256": 3}',
         '{"config_sha256": "00"}', '{"id2label": null}', "\x00", "NaN"]
    )  # fmt: skip
    header["__metadata__"] = {"format": "pt", "hf_lora": notes}
    folder[WEIGHTS] = joined(header, data)
    return EITHER


@mutation
def a_head_that_is_no_object(random: Random, folder: Folder) -> str:
    text, data = random.choice(
        [("[" * 100_000, b""), ('{"a":' * 100_000, b""), ("[]", b""), ("null", b""), ('"x"', b""), ("{", b""), ("{}", b""),
         (b"\xff\xfe{}", b""), (b"{\xe9}", b""), ("  {}", b""), ('{"a": NaN}', b""), ('{"\\ud800": {}}', b""), ("{}\0\0", b""),
         ("9" * 10_000, b""), ('{"__metadata__": {}}', b""), ("{}", b"1234")]
    )  # fmt: skip
    folder[WEIGHTS] = joined(text, data)
    return ERROR


# --- names ----------------------------------------------------------------------------------------------------------


@mutation
def renamed(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    old = one(random, header)
    at = random.randrange(len(PREFIX), len(old))
    lies = (
        old[:at] + random.choice("xyzQ_7") + old[at:], old[:at] + old[at + 1 :], old.replace("lora_", "lora_x"), old + ".",
        old + ".default", old.upper(), "." + old, old.replace(".", "..", 3), "", "x" * 5000, "..", "/etc/passwd", "\0",
        "__class__", f"{PREFIX}fc.__init__", f"{PREFIX}", PREFIX + "fc", PREFIX + "fc.lora_A", f"{PREFIX}.lora_A.weight",
        f"{PREFIX}fc.base_layer.base_layer.lora_A.weight", "lora_A.weight", f"{PREFIX}fc.adapters", f"{PREFIX}training",
    )  # fmt: skip
    new = random.choice([lie for lie in lies if lie not in header])
    folder[WEIGHTS] = joined({new if k == old else k: v for k, v in header.items()}, data)
    return ERROR


@mutation
def names_exchanged(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    first, second = one(random, header), one(random, header)
    other = {first: second, second: first}
    folder[WEIGHTS] = joined({other.get(k, k): v for k, v in header.items()}, data)
    return EITHER


@mutation
def dropped(random: Random, folder: Folder) -> str:
    tensors = safetensors.torch.load(folder[WEIGHTS])
    for _ in range(random.choice((1, 1, 2, 3))):
        del tensors[random.choice(sorted(tensors))]
    folder[WEIGHTS] = safetensors.torch.save(tensors)
    return ERROR


@mutation
def added(random: Random, folder: Folder) -> str:
    tensors = safetensors.torch.load(folder[WEIGHTS])
    names = ("fc.lora_C.weight", "nowhere.lora_A.weight", "fc.lora_magnitude_vector", "fc.lora_B.bias", "fc", "other",
             "fc.nobody", "fc.lora_embedding_A", "embed.lora_A.weight", "head.lora_A.weight")  # fmt: skip
    tensors[PREFIX + random.choice(names)] = torch.ones(random.choice(((), (1,), (2, 6), (10,), (0,))))
    folder[WEIGHTS] = safetensors.torch.save(tensors)
    return ERROR


@mutation
def other_prefixes(random: Random, folder: Folder) -> str:
    header, data = parts(folder[WEIGHTS])
    new = random.choice(("", "model.", "base_model.", "base_model.model.model.", "base_model.model.base_model.model."))
    folder[WEIGHTS] = joined({k.replace(PREFIX, new): v for k, v in header.items()}, data)
    return EITHER


# --- values ---------------------------------------------------------------------------------------------------------


@mutation
def not_finite(random: Random, folder: Folder) -> str:
    tensors = as_bin(folder) if random.random() < 0.3 else safetensors.torch.load(folder[WEIGHTS])
    name = random.choice(sorted(tensors))
    dtype = random.choice((torch.float32, torch.float64, torch.float16, torch.bfloat16))
    tensors[name] = tensors[name].to(dtype)
    values = [math.nan, math.inf, -math.inf, *([1e300] if dtype is torch.float64 else [])]
    tensors[name].view(-1)[random.randrange(tensors[name].numel())] = random.choice(values)
    if BIN in folder:
        folder[BIN] = pickled(tensors)
    else:
        folder[WEIGHTS] = safetensors.torch.save(tensors)
    return ERROR


@mutation
def very_large(random: Random, folder: Folder) -> str:
    tensors = safetensors.torch.load(folder[WEIGHTS])
    tensors[random.choice(sorted(tensors))].fill_(random.choice((3e38, -3e38, 1e20, 1e-45)))
    folder[WEIGHTS] = safetensors.torch.save(tensors)
    return EITHER


@mutation
def half_or_double(random: Random, folder: Folder) -> str:
    tensors = as_bin(folder) if random.random() < 0.3 else safetensors.torch.load(folder[WEIGHTS])
    for name in tensors:
        tensors[name] = tensors[name].to(
            random.choice((torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn))
        )
    if BIN in folder:
        folder[BIN] = pickled(tensors)
    else:
        folder[WEIGHTS] = safetensors.torch.save(tensors)
    return EITHER


@mutation
def no_numbers_to_train(random: Random, folder: Folder) -> str:
    tensors = safetensors.torch.load(folder[WEIGHTS])
    name = random.choice(sorted(tensors))
    tensors[name] = tensors[name].to(random.choice((torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64)))
    folder[WEIGHTS] = safetensors.torch.save(tensors)
    return ERROR


@mutation
def another_rank(random: Random, folder: Folder) -> str:
    tensors = safetensors.torch.load(folder[WEIGHTS])
    name = random.choice([n for n in sorted(tensors) if "lora_" in n])
    axis = 0 if "A" in name.rpartition("lora_")[2] else 1
    tensors[name] = torch.cat([tensors[name], tensors[name]], axis)
    folder[WEIGHTS] = safetensors.torch.save(tensors)
    return ERROR


@mutation
def transposed(random: Random, folder: Folder) -> str:
    tensors = safetensors.torch.load(folder[WEIGHTS])
    name = random.choice([n for n in sorted(tensors) if tensors[n].ndim == 2])
    tensors[name] = tensors[name].T.contiguous()
    folder[WEIGHTS] = safetensors.torch.save(tensors)
    return ERROR


# --- the config -----------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, 1e308, 10**18, 10**30, "", "x", "2", [], [0], ["fc"], ["nowhere"], [None], [[]], {},
    {"fc": 4}, {"(": 1}, {"fc": -1}, {"fc": None}, {"fc": "4"}, "all", "(", "a" * 100_000, "\0", "../../..", "é", [[[[]]]],
    {"a": {"b": {"c": []}}}, "\ud800", ["\udfff"], [1e308, -1], {"": ""},
]  # fmt: skip


@mutation
def a_key_of_another_type(random: Random, folder: Folder) -> str:
    edit(folder, **{random.choice(sorted(json.loads(folder[CONFIG]))): random.choice(ODD)})
    return EITHER


@mutation
def several_keys_of_another_type(random: Random, folder: Folder) -> str:
    keys = sorted(json.loads(folder[CONFIG]))
    edit(folder, **{random.choice(keys): random.choice(ODD) for _ in range(4)})
    return EITHER


@mutation
def a_key_that_matters(random: Random, folder: Folder) -> str:
    keys = ("r", "lora_alpha", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "bias", "use_dora",
            "use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern", "target_parameters", "lora_bias",
            "trainable_token_indices", "fan_in_fan_out", "lora_dropout", "task_type", "exclude_modules")  # fmt: skip
    edit(folder, **{random.choice(keys): random.choice(ODD)})
    return EITHER


@mutation
def keys_deleted(random: Random, folder: Folder) -> str:
    values = json.loads(folder[CONFIG])
    for _ in range(random.choice((1, 1, 3, 20))):
        values.pop(random.choice(sorted(values)), None)
    folder[CONFIG] = json.dumps(values).encode()
    return EITHER


@mutation
def unknown_keys(random: Random, folder: Folder) -> str:
    empty = random.random() < 0.5
    value = random.choice([None, False, {}, [], ""] if empty else [1, "x", True, [0], {"a": 1}, 0.5])
    edit(folder, **{random.choice(("new_maths", "__class__", "", "self", "kwargs", "other", "cls")): value})
    return EITHER if empty else ERROR


@mutation
def alphas(random: Random, folder: Folder) -> str:
    literal = random.choice(
        ["0", "-3", "0.0", "1e400", "NaN", "Infinity", "-Infinity", '"16"', "null", "[]", "true", "9" * 400]
    )
    folder[CONFIG] = re.sub(rb'"lora_alpha": [^,]+', f'"lora_alpha": {literal}'.encode(), folder[CONFIG])
    return ERROR


@mutation
def honest_alphas(random: Random, folder: Folder) -> str:
    edit(folder, lora_alpha=random.choice((1, 2, 0.5, 64, 1e-9)), use_rslora=random.random() < 0.5)
    if random.random() < 0.5:
        edit(
            folder, alpha_pattern={random.choice(("fc", "mix", "em.*", "c", "nowhere", ".*")): random.choice((1, 7.5))}
        )
    return EITHER


@mutation
def ranks(random: Random, folder: Folder) -> str:
    if random.random() < 0.5:
        edit(folder, r=random.choice((1, 4, 8, 10**9, 2**62, 2**63)))
    else:
        edit(folder, rank_pattern={random.choice(("fc", "mix|fc")): random.choice((1, 4, 10**9, 2**62))})
    return ERROR


@mutation
def targets(random: Random, folder: Folder) -> str:
    names = ["fc", "mix", "embed", "head", "", "nowhere", ".*", "f", "net.fc", "fc.weight", "fc\0"]
    value: Any = random.choice(
        [random.sample(names, random.randrange(5)), "|".join(random.sample(names, 2)), ".*", "all-linear", "auto", "attention",
         "(?P<", "[", "(fc|mix|embed)", names * 1000, ["fc"] * 10_000]
    )  # fmt: skip
    edit(folder, target_modules=value)
    return EITHER


@mutation
def saved_modules(random: Random, folder: Folder) -> str:
    edit(
        folder,
        modules_to_save=random.choice([None, [], ["nowhere"], ["fc"], ["head", "head"], ["head.weight"], "head", [""]]),
    )
    return EITHER


@mutation
def other_methods(random: Random, folder: Folder) -> str:
    edit(folder, peft_type=random.choice(["IA3", "LOHA", None, "", "lora", 1, ["LORA"], {"LORA": 1}, "LORA ", True]))
    return ERROR


@mutation
def numbers_that_are_none(random: Random, folder: Folder) -> str:
    key = random.choice(("r", "lora_dropout", "base_model_name_or_path", "nobody"))
    literal = random.choice(
        ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 30, "0x10", "01", "1_000", ".5")
    )
    folder[CONFIG] = folder[CONFIG].rstrip()[:-1] + f', "{key}x": {literal}}}'.encode()
    return ERROR


@mutation
def config_keys_twice(random: Random, folder: Folder) -> str:
    key = random.choice(("r", "lora_alpha", "peft_type", "use_dora"))
    values = json.loads(folder[CONFIG])
    folder[CONFIG] = folder[CONFIG].rstrip()[:-1] + f', "{key}": {json.dumps(values[key])}}}'.encode()
    return ERROR


@mutation
def other_json(random: Random, folder: Folder) -> str:
    folder[CONFIG] = random.choice(
        [b"", b" ", b"[]", b"null", b"3", b'"x"', b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"{'r': 8}", b"r: 8", b"\0", b"{} {}",
         b"[" + folder[CONFIG] + b"]", folder[CONFIG] * 2, b" " * (17 * 2**20) if random.random() < 0.2 else b"{"]
    )  # fmt: skip
    return ERROR


@mutation
def other_encodings(random: Random, folder: Folder) -> str:
    text = folder[CONFIG].decode()
    encoding = random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le", "latin-1"))
    text = text.replace('"peft_version": null', '"peft_version": "é"')
    folder[CONFIG] = text.encode(encoding)
    return ERROR


@mutation
def another_layout_of_the_same_json(random: Random, folder: Folder) -> str:
    values = json.loads(folder[CONFIG])
    keys = random.sample(sorted(values), len(values))
    text = json.dumps({k: values[k] for k in keys}, indent=random.choice((None, 1, "\t")))
    folder[CONFIG] = (random.choice(("", "\n", "  \r\n")) + text + random.choice(("", "\n\n"))).encode()
    return SAME


# --- an index, a pickle ----------------------------------------------------------------------------------------------


@mutation
def a_lying_index(random: Random, folder: Folder) -> str:
    index = as_shards(folder)
    places = index["weight_map"]
    name = random.choice(sorted(places))
    kind = random.randrange(6)
    if kind == 0:
        places[name] = random.choice(
            ["../../secret.safetensors", "/etc/passwd", "nowhere.safetensors", "", ".", CONFIG, INDEX, None, 3, [], "a\0b", "..",
             "x" * 5000, f"../{SHARDS[0]}", f"./../{SHARDS[0]}"]
        )  # fmt: skip
    elif kind == 1:
        places[name] = SHARDS[1 - SHARDS.index(places[name])]
    elif kind == 2:
        places[f"{PREFIX}nowhere.lora_A.weight"] = SHARDS[0]
    elif kind == 3:
        del places[name]
    elif kind == 4:
        index["weight_map"] = random.choice([None, [], "x", {}, [places], 3, {"a": {"b": "c"}}])
    else:
        del index["weight_map"]
    folder[INDEX] = json.dumps(index).encode()
    return ERROR


@mutation
def shards(random: Random, folder: Folder) -> str:
    """Shards as they should be: right, where they can be read; damaged ones are not."""
    as_shards(folder)
    if random.random() < 0.5:
        return EITHER
    shard = random.choice(SHARDS)
    if random.random() < 0.5:
        del folder[shard]
    else:
        folder[shard] = folder[shard][:-4]
    return ERROR


class _Payload:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.code,)


@mutation
def a_pickle_that_runs_code(random: Random, folder: Folder) -> str:
    tensors: dict[str, Any] = as_bin(folder)
    payload = _Payload(f"touch {MARKER}")
    tensors[random.choice(sorted(tensors))] = payload
    kind = random.randrange(4)
    if kind == 0:
        folder[BIN] = pickled(tensors)
    elif kind == 1:
        folder[BIN] = pickled(payload)
    elif kind == 2:
        folder[BIN] = pickle.dumps(payload, protocol=random.randrange(6))
    else:
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=False)
        folder[BIN] = file.getvalue()
    return ERROR


@mutation
def archives_that_unfold(random: Random, folder: Folder) -> str:
    as_bin(folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(folder[BIN])) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        if random.random() < 0.3:
            new.writestr("archive/data/99", bytes(20 * 2**20))
    folder[BIN] = packed.getvalue()
    return ERROR


def archive(code: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as new:
        new.writestr("archive/data.pkl", code)
        new.writestr("archive/version", b"3\n")
        new.writestr("archive/data/0", bytes(64))
    return packed.getvalue()


@mutation
def pickles_that_take_for_ever(random: Random, folder: Folder) -> str:
    """Tuples in tuples, each holding the one before twice, as a key; sizes that nobody has."""
    as_bin(folder)
    again = b"2" if random.random() < 0.5 else b"q\x00h\x00"
    bombs = (
        b"\x80\x02}" + b")" + (again + b"\x86") * 80 + b"K\x01s.",
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
        b"\x80\x02ctorch\nFloatStorage\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02X\xff\xff\xff\x7f.",
    )
    folder[BIN] = archive(random.choice(bombs))
    return ERROR


@mutation
def pickles_of_something_else(random: Random, folder: Folder) -> str:
    tensors = as_bin(folder)
    name = random.choice(sorted(tensors))
    shape = tensors[name].shape
    others: list[Any] = [
        list(tensors.values()), {}, {1: torch.ones(1)}, {"model": tensors}, 3, None, "x", torch.ones(3), Path("x"),
        {**tensors, name: 3}, {**tensors, name: None}, {**tensors, name: [1.0]}, {**tensors, name: torch.zeros(1).expand(2**28)},
        {**tensors, name: torch.ones(2, 2).to_sparse()}, {**tensors, name: torch.empty(shape, device="meta")},
        {**tensors, b"x": torch.ones(1)}, {**tensors, name: torch.ones(shape, dtype=torch.int64)},
    ]  # fmt: skip
    folder[BIN] = pickled(random.choice(others))
    return ERROR


@mutation
def pickles_of_views(random: Random, folder: Folder) -> str:
    """Views of one memory, strided ones, parameters: all of them ordinary tensors."""
    tensors: dict[str, Any] = as_bin(folder)
    name = random.choice(sorted(tensors))
    kind = random.randrange(3)
    if kind == 0:
        tensors[name] = nn.Parameter(tensors[name])
    elif kind == 1:
        tensors[name] = torch.stack([tensors[name], tensors[name]], -1)[..., 1]
    else:
        flat = torch.cat([t.reshape(-1) for t in tensors.values()]).split([t.numel() for t in tensors.values()])
        tensors = {k: part.view(t.shape) for (k, t), part in zip(tensors.items(), flat, strict=True)}
    folder[BIN] = pickled(tensors)
    return SAME


# --- files ----------------------------------------------------------------------------------------------------------


@mutation
def no_file(random: Random, folder: Folder) -> str:
    name = random.choice((CONFIG, WEIGHTS))
    makers: list[Callable[[Path], Any]] = [
        Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.symlink_to("nowhere"), lambda path: None,
        lambda path: path.symlink_to("/dev/zero"),
    ]  # fmt: skip
    folder[name] = random.choice(makers)
    if random.random() < 0.3:
        as_if = folder[name]
        folder[name.replace(".safetensors", ".bin")] = as_if
    return ERROR


@mutation
def litter(random: Random, folder: Folder) -> str:
    """What a killed save leaves: it is neither read nor in the way."""
    values = json.loads(folder[CONFIG])
    other = json.dumps({**values, "lora_alpha": 99}).encode()
    names = (f".{CONFIG}.pending", f".{CONFIG}.ab12cd34.tmp", f".{WEIGHTS}.ab12cd34.tmp", "other.safetensors", ".lock")
    for name in random.sample(names, random.randrange(1, 5)):
        folder[name] = random.choice((other, b"", folder[WEIGHTS], random.randbytes(100), folder[CONFIG]))
    return SAME
