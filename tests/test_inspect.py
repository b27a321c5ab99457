"""`hf-lora inspect`: what it says of adapters, what it finds, and that it loads neither weights nor base."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_lora import LoRAConfig, LoRAModel, inspect_adapter
from hf_lora.errors import AdapterFileError, BaseMismatchError, HubError, LoRAError

from .hub import Hub
from .peek import FORMULAS, cli, findings, inspecting, read_notes
from .tiny import tiny

DATA = Path(__file__).parents[2] / "shared" / "data"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CONFIGS = sorted((DATA / "community_configs").glob("*.json"))
with_data = pytest.mark.skipif(not CONFIGS, reason="the community adapters are not part of the repository")


def saved(folder: Path, layers: int = 4, **settings: Any) -> Path:
    """Save an adapter of a GPT-2 that has a name."""
    base = tiny("gpt2", n_layer=layers, n_embd=8)
    base.name_or_path = "someone/tiny-gpt2"
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_fc"], "task_type": "CAUSAL_LM", "revision": "v1"}
    LoRAModel.from_model(base, LoRAConfig(**{**lora, **settings})).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return saved(tmp_path / "adapter")


def configured(folder: Path, **changes: Any) -> Path:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **changes}))
    return folder


def codes(folder: Path | str) -> list[str]:
    return [finding.code for finding in inspect_adapter(folder).findings]


def key(layer: int, module: str, leaf: str) -> str:
    return f"base_model.model.transformer.h.{layer}.{module}.{leaf}"


# --- what it says -------------------------------------------------------------------------------------------------


def test_a_clean_adapter_is_told_in_full_aligned_and_as_json(adapter: Path) -> None:
    seen = inspect_adapter(adapter)
    assert seen.findings == ()
    assert (seen.format, seen.task, seen.variant) == ("PEFT (LORA)", "CAUSAL_LM", "LoRA")
    assert (seen.r, seen.alpha, seen.scaling, seen.ranks) == (2, 4, 2.0, {2: 8})
    assert seen.base == {"id": "someone/tiny-gpt2", "revision": "v1", "class": "GPT2LMHeadModel", "model_type": "gpt2"}
    assert seen.provenance
    assert (seen.tensors, seen.parameters, seen.dtypes) == (16, 4 * 2 * (8 + 24 + 8 + 32), {"F32": 16})
    assert f"{seen.size / 1e3:,.1f} kB" in str(seen)
    assert [(t.name, t.layers, t.of, t.shapes) for t in seen.targets] == [
        ("transformer.h.*.attn.c_attn", (0, 1, 2, 3), 4, ((24, 8),)),
        ("transformer.h.*.mlp.c_fc", (0, 1, 2, 3), 4, ((32, 8),)),
    ]
    assert seen.size == (adapter / WEIGHTS).stat().st_size
    rows = [line for line in str(seen).splitlines() if " of 4" in line]
    assert len({line.index("4 of 4") for line in rows}) == 1
    assert len(rows) == 2
    assert seen.to_dict()["targets"][0]["name"] == "transformer.h.*.attn.c_attn"
    assert seen.to_dict()["findings"] == []


@pytest.mark.parametrize(
    ("settings", "variant", "scaling"),
    [
        ({"use_dora": True}, "DoRA", 2.0),
        ({"use_rslora": True}, "LoRA, rsLoRA", 4 / 2**0.5),
        ({"init_lora_weights": "pissa"}, "LoRA, started as pissa", 2.0),
        ({"lora_bias": True}, "LoRA, with trained biases", 2.0),
    ],
)
def test_variants_are_told_by_name(settings: dict[str, Any], variant: str, scaling: float, tmp_path: Path) -> None:
    seen = inspect_adapter(saved(tmp_path, layers=1, **settings))
    assert seen.variant == variant
    assert seen.scaling == pytest.approx(scaling)
    assert sum(target.parameters for target in seen.targets) == seen.parameters
    assert seen.findings == ()


def test_ranks_by_pattern_and_what_trains_besides_are_told_and_no_findings(tmp_path: Path) -> None:
    patterns = {r"h\.[01]\.attn\.c_attn": 4}
    seen = inspect_adapter(saved(tmp_path, rank_pattern=patterns, modules_to_save=["wpe"], trainable_token_indices=[1]))
    assert seen.ranks == {2: 6, 4: 2}
    assert "r=2 of 6 layers, r=4 of 2 layers" in str(seen)
    assert seen.saved == {"transformer.wpe": 32 * 8, "transformer.wte (rows)": 8}
    assert seen.findings == ()


def test_a_weights_file_alone_is_read_and_its_config_missed(adapter: Path, tmp_path: Path) -> None:
    seen = inspect_adapter(adapter / WEIGHTS)
    assert (seen.format, [f.code for f in seen.findings], seen.is_usable) == ("PEFT", ["config"], False)
    assert "name the folder" in str(seen)
    save_file({"layer.0.lora_A": torch.ones(2, 4), "layer.0.lora_B": torch.ones(4, 2)}, tmp_path / "x.safetensors")
    seen = inspect_adapter(tmp_path / "x.safetensors")
    assert (seen.format, [f.code for f in seen.findings], seen.is_usable) == ("loralib", ["config"], False)
    assert "lora_config=LoRAConfig(lora_alpha=...)" in str(seen)


@pytest.mark.parametrize(("a", "usable"), [(4, True), (2, True), (3, False)])
def test_a_layer_merged_of_two_pairs_can_be_used_where_loralib_s_or_the_oldest_peft_s(
    a: int, usable: bool, tmp_path: Path
) -> None:
    factors = {"lora_A": torch.ones(a, 4), "lora_B": torch.ones(8, 2)}
    save_file({f"layer.{name}": factor for name, factor in factors.items()}, tmp_path / "x.safetensors")
    assert ("tensors" in codes(tmp_path / "x.safetensors")) is not usable
    save_file({f"base_model.model.layer.{name}.weight": t for name, t in factors.items()}, tmp_path / WEIGHTS)
    values = {"peft_type": "LORA", "r": 2, "target_modules": ["layer"], "base_model_name_or_path": "a/b"}
    for enabled, wanted in (([True, False, True], usable), (None, a == 2)):
        (tmp_path / CONFIG).write_text(json.dumps({**values, "enable_lora": enabled}))
        assert inspect_adapter(tmp_path).is_usable is wanted


def test_of_a_save_that_was_cut_off_the_config_of_the_weights_is_told(adapter: Path, tmp_path: Path) -> None:
    later = saved(tmp_path / "later", r=4)
    (later / WEIGHTS).replace(adapter / WEIGHTS)
    (later / CONFIG).replace(adapter / f".{CONFIG}.pending")
    seen = inspect_adapter(adapter)
    assert (seen.r, seen.ranks, seen.findings) == (4, {4: 8}, ())


def test_shards_are_read_together(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    names = sorted(tensors)
    (adapter / WEIGHTS).unlink()
    for i, part in enumerate((names[:7], names[7:]), 1):
        save_file({n: tensors[n] for n in part}, adapter / f"adapter_model-0000{i}-of-00002.safetensors")
    assert codes(adapter) == ["weights"]
    index = adapter / f"{WEIGHTS}.index.json"
    places = {n: f"adapter_model-0000{1 + (n not in names[:7])}-of-00002.safetensors" for n in names}
    lacking = {n: file for n, file in places.items() if n != names[0]}
    for odd in ({}, {"weight_map": {}}, {"weight_map": lacking}, {"weight_map": {**places, "x": "y.safetensors"}}):
        index.write_text(json.dumps(odd))
        assert (codes(adapter), inspect_adapter(adapter).is_usable) == (["weights"], False)
    index.write_text(json.dumps({"weight_map": places}))
    seen = inspect_adapter(adapter)
    assert (seen.findings, seen.tensors) == ((), 16)


@with_data
def test_the_published_adapters_and_configs_are_told_in_less_than_40_lines(tmp_path: Path) -> None:
    for folder in (DATA / "community_adapters").iterdir():
        assert inspect_adapter(folder).findings == ()
    local = set()
    for path in CONFIGS:
        shutil.copyfile(path, tmp_path / CONFIG)
        seen = inspect_adapter(tmp_path)
        found = {finding.code: finding.text for finding in seen.findings}
        assert len(str(seen).splitlines()) < 40
        assert seen.to_dict()["name"] == str(tmp_path)
        peft_type = json.loads(path.read_text()).get("peft_type")
        assert (
            "config" in found
            or peft_type in {row.peft_type for row in FORMULAS.values()}
            or seen.format == "AdapterHub"
        )
        local |= {int(path.stem[:2])} if "is a path" in found.get("base", "") else set()
    assert local == {2, 26, 32, 47, 60}


# --- what it finds ------------------------------------------------------------------------------------------------

SETTINGS: list[tuple[dict[str, Any], str, bool]] = [
    ({"target_modules": r".*\.(attn\.c_attn|mlp\.c_fc)", "merge_weights": False}, "", True),
    ({"base_model_name_or_path": None}, "base", True),
    ({"base_model_name_or_path": "/home/me/llama"}, "base", True),
    ({"base_model_name_or_path": "C:\\models\\llama"}, "base", True),
    ({"base_model_name_or_path": "a/b/c"}, "base", True),
    ({"base_model_name_or_path": 5}, "config", False),
    ({"base_model_name_or_path": ["a"]}, "config", False),
    ({"brand_new": 1}, "unknown-keys", False),
    ({"lora_alpha": 0}, "config", False),
    ({"r": "2"}, "config", False),
    ({"use_qalora": True}, "config", False),
    ({"peft_type": "IA3"}, "config", False),
    ({"target_modules": "("}, "config", False),
    ({"target_modules": "((a+)+)+!", "rank_pattern": {"((a+)+)+!": 4}}, "config", False),
    ({"r": 4}, "tensors", False),
    ({"use_dora": True}, "tensors", False),
    ({"target_modules": ["c_attn", "c_fc", "xxx"]}, "coverage", False),
    ({"target_modules": "nothing"}, "coverage", True),
    ({"target_modules": r".*\.c_attn"}, "coverage", True),
    ({"modules_to_save": ["score"]}, "coverage", False),
    ({"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}, "coverage", False),
]


@pytest.mark.parametrize(("changes", "code", "usable"), SETTINGS, ids=str)
def test_settings_that_matter_are_found_and_others_are_not(
    changes: dict[str, Any], code: str, usable: bool, adapter: Path
) -> None:
    seen = inspect_adapter(configured(adapter, **changes))
    assert [finding.code for finding in seen.findings] == ([code] if code else [])
    assert seen.is_usable is usable


A0, B0 = key(0, "attn.c_attn", "lora_A.weight"), key(0, "attn.c_attn", "lora_B.weight")
TENSORS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any]]] = {
    "half a pair": ("tensors", lambda t: t.pop(A0)),
    "another rank": ("tensors", lambda t: t.update({A0: torch.ones(3, 8), B0: torch.ones(24, 3)})),
    "two ranks in a pair": ("tensors", lambda t: t.update({A0: torch.ones(3, 8)})),
    "no rank in a pair": ("tensors", lambda t: t.update({A0: torch.tensor(1.0), B0: torch.tensor(1.0)})),
    "a DoRA length": ("tensors", lambda t: t.update({key(0, "attn.c_attn", "lora_magnitude_vector"): torch.ones(24)})),
    "an empty shard": ("tensors", lambda t: t.update({A0: torch.ones(2, 0)})),
    "a base": ("tensors", lambda t: t.clear() or t.update({"x.weight": torch.ones(2)})),
    "a layer left out": ("coverage", lambda t: [t.pop(key(2, "mlp.c_fc", f"lora_{x}.weight")) for x in "AB"]),
    "no layer 1": ("coverage", lambda t: [t.pop(k) for k in list(t) if ".h.1." in k]),
}  # fmt: skip


def test_of_the_heads_that_peft_names_for_a_task_one_is_enough_and_of_others_each_has_tensors(adapter: Path) -> None:
    head = {"base_model.model.score.weight": torch.ones(2, 8)}
    save_file({**load_file(adapter / WEIGHTS), **head}, adapter / WEIGHTS)
    seen = inspect_adapter(configured(adapter, modules_to_save=["classifier", "score"], task_type="SEQ_CLS"))
    assert seen.findings == ()
    seen = inspect_adapter(configured(adapter, modules_to_save=["score", "wpe"]))
    assert ["wpe" in finding.text for finding in seen.findings] == [True]
    assert not seen.is_usable


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit_are_found(what: str, adapter: Path) -> None:
    code, change = TENSORS[what]
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)
    assert code in codes(adapter)
    assert inspect_adapter(adapter).is_usable is (code == "coverage")


def written(folder: Path, layers: dict[str, Any], **config: Any) -> Path:
    """Write an adapter that nobody trained: ones of rank 2 for modules in some layers, and a config."""
    values = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "a/b", "target_modules": [*layers], **config}
    (folder / CONFIG).write_text(json.dumps(values))
    names = [
        f"base_model.model.layers.{i}.x.{m}.lora_{x}.weight" for m, held in layers.items() for i in held for x in "AB"
    ]
    save_file({name: torch.ones(2, 2) for name in names}, folder / WEIGHTS)
    return folder


EXPERTS = {"target_modules": [], "target_parameters": ["experts.w"]}
LAYERS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "every third": ({"q": (0, 3, 6, 9), "k": range(12)}, {}, []),
    "the last of four": ({"q": (3, 7, 11), "k": range(12)}, {}, []),
    "some": ({"q": (0, 1, 5), "k": range(12)}, {}, ["coverage"]),
    "chosen": ({"q": (0, 1, 5)}, {"layers_to_transform": [0, 1, 5]}, []),
    "chosen and missing": ({"q": (0, 1, 5)}, {"layers_to_transform": [0, 1, 4]}, ["coverage"]),
    "of another build": ({"q": (1, 2, 5), "in_proj": (0, 3, 4, 6, 7)}, {}, []),
    "experts": ({"experts.base_layer": (0,)}, {**EXPERTS, "r": 1}, []),
    "experts of another rank": ({"experts.base_layer": (0,)}, {**EXPERTS, "r": 3}, ["tensors"]),
}


@pytest.mark.parametrize("what", LAYERS)
def test_layers_that_recur_were_chosen_or_are_of_another_build_are_no_finding(what: str, tmp_path: Path) -> None:
    layers, config, found = LAYERS[what]
    assert codes(written(tmp_path, layers, **config)) == found


# --- that it never loads, runs or breaks --------------------------------------------------------------------------


def test_the_exit_status_says_whether_the_adapter_can_be_used(
    adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(adapter)]) == 0
    assert "no findings" in capsys.readouterr().out
    assert cli.main(["inspect", str(configured(adapter, base_model_name_or_path="/a"))]) == 0
    assert "to know: the base '/a' is a path" in capsys.readouterr().out
    assert cli.main(["inspect", str(configured(adapter, base_model_name_or_path="a/b", r=0)), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["code"], finding["fatal"]) == ("config", True)
    assert cli.main(["inspect", str(adapter.parent)]) == 2
    assert "no adapter_config.json, but adapters in adapter; pass subfolder=" in capsys.readouterr().err
    assert cli.main(["inspect", str(adapter.parent), "--subfolder", "adapter"]) == 1
    capsys.readouterr()
    raw = edited(lambda head: head.update({"\x1b]0;x\x07": 5}))((adapter / WEIGHTS).read_bytes())
    (adapter / WEIGHTS).write_bytes(raw)
    assert cli.main(["inspect", str(adapter)]) == 1
    told = capsys.readouterr().out
    assert "cannot be used" in told
    assert "\x1b" not in told


def test_of_a_file_on_the_hub_only_the_head_is_fetched(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    hub.add("me/adapter", {**files, "checkpoint-1/optimizer.pt": b"x"})
    monkeypatch.setattr(inspecting, "_FIRST", 256)
    seen = inspect_adapter("me/adapter", revision="main")
    assert (seen.findings, seen.tensors) == ((), 16)
    asked = [request.headers.get("Range") for request in hub.asked("GET.*safetensors")]
    assert asked[0] == "bytes=0-255"
    assert len(asked) == 2
    assert int(str(asked[1]).rpartition("-")[2]) < len(files[WEIGHTS]) - 1000
    with pytest.raises((AdapterFileError, HubError)):
        inspect_adapter("me/none")
    hub.add("me/plain", {"config.json": b"{}"})
    with pytest.raises(AdapterFileError, match="me/plain"):
        inspect_adapter("me/plain")


def test_the_commit_of_a_base_on_the_hub_is_noted(hub: Hub, tmp_path: Path) -> None:
    tiny("gpt2", n_embd=64).save_pretrained(tmp_path / "base")
    hub.add("me/base", {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})
    LoRAModel.from_pretrained("me/base", LoRAConfig(r=2)).save_pretrained(tmp_path / "out")
    note = read_notes(tmp_path / "out" / WEIGHTS)["base"]
    assert note["id"] == "me/base"
    assert len(note["commit"]) == 40
    assert f"me/base at {note['commit']}" in str(inspect_adapter(tmp_path / "out"))
    with pytest.raises(BaseMismatchError, match=f"me/base.*{note['commit']}"):
        LoRAModel.from_pretrained(tmp_path / "out", base_model=tiny("gpt2", n_embd=64, seed=1))
    LoRAModel.from_pretrained(tmp_path / "out")


def test_names_that_steer_a_terminal_are_told_without_their_power(adapter: Path) -> None:
    configured(adapter, base_model_name_or_path="a\x1b[2Jb/\u202ec", task_type="x\ny" * 999)
    save_file({**load_file(adapter / WEIGHTS), "evil\x07\r\n.weight": torch.ones(1)}, adapter / WEIGHTS)
    text = str(inspect_adapter(adapter))
    assert all(c == "\n" or c.isprintable() for c in text)
    assert len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) <= 240


def test_pickles_are_read_as_data_and_never_run(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.pt").write_bytes(b"x")
    with pytest.raises(AdapterFileError, match="pickle"):
        inspect_adapter(tmp_path / "lora.pt")
    tensors = {name: tensor.clone() for name, tensor in load_file(adapter / WEIGHTS).items()}
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert [(f.code, f.fatal) for f in inspect_adapter(adapter).findings] == [("weights", True), ("pickle", False)]
    torch.save(tensors, adapter / "adapter_model.bin")
    seen = inspect_adapter(adapter)
    assert [(f.code, f.fatal) for f in seen.findings] == [("pickle", False)]
    assert (seen.tensors, seen.dtypes, seen.ranks) == (16, {"F32": 16}, {2: 8})
    torch.save({**tensors, "x": Path("x")}, adapter / "adapter_model.bin")
    assert not inspect_adapter(adapter).is_usable
    (adapter / "adapter_model.bin").rename(adapter / "adapter_model.bin.index.json")  # of pickled shards
    assert not inspect_adapter(adapter).is_usable
    (adapter / "adapter_model.bin.index.json").unlink()
    assert not inspect_adapter(adapter).is_usable


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Return what changes the head of a safetensors file."""

    def edit(raw: bytes) -> bytes:
        size = 8 + struct.unpack("<Q", raw[:8])[0]
        head = json.loads(raw[8:size])
        change(head)
        text = json.dumps(head).encode()
        return struct.pack("<Q", len(text)) + text + raw[size:]

    return edit


def noted(head: dict[str, Any]) -> None:
    notes = json.loads(head["__metadata__"]["hf_lora"])
    head["__metadata__"]["hf_lora"] = json.dumps({**notes, "base": {"id": "a/b"}})


# What the head says and what safetensors, or a note's reader, does not take.
DAMAGED: dict[str, tuple[bool, Callable[[bytes], bytes]]] = {
    "a shape of another size": (True, edited(lambda head: head[A0].update(shape=[2, 9]))),
    "an unknown dtype": (True, edited(lambda head: head[A0].update(dtype="F31"))),
    "overlapping tensors": (True, edited(lambda head: head[A0].update(data_offsets=head[B0]["data_offsets"]))),
    "a hole": (True, edited(lambda head: head.pop(A0))),
    "a damaged note": (True, edited(noted)),
    "values that are not finite": (False, lambda raw: raw[:-64] + b"\xff" * 64),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_loading_refuses_is_found_here_and_on_the_hub(what: str, adapter: Path, hub: Hub) -> None:
    in_the_head, damage = DAMAGED[what]
    hub.add("me/good", {path.name: path.read_bytes() for path in adapter.iterdir()})
    (adapter / WEIGHTS).write_bytes(damage((adapter / WEIGHTS).read_bytes()))
    with pytest.raises(LoRAError) as refused:
        LoRAModel.from_pretrained(adapter, base_model=tiny("gpt2", n_layer=4, n_embd=8))
    seen = inspect_adapter(adapter)
    told = str(refused.value)[: len(str(adapter)) + 60]  # safetensors names any one of two that overlap
    assert any(finding.fatal and finding.text.startswith(told) for finding in seen.findings)
    hub.add("me/adapter", {path.name: path.read_bytes() for path in adapter.iterdir()})
    seen = inspect_adapter("me/adapter")
    assert seen.is_usable is not in_the_head
    assert "/tmp" not in str(seen)
    assert inspect_adapter("me/good").is_usable


def test_layers_with_absurd_numbers_keep_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_is_regular", lambda *given: pytest.fail("99,000 layers are gone through"))
    layers = {f"t{i}.x": (330 * i,) for i in range(300)}
    assert "coverage" not in codes(written(tmp_path, layers))


ODD: list[Any] = [None, True, -1, 0, 1.5, 1e308, "", "x", [], [1], [[1]], ["("], {}, {"(": 1}, {"x": [1]}, [None]]


def test_mutated_adapters_end_in_a_report_or_in_one_of_our_errors(adapter: Path) -> None:
    generator = random.Random(0)
    raw, values = (adapter / WEIGHTS).read_bytes(), json.loads((adapter / CONFIG).read_text())
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    told = 0
    for number in range(200):
        (adapter / CONFIG).write_text(json.dumps(values))
        (adapter / WEIGHTS).write_bytes(raw)
        if number % 2:
            configured(adapter, **{generator.choice(sorted(values)): generator.choice(ODD)})
        else:
            mutated = bytearray(raw)
            for _ in range(generator.randint(1, 4)):
                mutated[generator.randrange(size)] = generator.randrange(256)
            (adapter / WEIGHTS).write_bytes(mutated[: generator.choice([len(raw), size, generator.randrange(size)])])
        try:
            seen = inspect_adapter(adapter)
        except LoRAError:
            continue
        told += 1
        assert len(str(seen).splitlines()) < 40
        assert seen.to_dict()["name"] == str(adapter)
    assert told > 75
