"""Damaged adapter folders: a small network's adapter, a table of edits, and what each edited folder should give.

A folder is a dictionary of file name -> content while it is edited. What must happen stands beside each edit:

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
from collections.abc import Callable, Sequence
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
PREFIX = "base_model.model."
Folder = dict[str, Any]  # name -> bytes; a callable makes the entry at a path by itself
Edit = Callable[[Random, Folder], Any]


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
    if (folder / INDEX).is_file():
        files = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    else:
        files = [WEIGHTS] if (folder / WEIGHTS).is_file() else []
    found: dict[str, Tensor] = {}
    for file in files:
        found |= safetensors.torch.load((folder / file).read_bytes())
    return found or torch.load(folder / BIN, weights_only=True)


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
        if a in values or b in values:
            delta = scaling(config, module) * values.pop(b) @ values.pop(a)
            new[f"{module}.weight"] = base[f"{module}.weight"] + (delta if module == "fc" else delta.T)
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


def joined(header: Any, data: bytes) -> bytes:
    """Return a safetensors file of a head, whatever it says, and data."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def pickled(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as new:
        for name, content in entries.items():
            new.writestr(name, content)
    return packed.getvalue()


def flipped(random: Random, raw: bytes, start: int = 0, end: int = 10**9) -> bytes:
    result = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 10, 100))):
        result[random.randrange(start, min(end, len(raw)))] ^= 1 << random.randrange(8)
    return bytes(result)


# --- makers of edits -------------------------------------------------------------------------------------------------


def put(file: str, *contents: Any) -> Edit:
    """Put one of some contents in the place of a file; a .bin takes the place of the safetensors."""

    def edit(random: Random, folder: Folder) -> None:
        folder.pop(WEIGHTS if file == BIN else file)
        folder[file] = random.choice(contents)

    return edit


def in_bytes(file: str, change: Callable[[Random, bytes], bytes]) -> Edit:
    def edit(random: Random, folder: Folder) -> None:
        if file == BIN:
            folder[BIN] = pickled(safetensors.torch.load(folder.pop(WEIGHTS)))
        folder[file] = change(random, folder[file])

    return edit


def in_head(change: Callable[[Random, dict[str, Any], str], Any]) -> Edit:
    """Put a head, or a text, that is made of the head and one tensor's name in its place."""

    def edit(random: Random, folder: Folder) -> None:
        end = 8 + int.from_bytes(folder[WEIGHTS][:8], "little")
        header = json.loads(folder[WEIGHTS][8:end])
        name = random.choice(sorted(header.keys() - {"__metadata__"}))
        folder[WEIGHTS] = joined(change(random, header, name), folder[WEIGHTS][end:])

    return edit


def in_entry(key: str, *lies: Any) -> Edit:
    return in_head(lambda random, header, name: {**header, name: {**header[name], key: random.choice(lies)}})


def in_tensors(change: Callable[[Random, dict[str, Any], str], Any], bins: float = 0.3) -> Edit:
    """Put what is made of the tensors and one's name in their place, and write a .bin in a share of the cases."""

    def edit(random: Random, folder: Folder) -> None:
        tensors = safetensors.torch.load(folder.pop(WEIGHTS))
        tensors = change(random, tensors, random.choice(sorted(tensors)))
        as_bin = random.random() < bins
        folder[BIN if as_bin else WEIGHTS] = pickled(tensors) if as_bin else safetensors.torch.save(tensors)

    return edit


def in_config(keys: Sequence[str], values: Sequence[Any]) -> Edit:
    def edit(random: Random, folder: Folder) -> None:
        config = {**json.loads(folder[CONFIG]), random.choice(keys): random.choice(values)}
        folder[CONFIG] = json.dumps(config).encode()

    return edit


# --- edits -----------------------------------------------------------------------------------------------------------


def renamed(random: Random, header: dict[str, Any], name: str) -> Any:
    at = random.randrange(len(PREFIX), len(name))
    new = random.choice((
        name[:at] + "Q" + name[at:], name[:at] + name[at + 1 :], name.replace("lora_", "lora_x"), name.upper(), "." + name,
        name.replace(".", "..", 3), "", "x" * 5000, "\0", "__class__", f"{PREFIX}fc.__init__", PREFIX, PREFIX + "fc", "lora_A.weight",
        f"{PREFIX}.lora_A.weight", f"{PREFIX}fc.base_layer.base_layer.lora_A.weight", f"{PREFIX}fc.adapters", f"{PREFIX}training",
    ))  # fmt: skip
    return {new if key == name else key: value for key, value in header.items()} if new not in header else "{}"


def not_finite(random: Random, tensors: dict[str, Any], name: str) -> Any:
    dtype = random.choice((torch.float32, torch.float64, torch.float16, torch.bfloat16))
    tensors[name] = tensors[name].to(dtype)
    tensors[name].view(-1)[0] = random.choice([math.nan, math.inf, -math.inf, *[1e300] * (dtype is torch.float64)])
    return tensors


def views(random: Random, tensors: dict[str, Any], name: str) -> Any:
    """Views of one memory, strided ones, parameters: all of them ordinary tensors."""
    flat = torch.cat([t.reshape(-1) for t in tensors.values()]).split([t.numel() for t in tensors.values()])
    together = {k: part.view(t.shape) for (k, t), part in zip(tensors.items(), flat, strict=True)}
    strided = {k: torch.stack([t, t], -1)[..., 1] for k, t in tensors.items()}
    return random.choice((together, strided, {k: nn.Parameter(t) for k, t in tensors.items()}))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARKER}",)


def something_else(random: Random, tensors: dict[str, Any], name: str) -> Any:
    return random.choice([
        list(tensors.values()), {1: torch.ones(1)}, {"model": tensors}, 3, "x", torch.ones(3), Path("x"), {**tensors, name: 3},
        {**tensors, name: None}, {**tensors, name: [1.0]}, {**tensors, name: torch.zeros(1).expand(2**28)}, Payload(),
        {**tensors, name: torch.ones(2, 2).to_sparse()}, {**tensors, name: torch.empty(tensors[name].shape, device="meta")},
        {**tensors, b"x": torch.ones(1)}, {**tensors, name: Payload()},
    ])  # fmt: skip


def deflated(random: Random, raw: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    return archive({**entries, "archive/data/99": bytes(2**20)}, zipfile.ZIP_DEFLATED)


def shards(lies: Callable[[dict[str, str]], Sequence[Any]] | None) -> Edit:
    """Make the weights two shards, with an index of which one of some lies is told."""

    def edit(random: Random, folder: Folder) -> None:
        tensors = safetensors.torch.load(folder.pop(WEIGHTS))
        places = {name: SHARDS[i % 2] for i, name in enumerate(tensors)}
        for shard in SHARDS:
            folder[shard] = safetensors.torch.save({k: v for k, v in tensors.items() if places[k] == shard})
        folder[INDEX] = json.dumps({"weight_map": random.choice(lies(places)) if lies else places}).encode()

    return edit


def index_lies(places: dict[str, str]) -> list[Any]:
    name = min(places)
    other = next(place for place in SHARDS if place != places[name])
    files = ("../../secret.safetensors", "/etc/passwd", "nowhere.safetensors", "", ".", CONFIG, INDEX, None, 3, [], "a\0b", other,
             f"../{SHARDS[0]}")  # fmt: skip
    maps = (None, [], "x", {}, [places], 3, {**places, "nowhere.lora_A.weight": other}, {name: places[name]})
    return [*({**places, name: file} for file in files), *maps]


def litter(random: Random, folder: Folder) -> None:
    """What a killed save leaves: it is neither read nor in the way."""
    other = json.dumps({**json.loads(folder[CONFIG]), "lora_alpha": 99}).encode()
    for name in (f".{CONFIG}.pending", f".{CONFIG}.ab12cd34.tmp", f".{WEIGHTS}.ab12cd34.tmp", "other.safetensors"):
        folder[name] = random.choice((other, b"", folder[WEIGHTS], random.randbytes(100), folder[CONFIG]))


def laid_out_otherwise(random: Random, raw: bytes) -> bytes:
    values = json.loads(raw)
    ordered = {key: values[key] for key in random.sample(sorted(values), len(values))}
    return ("\r\n  " + json.dumps(ordered, indent=random.choice((None, 1, "\t"))) + "\n\n").encode()


def more_json(*members: str) -> Edit:
    return in_bytes(CONFIG, lambda random, raw: raw.rstrip()[:-1] + f", {random.choice(members)}}}".encode())


# fmt: off
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 30, "0x10", "01", "1_000", ".5")
ODD = [
    None, True, False, 0, 1, -1, 2, 3.5, 1e308, 10**18, 10**30, "", "x", "2", [], [0], ["fc"], ["nowhere"], [None], [[]], {},
    {"fc": 4}, {"(": 1}, {"fc": -1}, {"fc": None}, {"fc": "4"}, "all", "(", "a" * 100_000, "\0", "../../..", "é", [[[[]]]],
    {"a": {"b": {"c": []}}}, "\ud800", ["\udfff"], [1e308, -1], {"": ""},
]
MATTERS = (
    "r", "lora_alpha", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "bias", "use_dora", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "target_parameters", "lora_bias", "trainable_token_indices",
    "fan_in_fan_out", "lora_dropout", "task_type", "exclude_modules",
)
TARGETS = [["fc", "mix"], ["embed", "nowhere"], [".*"], "fc|mix", ".*", "all-linear", "auto", "(?P<", "[", "(fc|mix|embed)",
           ["fc"] * 10_000, ["net.fc", ""], ["fc.weight"], ["fc\0"], [], "((fc)+)+!"]
NOTES = ["", "{", "[]", "null", "7", "[" * 50_000, '{"id2label": 3}', '{"id2label": {"x": []}}', '{"config_sha256": 3}', "\0",
         '{"config_sha256": "00"}', '{"id2label": null}', "NaN", '{"base": {"format": 2}}']
HEADS = [b"[" * 100_000, b'{"a":' * 100_000, b"[]", b"null", b'"x"', b"{", b"{}", b"\xff\xfe{}", b"{\xe9}", b"  {}", b'{"a": NaN}',
         b'{"\\ud800": {}}', b"{}\0\0", b"9" * 10_000, b'{"__metadata__": {}}']
BOMBS = [
    b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 80 + b"K\x01s.",  # tuples in tuples, each holding the one before twice
    b"\x80\x02}" + b")" + b"2\x86" * 80 + b"K\x01s.",
    b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",  # sizes that nobody has
    b"\x80\x02ctorch\nFloatStorage\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
    b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    b"\x80\x02\x8b\xff\xff\xff\x7f.", b"\x80\x02X\xff\xff\xff\x7f.",
]
OTHER_FILES = (b"", b"\0", b"\0" * 64, b"{}", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\nsize 9\n")
UNKNOWN = ("new_maths", "__class__", "", "self", "kwargs", "other", "cls")
ADDED = ("fc.lora_C.weight", "nowhere.lora_A.weight", "fc.lora_magnitude_vector", "fc.lora_B.bias", "fc", "embed.lora_A.weight")
NO_FILES = (Path.mkdir, os.mkfifo, lambda p: p.symlink_to(p), lambda p: p.symlink_to("nowhere"), lambda p: p.symlink_to("/dev/zero"))
EDITS: dict[str, tuple[str, Edit]] = {
    "flips in the length": (ERROR, in_bytes(WEIGHTS, lambda random, raw: flipped(random, raw, 2, 8))),
    "flips in the weights": (EITHER, in_bytes(WEIGHTS, lambda random, raw: flipped(random, raw, 8, random.choice((2000, 10**9))))),
    "flips in a bin": (INTACT, in_bytes(BIN, flipped)),  # an archive has checksums
    "flips in the config": (EITHER, in_bytes(CONFIG, flipped)),
    **{f"{name} cut off": (ERROR, in_bytes(name, lambda random, raw: raw[: random.randrange(len(raw) - 2)])) for name in (CONFIG, WEIGHTS, BIN)},
    "extended": (ERROR, in_bytes(WEIGHTS, lambda random, raw: raw + random.randbytes(random.choice((1, 4, 64, 5000))))),
    "a run of zeros": (EITHER, in_bytes(WEIGHTS, lambda random, raw: raw[:(at := random.randrange(len(raw) - 99))] + bytes(99) + raw[at + 99:])),
    "other content": (ERROR, put(WEIGHTS, *OTHER_FILES)),
    "other content of a bin": (ERROR, put(BIN, *OTHER_FILES)),
    "no regular weights": (ERROR, put(WEIGHTS, *NO_FILES)),
    "no regular config": (ERROR, put(CONFIG, *NO_FILES)),
    "litter": (SAME, litter),
    "a length that lies": (ERROR, in_bytes(WEIGHTS, lambda random, raw: struct.pack("<Q", random.choice(
        (0, 1, 2, len(raw), 10**8, 2**31, 2**40, 2**63, 2**64 - 1))) + raw[8:])),
    "offsets that lie": (ERROR, in_entry("data_offsets", [4, 12], [9, 1], [0, 0], [-4, 0], [0], [], None, [0, 8, 8], [0.5, 4], ["0", "8"], [0, 2**62],
        [2**62, 2**62 + 8], [True, 8], {"begin": 0}, [2**64, 2**65], [0, 10**30], "0:4")),
    "shapes that lie": (ERROR, in_entry("shape", [], [0], [2**40, 0], [0, 2**62, 2**62], [-2, -1], [2.0, 6], [True, 6], [2**63, 2**63], [2**32, 2**32],
        [2, None], "2x6", None, {"0": 2}, [[2], 6], [1] * 5000, [2**64 + 2, 6], ["2", 6])),
    "dtypes that lie": (ERROR, in_entry("dtype", "I32", "F64", "F16", "BOOL", "F4", "F8_E8M0", "C64", "f32", "", "X" * 10_000, None, 32, ["F32"], {})),
    "keys twice": (ERROR, in_head(lambda random, header, name: f"{{{json.dumps(name)}: {json.dumps(header[name])}, {json.dumps(header)[1:]}")),
    "odd entries": (ERROR, in_head(lambda random, header, name: {**header, name: random.choice([None, [], "", 1, {}, {"dtype": "F32"}, [header[name]]])})),
    "odd metadata": (ERROR, in_head(lambda random, header, name: {**header, "__metadata__": random.choice([[], "x", {"a": 1}, {"hf_lora": {}}, 7])})),
    "odd notes": (EITHER, in_head(lambda random, header, name: {**header, "__metadata__": {"hf_lora": random.choice(NOTES)}})),
    "a head that is no object": (ERROR, put(WEIGHTS, *(joined(head, data) for head in HEADS for data in (b"", b"1234")))),
    "renamed": (ERROR, in_head(renamed)),
    "names exchanged": (EITHER, in_head(lambda random, header, name: {{name: other, other: name}.get(key, key): value for other in [random.choice(
        sorted(header.keys() - {"__metadata__"}))] for key, value in header.items()})),
    "another prefix": (EITHER, in_head(lambda random, header, name: {k.replace(PREFIX, new): v for new in [random.choice(
        ("", "model.", "base_model.", "base_model.model.model.", "base_model.model.base_model.model."))] for k, v in header.items()})),
    "dropped": (ERROR, in_tensors(lambda random, tensors, name: {k: v for k, v in tensors.items() if k != name})),
    "added": (ERROR, in_tensors(lambda random, tensors, name: {**tensors, PREFIX + random.choice(ADDED): torch.ones(random.choice(((), (1,), (2, 6), (0,))))})),
    "not finite": (ERROR, in_tensors(not_finite)),
    "very large": (EITHER, in_tensors(lambda random, tensors, name: {**tensors, name: torch.full_like(tensors[name], random.choice((3e38, 1e20, 1e-45)))})),
    "of another precision": (EITHER, in_tensors(lambda random, tensors, name: {**tensors, name: tensors[name].to(random.choice(
        (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)))})),
    "no numbers to train": (ERROR, in_tensors(lambda random, tensors, name: {**tensors, name: tensors[name].to(random.choice(
        (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64)))})),
    "another rank": (ERROR, in_tensors(lambda random, tensors, name: {**tensors, name: torch.cat([tensors[name]] * 2)})),
    "a bin of views": (SAME, in_tensors(views, bins=1)),
    "a bin of something else": (ERROR, in_tensors(something_else, bins=1)),
    "a bare pickle": (ERROR, put(BIN, pickle.dumps(Payload()), pickled({"x": Payload()}, _use_new_zipfile_serialization=False))),
    "an archive that unfolds": (ERROR, in_bytes(BIN, deflated)),
    "a pickle that takes for ever": (ERROR, put(BIN, *(archive({"archive/data.pkl": bomb, "archive/version": b"3\n"}) for bomb in BOMBS))),
    "shards": (EITHER, shards(None)),
    "a lying index": (ERROR, shards(index_lies)),
    "config keys that matter": (EITHER, in_config(MATTERS, ODD)),
    "other config keys": (EITHER, in_config(("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "eva_config", "peft_version"), ODD)),
    "config keys deleted": (EITHER, in_bytes(CONFIG, lambda random, raw: json.dumps(
        {key: value for key, value in json.loads(raw).items() if random.random() > 0.1}).encode())),
    "unknown keys": (ERROR, in_config(UNKNOWN, [1, "x", True, [0], {"a": 1}])),
    "unknown empty keys": (SAME, in_config(UNKNOWN, [None, False, {}, [], ""])),
    "alphas": (ERROR, in_config(["lora_alpha"], [0, -3, 0.0, math.nan, math.inf, "16", None, [], True, 10**400])),
    "honest alphas": (EITHER, in_config(("lora_alpha", "alpha_pattern"), [1, 0.5, 64, 1e-9, *({k: 7.5} for k in ("fc", "em.*", "c", ".*"))])),
    "ranks": (ERROR, in_config(["r"], [1, 4, 8, 10**9, 2**62, 2**63])),
    "patterns of ranks": (ERROR, in_config(["rank_pattern"], [{key: n} for key in ("fc", "mix|fc") for n in (1, 4, 10**9, 2**62)])),
    "targets": (EITHER, in_config(["target_modules"], TARGETS)),
    "saved modules": (EITHER, in_config(["modules_to_save"], [None, [], ["nowhere"], ["fc"], ["head", "head"], ["head.weight"], "head", [""]])),
    "other methods": (ERROR, in_config(["peft_type"], ["IA3", None, "", "lora", 1, ["LORA"], {"LORA": 1}, "LORA ", True])),
    "numbers that are none": (ERROR, more_json(*(f'"x": {number}' for number in NUMBERS))),
    "config keys twice": (ERROR, more_json('"r": 2', '"lora_alpha": 3', '"peft_type": "LORA"')),
    "no JSON object": (ERROR, put(CONFIG, b"", b"[]", b"null", b"3", b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"r: 8", b" " * (17 * 2**20))),
    "other encodings": (ERROR, in_bytes(CONFIG, lambda random, raw: raw.decode().replace("null", '"é"', 1).encode(
        random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le", "latin-1"))))),
    "the same JSON laid out otherwise": (SAME, in_bytes(CONFIG, laid_out_otherwise)),
}
# fmt: on


def draw(number: int, original: Folder) -> tuple[str, Folder, str]:
    """Return the case of a number: what is done, the edited folder, and what must happen."""
    random = Random(f"adapter folder {number}")
    name = list(EDITS)[number % len(EDITS)]
    folder = dict(original)
    expected, edit = EDITS[name]
    edit(random, folder)
    return name, folder, expected


def lay_out(folder: Folder, path: Path) -> None:
    """Write a folder's files."""
    path.mkdir()
    for name, content in folder.items():
        if callable(content):
            content(path / name)
        else:
            (path / name).write_bytes(content)
