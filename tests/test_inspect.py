"""`hf-lora inspect`: what it says of adapters, what it finds odd, and that it never loads or breaks."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel, add_lora, inspect_adapter
from hf_lora.errors import AdapterFileError, LoRAError

from .peek import cli, hub, looking, suspicion

DATA = Path(__file__).parents[2] / "shared" / "data"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CONFIGS = sorted((DATA / "community_configs").glob("*.json"))
with_data = pytest.mark.skipif(not CONFIGS, reason="the community adapters are not part of the repository")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Return a folder with a clean adapter of four layers, on a base that has a name."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(n_layer=4, n_embd=8, n_head=2, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    )
    base.name_or_path = "someone/tiny-gpt2"
    lora = LoRAConfig(r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", revision="v1")
    LoRAModel.from_model(base, lora).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _config(folder: Path, **changes: Any) -> Path:
    values = json.loads((folder / CONFIG).read_text())
    values.update(changes)
    (folder / CONFIG).write_text(json.dumps(values))
    return folder


def _tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _codes(folder: Path | str) -> list[str]:
    return [finding.code for finding in inspect_adapter(folder).findings]


def _name(layer: int, module: str, leaf: str) -> str:
    return f"base_model.model.transformer.h.{layer}.{module}.{leaf}"


# --- what it says -------------------------------------------------------------------------------------------------


def test_a_clean_adapter_is_told_in_full_and_nothing_is_odd_about_it(adapter: Path) -> None:
    seen = inspect_adapter(adapter)
    assert seen.findings == ()
    assert (seen.format, seen.task, seen.variant) == ("PEFT (LORA)", "CAUSAL_LM", "LoRA")
    assert (seen.r, seen.alpha, seen.scaling, seen.ranks) == (2, 4, 2.0, {2: 8})
    assert seen.base == {"id": "someone/tiny-gpt2", "revision": "v1", "class": "GPT2LMHeadModel", "model_type": "gpt2"}
    assert seen.provenance == "fingerprint of 8 weights"
    assert (seen.tensors, seen.parameters, seen.dtypes) == (16, 4 * 2 * (8 + 24 + 8 + 32), {"F32": 16})
    assert [(t.name, t.layers, t.of, t.shapes) for t in seen.targets] == [
        ("transformer.h.*.attn.c_attn", (0, 1, 2, 3), 4, ((24, 8),)),
        ("transformer.h.*.mlp.c_fc", (0, 1, 2, 3), 4, ((32, 8),)),
    ]
    assert seen.size == (adapter / WEIGHTS).stat().st_size


def test_the_report_is_aligned_and_short_and_json_says_the_same(adapter: Path) -> None:
    seen = inspect_adapter(adapter)
    text = str(seen)
    assert len(text.splitlines()) < 40
    rows = [line for line in text.splitlines() if " of 4" in line]
    assert len(rows) == 2
    assert len({line.index("4 of 4") for line in rows}) == 1
    assert json.loads(json.dumps(seen.to_dict())) == seen.to_dict()
    assert seen.to_dict()["targets"][0]["name"] == "transformer.h.*.attn.c_attn"
    assert seen.to_dict()["findings"] == []


@pytest.mark.parametrize(
    ("settings", "variant", "scaling"),
    [
        ({"use_dora": True}, "DoRA", 2.0),
        ({"use_rslora": True}, "LoRA, rsLoRA", 4 / 2**0.5),
        ({"init_lora_weights": "pissa"}, "LoRA, started as PiSSA", 2.0),
        ({"lora_bias": True}, "LoRA, with trained biases", 2.0),
    ],
)
def test_variants_are_told_by_name(settings: dict[str, Any], variant: str, scaling: float, tmp_path: Path) -> None:
    base = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    base.name_or_path = "someone/tiny"
    LoRAModel.from_model(base, LoRAConfig(r=2, lora_alpha=4, **settings)).save_pretrained(tmp_path)
    seen = inspect_adapter(tmp_path)
    assert seen.variant == variant
    assert seen.scaling == pytest.approx(scaling)
    assert sum(target.parameters for target in seen.targets) == seen.parameters
    assert seen.findings == ()


def test_different_ranks_by_pattern_are_counted_and_not_odd(tmp_path: Path) -> None:
    base = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    base.name_or_path = "someone/tiny"
    lora = LoRAConfig(r=2, target_modules=["c_attn"], rank_pattern={r"h\.[01]\.attn\.c_attn": 4})
    LoRAModel.from_model(base, lora).save_pretrained(tmp_path)
    seen = inspect_adapter(tmp_path)
    assert seen.ranks == {2: 2, 4: 2}
    assert "in the file r=2 (2x) 4 (2x)" in str(seen)
    assert seen.findings == ()


def test_a_weights_file_alone_is_read_and_its_config_missed(adapter: Path, tmp_path: Path) -> None:
    seen = inspect_adapter(adapter / WEIGHTS)
    assert [f.code for f in seen.findings] == ["no-config"]
    assert seen.format == "PEFT"
    save_file({"layer.0.lora_A": torch.ones(2, 4), "layer.0.lora_B": torch.ones(4, 2)}, tmp_path / "x.safetensors")
    assert inspect_adapter(tmp_path / "x.safetensors").format == "loralib"


def test_shards_are_read_together(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    names = sorted(tensors)
    (adapter / WEIGHTS).unlink()
    for i, part in enumerate((names[:7], names[7:]), 1):
        save_file({n: tensors[n] for n in part}, adapter / f"adapter_model-0000{i}-of-00002.safetensors")
    assert _codes(adapter) == ["shards"]
    (adapter / "adapter_model.safetensors.index.json").write_text("{}")
    seen = inspect_adapter(adapter)
    assert seen.findings == ()
    assert seen.tensors == 16


@with_data
def test_the_published_adapters_are_told_with_what_is_odd_about_each() -> None:
    found = {}
    for folder in sorted((DATA / "community_adapters").iterdir()):
        seen = inspect_adapter(folder)
        assert len(str(seen).splitlines()) < 40
        found[folder.name] = [finding.text for finding in seen.findings]
    assert found == {
        "bert_seqcls_head": [],
        "distilbert_seqcls_head": ["modules saved whole that the config does not list: pre_classifier"],
        "gpt2_seqcls": ["modules saved whole that the config does not list: score"],
    }


@with_data
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_published_config_is_told_in_less_than_40_lines(path: Path, tmp_path: Path) -> None:
    shutil.copyfile(path, tmp_path / CONFIG)
    seen = inspect_adapter(tmp_path)
    codes = {finding.code for finding in seen.findings}
    assert "no-weights" in codes
    assert len(str(seen).splitlines()) < 40
    json.dumps(seen.to_dict())
    values = json.loads(path.read_text())
    assert ("not-peft" in codes) is ("peft_type" not in values)
    assert ("not-lora" in codes) is (values.get("peft_type") not in (None, "LORA"))
    number = int(path.stem[:2])
    assert ("base-local" in codes) is (number in (2, 26, 32, 39, 47, 60))
    assert ("base-placeholder" in codes) is (number == 9)


def test_the_keys_that_inspect_knows_are_peft_s_and_a_written_config_s() -> None:
    peft = pytest.importorskip("peft")
    assert peft.LoraConfig().to_dict().keys() <= suspicion.KNOWN_KEYS
    assert LoRAConfig().to_dict().keys() == suspicion.KNOWN_KEYS


# --- what it finds odd --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"base_model_name_or_path": None}, "base-unknown"),
        ({"base_model_name_or_path": 3}, "base-unknown"),
        ({"base_model_name_or_path": "/home/me/llama"}, "base-local"),
        ({"base_model_name_or_path": "../llama"}, "base-local"),
        ({"base_model_name_or_path": "C:\\models\\llama"}, "base-local"),
        ({"base_model_name_or_path": "a/b/c"}, "base-local"),
        ({"base_model_name_or_path": "checkpoints/last"}, "base-local"),
        ({"base_model_name_or_path": "model"}, "base-placeholder"),
        ({"base_model_name_or_path": "<your-base>"}, "base-placeholder"),
        ({"lora_alpha": 0}, "alpha"),
        ({"lora_alpha": "16"}, "alpha"),
        ({"lora_dropout": 1.5}, "dropout"),
        ({"r": 4}, "rank"),
        ({"r": "2"}, "rank"),
        ({"inference_mode": False}, "inference-mode"),
        ({"fan_in_fan_out": "yes"}, "setting"),
        ({"use_qalora": True}, "not-built"),
        ({"brand_new": 1}, "unknown-keys"),
        ({"target_modules": ["c_attn", "c_fc", "xxx"]}, "targets"),
        ({"target_modules": ["c_attn"]}, "targets"),
        ({"target_modules": ["c_attn", "c_fc", "c_attn"]}, "duplicates"),
        ({"target_modules": None}, "targets"),
        ({"target_modules": "("}, "targets"),
        ({"target_modules": ".*c_attn"}, "targets"),
        ({"target_modules": "nothing"}, "targets"),
        ({"modules_to_save": ["score"]}, "saved"),
        ({"use_dora": True}, "dora"),
        ({"peft_type": "IA3"}, "not-lora"),
    ],
)  # fmt: skip
def test_an_odd_setting_is_found(changes: dict[str, Any], code: str, adapter: Path) -> None:
    assert code in _codes(_config(adapter, **changes))


def test_a_regular_expression_that_matches_all_is_not_odd(adapter: Path) -> None:
    assert _codes(_config(adapter, target_modules=r"transformer\.h\.\d\.(attn\.c_attn|mlp\.c_fc)")) == []


A0, B0 = _name(0, "attn.c_attn", "lora_A.weight"), _name(0, "attn.c_attn", "lora_B.weight")
CHANGES: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any]]] = {
    "half a pair": ("missing-pair", lambda t: t.pop(A0)),
    "another rank": ("rank", lambda t: t.update({A0: torch.ones(3, 8), B0: torch.ones(24, 3)})),
    "two ranks in a pair": ("rank", lambda t: t.update({A0: torch.ones(3, 8)})),
    "another dtype": ("dtype", lambda t: t.update({A0: t[A0].half()})),
    "integers": ("dtype", lambda t: t.update({k: v.to(torch.int8) for k, v in t.items()})),
    "a layer left out": ("coverage", lambda t: [t.pop(_name(2, "mlp.c_fc", f"lora_{x}.weight")) for x in "AB"]),
    "no layer 1": ("coverage", lambda t: [t.pop(k) for k in list(t) if ".h.1." in k]),
    "an unlisted head": ("saved", lambda t: t.update({"base_model.model.score.weight": torch.ones(2, 8)})),
    "an embedding": ("whole-table", lambda t: t.update({"base_model.model.transformer.wte.weight": torch.ones(16, 8)})),
    "a large table": ("whole-table", lambda t: t.update({"base_model.model.odd.weight": torch.ones(20000, 2)})),
    "a DoRA length": ("dora", lambda t: t.update({_name(0, "attn.c_attn", "lora_magnitude_vector"): torch.ones(24)})),
    "an empty shard": ("empty", lambda t: t.update({A0: torch.ones(2, 0)})),
    "another module": ("targets", lambda t: t.update({A0.replace("c_attn", "q"): t.pop(A0), B0.replace("c_attn", "q"): t.pop(B0)})),
    "nothing": ("no-adapter", lambda t: t.clear() or t.update({"x.weight": torch.ones(2)})),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_an_odd_tensor_is_found(what: str, adapter: Path) -> None:
    code, change = CHANGES[what]
    assert code in _codes(_tensors(adapter, change))


def test_layers_that_recur_or_were_chosen_are_not_odd(tmp_path: Path) -> None:
    for number, (layers, chosen, odd) in enumerate(
        [
            (range(0, 12, 3), None, False),
            (range(3, 12, 4), None, False),
            ((0, 1, 5), None, True),
            ((0, 1, 5), [0, 1, 5], False),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        values = {
            "peft_type": "LORA",
            "r": 2,
            "base_model_name_or_path": "a/b",
            "target_modules": ["q"],
            "layers_to_transform": chosen,
        }
        (folder / CONFIG).write_text(json.dumps(values))
        names = [f"base_model.model.layers.{i}.{m}.lora_{x}.weight" for i in layers for m in ("q",) for x in "AB"]
        names += (
            [] if odd or chosen else [f"base_model.model.layers.11.q.lora_{x}.weight" for x in "AB" if 11 in layers]
        )
        save_file({n: torch.ones(2, 2) for n in names}, folder / WEIGHTS)
        assert ("coverage" in _codes(folder)) is odd, number


def test_layers_of_another_build_are_not_odd(tmp_path: Path) -> None:
    values = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "a/b", "target_modules": ["q_proj", "in_proj"]}
    (tmp_path / CONFIG).write_text(json.dumps(values))
    kinds = ["self_attn.q_proj" if i in (1, 2, 5) else "mamba.in_proj" for i in range(8)]
    names = [f"base_model.model.layers.{i}.{kind}.lora_{x}.weight" for i, kind in enumerate(kinds) for x in "AB"]
    save_file({n: torch.ones(2, 2) for n in names}, tmp_path / WEIGHTS)
    seen = inspect_adapter(tmp_path)
    assert seen.findings == ()
    assert {t.name: len(t.layers) for t in seen.targets} == {
        "layers.*.self_attn.q_proj": 3,
        "layers.*.mamba.in_proj": 5,
    }


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("training_args.bin", "secret"), (".env", "secret"), ("optimizer.pt", "pickle"), ("adapter_model.bin", "pickle"),
        ("rng_state.pth", "pickle"), ("model.safetensors", "base-weights"), ("pytorch_model-00001-of-2.bin", "base-weights"),
        ("adapter_model-00001-of-00002.safetensors", "twice"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_belong_there_is_found(file: str, code: str, adapter: Path) -> None:
    (adapter / file).write_bytes(b"hf_secret")
    assert code in _codes(adapter)
    assert "hf_secret" not in str(inspect_adapter(adapter))


def test_notes_that_do_not_fit_the_file_are_found(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    for notes in ('{"tensors": 15}', "[", "[]"):
        save_file(tensors, adapter / WEIGHTS, metadata={"hf_lora": notes})
        assert _codes(adapter) == ["notes"]


def test_a_key_that_stands_twice_in_the_config_is_found(adapter: Path) -> None:
    text = (adapter / CONFIG).read_text()
    (adapter / CONFIG).write_text(text.replace("{", '{"r": 64, ', 1))
    assert "duplicates" in _codes(adapter)


# --- that it never loads, runs or breaks --------------------------------------------------------------------------


def test_the_command_starts_without_torch_and_reads_the_head_only(adapter: Path) -> None:
    raw = bytearray((adapter / WEIGHTS).read_bytes())
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    raw[size:] = b"\xff" * (len(raw) - size)  # NaNs, which nobody looks at
    (adapter / WEIGHTS).write_bytes(raw)
    code = f"import sys; from hf_lora.cli import main as cli; status = cli.main(['inspect', {str(adapter)!r}]); assert 'torch' not in sys.modules; sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing suspicious" in done.stdout


def test_the_exit_status_says_whether_something_is_odd(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(adapter)]) == 0
    assert cli.main(["inspect", str(_config(adapter, lora_alpha=0)), "--json"]) == 1
    told = capsys.readouterr().out
    (finding,) = json.loads(told[told.index("\n{") :])["findings"]
    assert finding["code"] == "alpha"
    assert "lora_alpha" in finding["text"]
    assert cli.main(["inspect", str(adapter.parent)]) == 2
    assert cli.main(["inspect", str(adapter.parent), "--subfolder", "adapter"]) == 1
    assert "adapter_config.json" in capsys.readouterr().err


def test_an_adapter_of_the_hub_is_read_by_its_first_bytes(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, int]] = []
    seen_with: list[Mapping[str, Any]] = []

    def fetch(repo: str, file: str, **kwargs: Any) -> Path | None:
        assert file == CONFIG
        seen_with.append(kwargs)
        return adapter / file

    def fetch_range(repo: str, file: str, start: int, stop: int, **kwargs: Any) -> bytes:
        asked.append((file, start, stop))
        return (adapter / file).read_bytes()[start:stop]

    def list_files(repo: str, **kwargs: Any) -> dict[str, int]:
        return {**{p.name: p.stat().st_size for p in adapter.iterdir()}, "checkpoint-1/optimizer.pt": 1}

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "fetch_range", fetch_range)
    monkeypatch.setattr(hub, "list_files", list_files)
    monkeypatch.setattr(looking, "_FIRST", 64)
    seen = inspect_adapter("someone/adapter", revision="v2")
    assert seen.findings == ()
    assert seen.tensors == 16
    assert [(file, start) for file, start, _ in asked] == [(WEIGHTS, 0), (WEIGHTS, 64)]
    assert asked[1][2] < (adapter / WEIGHTS).stat().st_size
    assert seen_with == [{"revision": "v2"}]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000, b"{" + b" " * (1 << 24) + b"}"])
def test_a_config_that_is_no_object_is_one_error(content: bytes, adapter: Path) -> None:
    (adapter / CONFIG).write_bytes(content)
    with pytest.raises(LoRAError):
        inspect_adapter(adapter)


def test_names_that_steer_a_terminal_are_told_without_their_power(adapter: Path) -> None:
    _config(adapter, base_model_name_or_path="a\x1b[2Jb/\u202ec", task_type="x\ny" * 999)
    _tensors(adapter, lambda t: t.update({"evil\x07\r\n.weight": torch.ones(1)}))
    text = str(inspect_adapter(adapter))
    assert all(c == "\n" or c.isprintable() for c in text)
    assert len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) <= 200


def test_a_pickle_and_a_folder_without_adapter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lora.pt").write_bytes(b"x")
    with pytest.raises(AdapterFileError, match="pickle"):
        inspect_adapter(tmp_path / "lora.pt")
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json"):
        inspect_adapter(tmp_path)


def test_the_adapters_in_the_folders_below_are_named(adapter: Path) -> None:
    adapter.rename(adapter.with_name("below"))
    with pytest.raises(AdapterFileError, match="below"):
        inspect_adapter(adapter.parent)


ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    10**400,
    1.5,
    1e308,
    "",
    "x",
    [],
    [1],
    [[1]],
    ["("],
    {},
    {"(": 1},
    {"x": [1]},
    [None],
    "\ud800",
]


def test_400_mutated_adapters_end_in_a_report_or_in_one_of_our_errors(adapter: Path) -> None:
    generator = random.Random(0)
    raw, values = (adapter / WEIGHTS).read_bytes(), json.loads((adapter / CONFIG).read_text())
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    told = 0
    for number in range(400):
        if number % 2:
            changed = {**values, generator.choice(sorted(values)): generator.choice(ODD_VALUES)}
            (adapter / CONFIG).write_text(json.dumps(changed))
        else:
            mutated = bytearray(raw)
            for _ in range(generator.randint(1, 4)):
                mutated[generator.randrange(size)] = generator.randrange(256)
            (adapter / WEIGHTS).write_bytes(
                mutated[: generator.choice([len(mutated), size, generator.randrange(size)])]
            )
        try:
            seen = inspect_adapter(adapter)
        except LoRAError:
            pass
        else:
            told += 1
            assert len(str(seen).splitlines()) < 40
            json.dumps(seen.to_dict())
        (adapter / CONFIG).write_text(json.dumps(values))
        (adapter / WEIGHTS).write_bytes(raw)
    assert told > 150


def test_an_expression_that_could_take_for_ever_is_told_and_not_tried(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a" * 60: nn.Linear(4, 4)})
    add_lora(net, LoRAConfig(r=2, target_modules=["a" * 60])).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"target_modules": "((a+)+)+!", "rank_pattern": {"((a+)+)+!": 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert any("could take for ever" in str(finding) for finding in inspect_adapter(tmp_path).findings)
