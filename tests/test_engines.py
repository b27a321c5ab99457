"""`hf-lora check`: what each engine makes of adapters saved by this package.

Every row was put through the loading code of the engines themselves, as docs/deploy.md says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hf_lora import LoRAConfig, LoRAModel, check_for, convert_for
from hf_lora.errors import AdapterFileError, ArgumentError, LoRAError

from .peek import ENGINE_ROWS, cli, rules_table
from .tiny import edit_config, tiny

ENGINES = ("vllm", "sglang", "tgi", "llama.cpp", "peft", "mlx")
WORDS = {"+": "loads", "-": "refused", "!": "silently wrong", "?": "not known"}
PAIR = {"target_modules": ["q_proj", "v_proj"]}

# What is adapted, and of vLLM, SGLang, TGI, llama.cpp and PEFT what they do: + - ! ? as in WORDS.
TABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "plain": ("llama", PAIR, "+++++"),
    "attention": ("qwen2", {"target_modules": "attention"}, "++!++"),
    "all-linear": ("llama", {"target_modules": "all-linear"}, "+++++"),
    "all-linear of Gemma 2": ("gemma2", {"target_modules": "all-linear"}, "++?++"),
    "all-linear of Phi-3": ("phi3", {"target_modules": "all-linear"}, "++!++"),
    "qkv_proj of Phi-3": ("phi3", {"target_modules": ["qkv_proj"]}, "+++++"),
    "the output layers of Qwen2": ("qwen2", {"target_modules": ["o_proj", "down_proj"]}, "+++++"),
    "Qwen3": ("qwen3", {"target_modules": "all-linear"}, "++?++"),
    "GPT-2": ("gpt2", {"target_modules": ["c_attn"]}, "--?-+"),
    "GPT-2's square layers": ("gpt2", {"target_modules": ["attn.c_proj"]}, "--?!+"),
    "GPT-J": ("gptj", PAIR, "--??+"),
    "OPT": ("opt", PAIR, "+-??+"),
    "Bloom": ("bloom", {"target_modules": ["query_key_value"]}, "--??+"),
    "BERT": ("bert_mlm", {"target_modules": ["query", "value"]}, "????+"),
    "a classifier of BERT": ("bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}, "+!!-+"),
    "an expression": ("llama", {"target_modules": r".*\.[qv]_proj"}, "+-+++"),
    "factors of the table": ("llama", {"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "++!++"),
    "factors of the head": ("llama", {"target_modules": ["q_proj", "v_proj", "lm_head"]}, "++!++"),
    "factors of Qwen2's table": ("qwen2", {"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "-+!++"),
    "factors of Gemma 2's table": ("gemma2", {"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "-+!-+"),
    "factors of Gemma 2's head": ("gemma2", {"target_modules": ["q_proj", "v_proj", "lm_head"]}, "--!-+"),
    "factors of Phi-3's head": ("phi3", {"target_modules": ["qkv_proj", "lm_head"]}, "++!++"),
    "factors of Qwen3-MoE's table": ("qwen3_moe", {"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "++!++"),
    "a saved table": ("llama", {**PAIR, "modules_to_save": ["embed_tokens"]}, "-!!-+"),
    "a saved head": ("llama", {**PAIR, "modules_to_save": ["lm_head"]}, "-!!-+"),
    "saved norms": ("llama", {**PAIR, "modules_to_save": ["input_layernorm"]}, "--!!+"),
    "the last norm saved": ("llama", {**PAIR, "modules_to_save": ["model.norm"]}, "-!!!+"),
    "saved parts of layers": ("llama", {**PAIR, "modules_to_save": ["down_proj"]}, "--!-+"),
    "a classification head": ("mistral", {**PAIR, "modules_to_save": ["score"], "task_type": "SEQ_CLS"}, "+!!-+"),
    "rsLoRA": ("llama", {**PAIR, "use_rslora": True}, "+!+!+"),
    "rank_pattern": ("llama", {**PAIR, "rank_pattern": {"v_proj": 3}}, "+-!++"),
    "alpha_pattern": ("llama", {**PAIR, "alpha_pattern": {"v_proj": 3}}, "+!!!+"),
    "rank 4": ("llama", {**PAIR, "r": 4}, "++!++"),
    "rank 4 of one kind": ("llama", {"target_modules": ["o_proj"], "r": 4}, "+++++"),
    "DoRA": ("llama", {**PAIR, "use_dora": True}, "--!-+"),
    "HiRA": ("llama", {**PAIR, "use_hira": True, "lora_alpha": 8}, "----+"),
    "VeRA": ("llama", {**PAIR, "use_vera": True, "r": 4, "lora_alpha": 8}, "----+"),
    "LoRA-XS": ("llama", {**PAIR, "use_lora_xs": True}, "-----"),
    "LoRA-FA": ("llama", {**PAIR, "use_lora_fa": True}, "+++++"),
    "lora_bias": ("qwen2", {**PAIR, "lora_bias": True}, "-!!-+"),
    "biases": ("qwen2", {"target_modules": "attention", "bias": "all"}, "-!!-+"),
    "biases of q_proj without k_proj": ("qwen2", {**PAIR, "bias": "all"}, "--!-+"),
    "biases of adapted layers": ("qwen2", {**PAIR, "bias": "lora_only"}, "-!!-+"),
    "token rows": ("llama", {**PAIR, "trainable_token_indices": [1, 2]}, "-!!-+"),
    "PiSSA": ("llama", {**PAIR, "init_lora_weights": "pissa"}, "-!!!+"),
    "OLoRA": ("llama", {**PAIR, "init_lora_weights": "olora"}, "-!!!+"),
    "MiLoRA": ("llama", {**PAIR, "init_lora_weights": "milora"}, "+++++"),
    "rsLoRA of rank 1 but for a pattern": (
        "llama", {**PAIR, "use_rslora": True, "r": 1, "rank_pattern": {"v_proj": 4}}, "+-!!+",
    ),
    "the query alone": ("llama", {"target_modules": ["q_proj"]}, "+-+++"),
    "the key alone": ("llama", {"target_modules": ["k_proj"]}, "+-+++"),
    "the value alone": ("llama", {"target_modules": ["v_proj"]}, "+-+++"),
    "up_proj alone": ("llama", {"target_modules": ["up_proj"]}, "+-+++"),
    "gate_proj alone": ("llama", {"target_modules": ["gate_proj"]}, "+++++"),
    "one layer of two": ("llama", {**PAIR, "layers_to_transform": [1]}, "++!++"),
    "Mixtral's experts": ("mixtral", {"target_modules": "all-linear"}, "!-!-+"),
    "Qwen3-MoE's experts": ("qwen3_moe", {"target_modules": "all-linear"}, "--!-+"),
    "rank 32": ("llama", {**PAIR, "r": 32, "lora_alpha": 32}, "-++++"),
}  # fmt: skip


def saved(folder: Path, family: str, settings: dict[str, Any]) -> Path:
    """Save an adapter that changes something, on a base whose own folder is not there."""
    config = LoRAConfig(**{"r": 8, "lora_alpha": 16, **settings})
    model = LoRAModel.from_model(tiny(family), config)
    model.save_pretrained(folder)
    return folder


def verdicts_of(folder: Path) -> str:
    """Return what vLLM, SGLang, TGI, llama.cpp and PEFT do, as in WORDS."""
    marks = {word: mark for mark, word in WORDS.items()}
    return "".join(marks[check_for(folder, engine).verdict] for engine in ENGINES[:5])


@pytest.mark.parametrize("what", TABLE)
def test_each_engine_does_with_an_adapter_what_its_source_says(what: str, tmp_path: Path) -> None:
    family, settings, verdicts = TABLE[what]
    folder = saved(tmp_path, family, settings)
    assert verdicts_of(folder) == verdicts
    assert check_for(folder, "mlx").verdict == "refused"  # it reads a layout of its own


def test_a_class_whose_layers_an_engine_does_not_adapt_is_told(tmp_path: Path) -> None:
    for family, verdict in {"mistral": "silently wrong", "llama": "loads"}.items():
        base = tiny(family, f"{family.title()}ForSequenceClassification")
        LoRAModel.from_model(base, LoRAConfig(r=8, **PAIR)).save_pretrained(tmp_path / family)
        assert check_for(tmp_path / family, "sglang").verdict == verdict


def test_what_refuses_loads_nothing_wrongly_and_every_reason_is_told(tmp_path: Path) -> None:
    settings = {**PAIR, "use_rslora": True, "target_modules": r".*\.[qv]_proj", "bias": "none"}
    found = check_for(saved(tmp_path, "llama", settings), "sglang")
    assert found.verdict == "refused"
    assert {each.verdict for each in found.told} == {"refused", "silently wrong"}
    assert all("hf-lora convert" in each.cure for each in found.told)


def test_a_server_is_asked_with_the_rank_that_it_was_started_with(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama", {**PAIR, "r": 32, "lora_alpha": 32})
    assert check_for(folder, "vllm", max_rank=32).verdict == "loads"
    assert "--max-lora-rank 32" in str(check_for(folder, "vllm"))
    assert check_for(folder, "sglang", max_rank=16).verdict == "refused"


def test_of_a_base_that_nobody_knows_nothing_is_claimed(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny("llama"), LoraConfig(r=8, target_modules=["q_proj", "v_proj"])).save_pretrained(tmp_path)
    edit_config(tmp_path, base_model_name_or_path=None, auto_mapping=None)
    assert [check_for(tmp_path, e).verdict for e in ENGINES[:5]] == ["not known"] * 4 + ["loads"]
    tiny("llama").config.save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["LlamaForCausalLM"]}))
    assert [check_for(tmp_path, e, base_model=str(tmp_path / "base")).verdict for e in ENGINES[:5]] == ["loads"] * 5


@pytest.mark.parametrize(
    ("what", "status", "word"),
    [("plain", 0, "loads"), ("DoRA", 1, "refused"), ("rsLoRA", 3, "silently wrong"), ("BERT", 4, "not known")],
)
def test_the_exit_status_says_the_verdict(
    what: str, status: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, settings, _ = TABLE[what]
    folder = str(saved(tmp_path, family, settings))
    assert cli.main(["check", folder, "--for", "sglang"]) == status
    assert word in capsys.readouterr().out
    assert cli.main(["check", folder, "--for", "sglang", "--json"]) == status
    assert json.loads(capsys.readouterr().out)["verdict"] == word


def test_what_is_no_adapter_or_no_engine_is_told(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="adapter_config"):
        check_for(tmp_path, "vllm")
    with pytest.raises(ArgumentError, match=r"engine='ollama'.*vllm, sglang"):
        check_for(tmp_path, "ollama")


def test_the_page_has_the_rules_as_they_are() -> None:
    page = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert rules_table() in page
    for name, row in ENGINE_ROWS.items():
        assert f"| `{name}` | {row.title} | {row.version} | `{row.source}` |" in page


def test_half_a_pair_is_an_error_and_a_base_without_a_head_is_not_known(tmp_path: Path) -> None:
    folder = saved(tmp_path / "whole", "llama", PAIR)
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[next(key for key in tensors if "lora_A" in key)]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match="one of lora_A and lora_B without the other"):
        check_for(folder, "vllm")
    LoRAModel.from_model(tiny("llama", "LlamaModel"), LoRAConfig(r=8, **PAIR)).save_pretrained(tmp_path / "bare")
    assert {check_for(tmp_path / "bare", engine).verdict for engine in ENGINES[:4]} == {"not known"}


@pytest.mark.parametrize(("changes", "found"), [({"r": 4}, "!-!+-"), ({"rank_pattern": {"q_proj": 3}}, "!-!+-")])
def test_tensors_of_another_rank_than_the_config_says_are_told(
    changes: dict[str, Any], found: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, "llama", PAIR)
    edit_config(folder, **changes)
    assert verdicts_of(folder) == found
    for engine in ("peft", "llama.cpp"):
        with pytest.raises(LoRAError, match="rank"):
            convert_for(folder, tmp_path / "out.gguf", engine)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(key for key in tensors if "lora_A" in key)
    save_file({**tensors, name: tensors[name][:1].clone()}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match="of another rank"):
        check_for(folder, "vllm")


@pytest.mark.parametrize("max_rank", [0, -1, "16"])
def test_a_server_s_rank_is_a_positive_integer(max_rank: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="positive integer"):
        check_for(tmp_path, "vllm", max_rank=max_rank)
