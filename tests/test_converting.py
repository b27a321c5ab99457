"""`hf-lora convert`: what is written, read as each engine reads it, is the update of the adapter that it was made from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_lora import LoRAConfig, LoRAModel, check_for, convert_for
from hf_lora.errors import AdapterFileError, ArgumentError, EngineError

from .peek import cli
from .tiny import outputs, tiny

PAIR = {"target_modules": ["q_proj", "v_proj"]}
PREFIX = "base_model.model."
# What engines refuse or compute wrongly, as settings of a Llama's adapter.
MENDED: dict[str, dict[str, Any]] = {
    "rsLoRA": {**PAIR, "use_rslora": True, "r": 4},
    "patterns": {**PAIR, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 9}},
    "PiSSA": {**PAIR, "init_lora_weights": "pissa"},
    "MiLoRA": {**PAIR, "init_lora_weights": "milora"},
    "VeRA": {**PAIR, "use_vera": True, "lora_alpha": 8},
    "AdaLoRA": {**PAIR, "use_adalora": True, "target_r": 1},
    "ShareLoRA": {**PAIR, "use_sharelora": True},
    "LoRA-XS": {**PAIR, "use_lora_xs": True},
    "the query alone": {"target_modules": ["q_proj"]},
    "the key alone": {"target_modules": ["k_proj"]},
    "up_proj alone": {"target_modules": ["up_proj"]},
    "PiSSA of rank 5": {**PAIR, "init_lora_weights": "pissa", "r": 5},
    "a layer alone": {**PAIR, "layers_to_transform": [1]},
    "an expression": {"target_modules": r".*\.[qv]_proj"},
}
SERVERS = ("vllm", "sglang", "tgi")


def made(folder: Path, family: str = "llama", cls: str | None = None, **settings: Any) -> Path:
    """Save an adapter that changes something, and its base beside it."""
    base = tiny(family, cls)
    base.config.architectures = [type(base).__name__]
    base.save_pretrained(folder / "base")
    model = LoRAModel.from_model(
        type(base).from_pretrained(folder / "base"), LoRAConfig(**{"r": 2, "lora_alpha": 4, **settings})
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def updates(adapter: Path) -> dict[str, Tensor]:
    """Return what an adapter adds to each weight of its base: that of the merged model less the base's, in float64."""
    merged = LoRAModel.from_pretrained(adapter, dtype=torch.float64).merge_and_unload().state_dict()
    base = LoRAModel.from_pretrained(adapter, dtype=torch.float64).unload().state_dict()
    found = {name: merged[name] - value for name, value in base.items()}
    return {name.removesuffix(".weight"): delta for name, delta in found.items() if delta.abs().max() > 1e-9}


def served(folder: Path, engine: str) -> dict[str, Tensor]:
    """Return what a server adds to each layer: one scaling, of the config; all of them, pairs by name.

    TGI goes through the kinds of layers, and each kind's rank, filled up, is the next one's. SGLang stacks q, k and v.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert isinstance(config["target_modules"], list)
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") and engine != "sglang" else rank)
    tensors = load_file(folder / "adapter_model.safetensors")
    ends = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    assert {f"{end}.lora_{x}.weight" for end in ends for x in "AB"} == tensors.keys()  # others would be dropped
    pairs = {
        end.removeprefix(PREFIX): (tensors[f"{end}.lora_A.weight"], tensors[f"{end}.lora_B.weight"]) for end in ends
    }
    assert {len(a) for a, _ in pairs.values()} == {rank}
    kinds = {name.rpartition(".")[2] for name in pairs}
    if engine == "tgi":
        assert len(kinds) == 1 or rank == 8 or rank % 16 == 0
    if engine == "sglang":
        assert not kinds & {"q_proj", "k_proj", "v_proj"} or kinds >= {"q_proj", "v_proj"}
        assert "up_proj" not in kinds or "gate_proj" in kinds
    return {name: scaling * (b.double() @ a.double()) for name, (a, b) in pairs.items()}


def fused(found: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Return single experts' updates as those of the parameters that Transformers has."""
    gate, up, down, owner = {
        "mixtral": ("w1", "w3", "w2", "block_sparse_moe"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj", "mlp"),
    }[family]  # fmt: skip
    result = {name: delta for name, delta in found.items() if ".experts." not in name}
    for layer in range(2):
        experts = [
            {w: found[f"model.layers.{layer}.{owner}.experts.{n}.{w}"] for w in (gate, up, down)} for n in range(4)
        ]
        result[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack(
            [torch.cat([e[gate], e[up]]) for e in experts]
        )
        result[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack([e[down] for e in experts])
    return result


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert wanted
    assert wanted.keys() <= found.keys()
    for name, delta in found.items():
        torch.testing.assert_close(delta, wanted.get(name, torch.zeros_like(delta)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", MENDED)
def test_what_servers_got_wrong_they_compute_right(what: str, tmp_path: Path) -> None:
    adapter = made(tmp_path, **MENDED[what])
    wanted = updates(adapter)
    for engine in SERVERS:
        done = convert_for(adapter, tmp_path / engine, engine)
        assert done.checked is not None
        assert done.checked.verdict == check_for(tmp_path / engine, engine).verdict == "loads"
        assert_same(served(tmp_path / engine, engine), wanted)
    ours = LoRAModel.from_pretrained(tmp_path / "vllm")
    torch.testing.assert_close(outputs(ours, "llama"), outputs(LoRAModel.from_pretrained(adapter), "llama"))


@pytest.mark.parametrize("what", ["rsLoRA", "patterns", "LoRA-XS"])
def test_peft_computes_the_same_with_what_is_written_for_it(what: str, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = made(tmp_path, **MENDED[what])
    convert_for(adapter, tmp_path / "plain", "peft")
    theirs = PeftModel.from_pretrained(tiny("llama"), tmp_path / "plain")
    torch.testing.assert_close(outputs(theirs, "llama"), outputs(LoRAModel.from_pretrained(adapter), "llama"))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_fused_experts_are_written_one_by_one(family: str, tmp_path: Path) -> None:
    adapter = made(tmp_path, family, target_modules="all-linear")
    assert check_for(adapter, "vllm").verdict != "loads"
    convert_for(adapter, tmp_path / "plain", "vllm")
    assert check_for(tmp_path / "plain", "vllm").verdict == "loads"
    assert_same(fused(served(tmp_path / "plain", "vllm"), family), updates(adapter))
    convert_for(adapter, tmp_path / "stacked", "sglang")
    assert_same(fused(served(tmp_path / "stacked", "sglang"), family), updates(adapter))
    targets = json.loads((tmp_path / "stacked" / "adapter_config.json").read_text())["target_modules"]
    assert {*targets} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # never w1 there
    with pytest.raises(EngineError, match=r"factors of experts.*hf-lora merge"):
        convert_for(adapter, tmp_path / "tgi", "tgi")


def test_the_base_s_weights_are_not_read_where_the_adapter_needs_none(tmp_path: Path) -> None:
    adapter = made(tmp_path, **MENDED["rsLoRA"])
    wanted = updates(adapter)
    (tmp_path / "base" / "model.safetensors").unlink()
    convert_for(adapter, tmp_path / "plain", "sglang")
    assert_same(served(tmp_path / "plain", "sglang"), wanted)


def test_a_lower_rank_is_the_best_approximation_and_its_loss_is_told(tmp_path: Path) -> None:
    adapter = made(tmp_path, **{**PAIR, "use_dora": True, "r": 3})
    with pytest.raises(EngineError, match=r"vLLM cannot be given .*it takes lora_A and lora_B alone.*--rank 64"):
        convert_for(adapter, tmp_path / "plain", "vllm")
    done = convert_for(adapter, tmp_path / "plain", "vllm", rank=16)
    assert done.lost is not None
    assert done.lost.error < 1e-5  # the change of a 16 x 16 weight has no higher rank
    assert_same(served(tmp_path / "plain", "vllm"), updates(adapter))
    lower = convert_for(tmp_path / "plain", tmp_path / "lower", "vllm", rank=2)
    assert lower.lost is not None
    assert 0 < lower.lost.error < 1
    assert json.loads((tmp_path / "lower" / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize(
    ("settings", "engine", "told"),
    [
        ({**PAIR, "lora_bias": True}, "vllm", "it takes no biases"),
        ({**PAIR, "modules_to_save": ["lm_head"]}, "sglang", "drops the rest without a word"),
        ({**PAIR, "trainable_token_indices": [1]}, "llama.cpp", "it takes lora_A and lora_B alone"),
        ({**PAIR, "trainable_token_indices": [1]}, "mlx", "holds more than factors"),
    ],
)
def test_what_can_only_be_merged_is_refused_and_nothing_written(
    settings: dict[str, Any], engine: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = made(tmp_path, "qwen2", **settings)
    there = {*tmp_path.iterdir()}
    with pytest.raises(EngineError, match=rf"{told}.*hf-lora merge"):
        convert_for(adapter, tmp_path / "out.gguf", engine)
    assert {*tmp_path.iterdir()} == there
    assert cli.main(["convert", str(adapter), str(tmp_path / "out.gguf"), "--for", engine]) == 2
    assert told in capsys.readouterr().err


def test_what_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    adapter = made(tmp_path, **PAIR)
    with pytest.raises(AdapterFileError, match="is there already"):
        convert_for(adapter, tmp_path / "base", "vllm")
    with pytest.raises(AdapterFileError, match=r"ends in \.gguf"):
        convert_for(adapter, tmp_path / "out", "llama.cpp")


HEADS = {
    "a classification head": ("mistral", {**PAIR, "modules_to_save": ["score"], "task_type": "SEQ_CLS"}, "tgi"),
    "of two layers": ("roberta", {"target_modules": ["query"], "modules_to_save": ["classifier"]}, "peft"),
    "norms": ("llama", {**PAIR, "use_rslora": True, "modules_to_save": ["input_layernorm"]}, "vllm"),
}


@pytest.mark.parametrize("what", HEADS)
def test_factors_and_a_head_split_off_compute_what_the_adapter_does(what: str, tmp_path: Path) -> None:
    from peft import PeftModel

    family, settings, engine = HEADS[what]
    adapter, head = made(tmp_path, family, **settings), tmp_path / "head.safetensors"
    wanted = outputs(LoRAModel.from_pretrained(adapter, dtype=torch.float64), family)[0]
    done = convert_for(adapter, tmp_path / "plain", engine, split_head=head)
    parts = load_file(head)
    assert {*done.split} == {*parts}
    assert done.checked is not None
    assert not any("modules_to_save" in each.said for each in done.checked.told)
    loads: list[Callable[[Any], Any]] = [
        lambda base: LoRAModel.from_pretrained(tmp_path / "plain", base_model=base),
        lambda base: PeftModel.from_pretrained(base, tmp_path / "plain"),
    ]
    for load in loads:
        base = tiny(family).double()
        before = outputs(base, family)[0]
        assert not base.load_state_dict(parts, strict=False).unexpected_keys
        torch.testing.assert_close(outputs(load(base).double(), family)[0], wanted, rtol=1e-6, atol=1e-7)
        assert (before - wanted).abs().max() > 1e-3
        assert (
            outputs(load(tiny(family).double()).double(), family)[0] - wanted
        ).abs().max() > 1e-3  # without the head


def test_a_head_goes_beside_a_gguf_file_and_only_where_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    family, settings, _ = HEADS["norms"]
    adapter, head = str(made(tmp_path, family, **settings)), tmp_path / "head.safetensors"
    assert cli.main(["convert", adapter, str(tmp_path / "a.gguf"), "--for", "llama.cpp"]) == 2
    assert "--split-head head.safetensors" in capsys.readouterr().err
    given = ["convert", adapter, str(tmp_path / "a.gguf"), "--for", "llama.cpp", "--split-head", str(head)]
    assert cli.main(given) == 0
    assert "input_layernorm.weight" in capsys.readouterr().out
    assert {*load_file(head)} == {f"model.layers.{n}.input_layernorm.weight" for n in range(2)}
    given[2] = str(tmp_path / "b.gguf")
    assert cli.main(given) == 2  # the head is there already
    assert not (tmp_path / "b.gguf").exists()
    other = made(tmp_path / "other", **PAIR)
    with pytest.raises(EngineError, match="no part in full"):
        convert_for(other, tmp_path / "out", "vllm", split_head=tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


# --- files of other layouts -----------------------------------------------------------------------------------------

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "mlp.gate_proj": "ffn_gate",
    "self_attn.o_proj": "attn_output", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.experts.gate_up_proj": "", "mlp.experts.down_proj": "ffn_down_exps", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}  # fmt: skip


def in_gguf(name: str, delta: Tensor, heads: dict[str, int]) -> dict[str, Tensor]:
    """Return an update under llama.cpp's name; a query's or key's rows i and i + d/2 of a head beside each other."""
    layer, _, module = name.removeprefix("transformer.h.").removeprefix("model.layers.").partition(".")
    if module == "mlp.experts.gate_up_proj":
        gate, up = delta.chunk(2, dim=1)
        return {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
    count = heads.get(module.rpartition(".")[2])
    if count:
        order = torch.arange(len(delta)).view(count, 2, -1).mT.flatten()
        delta = delta[order]
    return {f"blk.{layer}.{NAMES[module]}.weight": delta.T if ".c_" in module else delta}


@pytest.mark.parametrize(
    ("family", "heads", "settings"),
    [
        ("llama", {"q_proj": 2, "k_proj": 1}, {"target_modules": "all-linear", "use_rslora": True}),
        ("llama", {"q_proj": 2, "k_proj": 1}, {**MENDED["patterns"]}),
        ("llama", {"q_proj": 2, "k_proj": 1}, {**MENDED["PiSSA"]}),
        ("qwen2", {}, {"target_modules": "all-linear"}),
        ("phi3", {}, {"target_modules": "all-linear"}),
        ("gpt2", {}, {"target_modules": ["c_attn", "c_fc", "c_proj"]}),
        ("mixtral", {"q_proj": 2, "k_proj": 1}, {"target_modules": "all-linear"}),
        ("qwen3_moe", {}, {"target_modules": "all-linear"}),
    ],
)
def test_a_gguf_file_holds_the_update_under_llama_cpp_s_names(
    family: str, heads: dict[str, int], settings: dict[str, Any], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    adapter, file = made(tmp_path, family, **settings), tmp_path / "adapter.gguf"
    convert_for(adapter, file, "llama.cpp")
    reader = gguf.GGUFReader(file)
    facts = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    alpha = facts.pop("adapter.lora.alpha")
    architecture = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}.get(family, family)
    assert facts == {"general.architecture": architecture, "general.type": "adapter", "adapter.type": "lora"}
    tensors = {t.name: torch.tensor(t.data).reshape(*map(int, reversed(t.shape))).double() for t in reader.tensors}
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            b = tensors[f"{name.removesuffix('a')}b"]
            found[name.removesuffix(".lora_a")] = alpha / b.shape[-1] * (b @ a)
    assert_same(found, {k: v for n, delta in updates(adapter).items() for k, v in in_gguf(n, delta, heads).items()})


@pytest.mark.parametrize("what", ["rsLoRA", "patterns", "PiSSA"])
def test_an_mlx_folder_holds_the_update_the_other_way_round(what: str, tmp_path: Path) -> None:
    adapter = made(tmp_path, **MENDED[what])
    convert_for(adapter, tmp_path / "mlx", "mlx")
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert (config["fine_tune_type"], config["num_layers"]) == ("lora", 2)
    parameters, tensors = config["lora_parameters"], load_file(tmp_path / "mlx" / "adapters.safetensors")
    assert {*parameters} == {"rank", "scale", "dropout", "keys"}
    found = {}
    for layer in range(config["num_layers"]):  # as mlx-lm makes layers, and takes what has a place
        for key in parameters["keys"]:
            name = f"model.layers.{layer}.{key}"
            a, b = tensors.pop(f"{name}.lora_a").double(), tensors.pop(f"{name}.lora_b").double()
            assert (a.shape[1], b.shape[0]) == (parameters["rank"], parameters["rank"])
            found[name] = parameters["scale"] * (b.T @ a.T)
    assert not tensors
    assert_same(found, updates(adapter))


def test_layers_that_an_engine_has_no_names_for_are_refused(tmp_path: Path) -> None:
    adapter = made(tmp_path, "bloom", target_modules=["query_key_value"])
    with pytest.raises(EngineError, match=r"llama\.cpp's names of a bloom are not known here.*for peft"):
        convert_for(adapter, tmp_path / "a.gguf", "llama.cpp")
    with pytest.raises(EngineError, match=r"mlx-lm's names of a bloom"):
        convert_for(adapter, tmp_path / "mlx", "mlx")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "base"}


def test_tied_tables_are_refused_where_an_engine_would_adapt_one_of_the_two_places(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    adapter = made(tmp_path, "gemma2", target_modules=["q_proj", "embed_tokens"])
    for engine, out in {"llama.cpp": "a.gguf", "mlx": "mlx"}.items():
        with pytest.raises(EngineError, match="tied"):
            convert_for(adapter, tmp_path / out, engine)


def test_a_package_that_is_not_there_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = made(tmp_path, **PAIR)
    for name in ("gguf", "onnx"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for engine in ("llama.cpp", "onnx"):
        out = str(tmp_path / {"llama.cpp": "a.gguf", "onnx": "a.onnx"}[engine])
        assert cli.main(["convert", str(adapter), out, "--for", engine]) == 2
        assert "pip install 'hf-lora[export]'" in capsys.readouterr().err


def test_mlx_is_given_no_layers_that_its_models_have_under_other_names(tmp_path: Path) -> None:
    adapter = made(tmp_path, "llama", "LlamaModel", **PAIR)
    with pytest.raises(EngineError, match="passes over factors"):
        convert_for(adapter, tmp_path / "mlx", "mlx")


@pytest.mark.parametrize("engine", ["vllm", "mlx", "llama.cpp", "onnx"])
def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = made(tmp_path, **PAIR), tmp_path / "new"
    file = {"llama.cpp": "a.gguf", "onnx": "a.onnx"}.get(engine, "a")
    for package in {"llama.cpp": ["gguf"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}.get(engine, []):
        pytest.importorskip(package)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "rename", full)
    assert cli.main(["convert", str(adapter), str(out / file), "--for", engine]) == 2
    told = capsys.readouterr().err
    assert "cannot be written" in told
    assert "No space left" in told
    assert not any(out.iterdir())


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp", "onnx"])
def test_what_is_there_and_what_is_no_place_is_told_before_anything_is_loaded(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = {"llama.cpp": ".gguf", "onnx": ".onnx"}.get(engine, "")
    (tmp_path / "file").touch()
    (tmp_path / f"link{end}").symlink_to(tmp_path / "nowhere")
    for path, told in {"file/out": "is no folder", "link": "is there already"}.items():
        assert cli.main(["convert", "no/adapter", str(tmp_path / f"{path}{end}"), "--for", engine]) == 2
        assert told in capsys.readouterr().err
    assert cli.main(["merge", "no/adapter", str(tmp_path / "link")]) == 2


def test_arguments_of_other_kinds_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = made(tmp_path, **PAIR)
    with pytest.raises(ArgumentError, match="output=None"):
        convert_for(adapter, None, "vllm")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="not a LlamaForCausalLM"):
        convert_for(adapter, tmp_path / "out", "vllm", base_model=tiny("llama"))
    with pytest.raises(ArgumentError, match="revison"):
        check_for(adapter, "vllm", revison="main")
    assert cli.main(["convert", str(adapter), str(tmp_path / "a.onnx"), "--for", "onnx", "--rank", "4"]) == 2
    assert "--for onnx merges" in capsys.readouterr().err
