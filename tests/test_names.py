"""Names: adapters of every version and origin find their places in today's model, exactly, or are refused."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterMismatchError

from .cases import move
from .peek import Today, copy_in, fitting, todays_names
from .tiny import DECODER, VOCAB, outputs, tiny
from .versions import not_older

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
Tensors = dict[str, Tensor]
Respell = Callable[[str], str]

VISION: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}
LLAMA, CLIP = {"model_type": "llama", **DECODER}, {"model_type": "clip_vision_model", **VISION}
SEGFORMER = {
    "hidden_sizes": [8, 8],
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "strides": [4, 2],
    "patch_sizes": [7, 3],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 8,
}
# Bases that are not among the families: the family whose sizes they have, their class, their own settings.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip's vision": ("clip", "CLIPVisionModel", VISION),
    "dinov2": ("vit", "Dinov2ForImageClassification", {"use_swiglu_ffn": True}),
    "gemma 3": ("clip", "Gemma3ForConditionalGeneration", {"text_config": DECODER, "vision_config": {**VISION, "vision_use_head": False}, "image_token_index": 47}),
    "llava": ("clip", "LlavaForConditionalGeneration", {"text_config": LLAMA, "vision_config": CLIP, "image_token_index": 47}),
    "qwen2-vl": ("clip", "Qwen2VLForConditionalGeneration", {"text_config": DECODER, "vision_config": {"depth": 2, "embed_dim": 12, "hidden_size": 16, "num_heads": 2, "patch_size": 4}}),
    "segformer": ("vit", "SegformerForImageClassification", SEGFORMER),
}  # fmt: skip


@cache
def _base(name: str) -> Any:
    """Return a base, which nobody may change."""
    family, cls, settings = OTHERS.get(name, (name, None, {}))
    return tiny(family, cls, noisy=True, **settings)


def _trained(base: nn.Module, **config: Any) -> LoRAModel:
    """Return a copy of a base with an adapter whose every trained value is away from its start."""
    model = LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(**{"r": 2, "lora_alpha": 3, **config}))
    move(model)
    return model


def _saved(model: LoRAModel, directory: Path, respell: Respell = str, **changes: Any) -> Tensors:
    """Save an adapter under other names, its config changed; return what was written."""
    model.save_pretrained(directory)
    # copies: older safetensors map the file, which is then written over
    tensors = {respell(key): value.clone() for key, value in load_file(directory / WEIGHTS).items()}
    return _written(directory, tensors, **changes)


def _written(directory: Path, tensors: Tensors, **changes: Any) -> Tensors:
    directory.mkdir(exist_ok=True)
    path = directory / CONFIG
    values = json.loads(path.read_text()) if path.exists() else {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
    path.write_text(json.dumps({**values, **changes}))
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, directory / WEIGHTS)
    return tensors


def _loaded(directory: Path, base: nn.Module, **kwargs: Any) -> LoRAModel:
    return LoRAModel.from_pretrained(str(directory), base_model=copy.deepcopy(base), **kwargs)


def _weights(model: nn.Module, prefix: str = "") -> Tensors:
    """Return every weight below a prefix with the active adapter merged into it."""
    merged = copy.deepcopy(model)
    merged = merged.merge_and_unload() if isinstance(merged, LoRAModel) else merged
    return {n.removeprefix(prefix): p.detach() for n, p in merged.named_parameters() if n.startswith(prefix)}


def _same(got: Tensors, want: Tensors) -> bool:
    return got.keys() == want.keys() and all(torch.equal(got[name], weight) for name, weight in want.items())


def _replaced(*pairs: tuple[str, str]) -> Respell:
    def respell(key: str) -> str:
        for old, new in pairs:
            key = key.replace(old, new)
        return key

    return respell


# --- fused experts ------------------------------------------------------------------------------------------------------

V4 = {
    "mixtral": ("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}),
    "qwen3_moe": ("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    "deepseek_v3": ("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
}


def _slices(model: nn.Module, name: str) -> Iterator[tuple[str, tuple[int, int, str], Tensor]]:
    """Yield each single expert's key in Transformers 4, its layer, number and projection, and its slice of the weight."""
    block, words = V4[name]
    owners = [(n.replace(".mlp.", f".{block}."), m) for n, m in model.named_modules() if n.endswith(".experts")]
    for layer, (owner, experts) in enumerate(owners):
        for i, both in enumerate(experts.gate_up_proj.data):
            gate, up = both.chunk(2)
            for what, weight in {"gate": gate, "up": up, "down": experts.down_proj.data[i]}.items():
                yield f"{PREFIX}{owner}.{i}.{words[what]}", (layer, i, what), weight


def _v4_experts(base: nn.Module, name: str, skip: Callable[[int, int, str], bool], ranks: dict[str, int]) -> Tensors:
    """Return random pairs for single experts by their names in Transformers 4."""
    noise = torch.Generator().manual_seed(4)
    tensors = {}
    for key, at, weight in _slices(base, name):
        if not skip(*at):
            tensors[f"{key}.lora_A.weight"] = torch.randn(ranks[at[2]], weight.shape[1], generator=noise)
            tensors[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], ranks[at[2]], generator=noise)
    return tensors


def _merged_by_hand(base: nn.Module, name: str, tensors: Tensors, scaling: dict[str, float]) -> nn.Module:
    """Return the base with every expert's update added to its own slice, in float64."""
    merged = copy.deepcopy(base).double()
    for key, (_, _, what), weight in _slices(merged, name):
        if f"{key}.lora_A.weight" in tensors:
            b, a = (tensors[f"{key}.lora_{factor}.weight"].double() for factor in "BA")
            weight += scaling[what] * b @ a
    return merged


def _assert_equals_merged(model: LoRAModel, merged: nn.Module, name: str) -> None:
    """Compare outputs, and every weight once merged, with weights that were merged by hand in float64."""
    got, want, plain = (outputs(m, name)[0] for m in (model, copy.deepcopy(merged).float(), _base(name)))
    assert (want - plain).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    ours = _weights(model)
    for key, weight in merged.named_parameters():
        torch.testing.assert_close(ours[key].double(), weight, rtol=1e-6, atol=1e-6)


RANKS = {"gate": 2, "up": 2, "down": 2}
SKIPS: dict[str, Callable[[int, int, str], bool]] = {
    "every expert": lambda layer, i, what: False,
    "some experts": lambda layer, i, what: i % 2 == 1,
    "the gate alone": lambda layer, i, what: what != "gate",
    "down alone": lambda layer, i, what: what != "down",
    "a hole": lambda layer, i, what: i == 1 and what == "up",
}


@pytest.mark.parametrize(
    ("name", "skipped"), [*(("mixtral", s) for s in SKIPS), ("qwen3_moe", "a hole"), ("deepseek_v3", "some experts")]
)
def test_adapters_of_single_experts_compute_on_fused_ones_what_their_merged_weights_do(
    name: str, skipped: str, tmp_path: Path
) -> None:
    base = _base(name)
    tensors = _v4_experts(base, name, SKIPS[skipped], RANKS)
    _written(tmp_path, tensors, target_modules=list(V4[name][1].values()))
    merged = _merged_by_hand(base, name, tensors, dict.fromkeys(RANKS, 1.5))
    _assert_equals_merged(_loaded(tmp_path, base), merged, name)


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_scalings_given_by_experts_old_names_keep_their_meaning(rslora: bool, tmp_path: Path) -> None:
    name, base = "mixtral", _base("mixtral")
    ranks, alphas = {"gate": 3, "up": 4, "down": 2}, {"gate": 3, "up": 5, "down": 7}
    scaling = {what: alphas[what] / (ranks[what] ** 0.5 if rslora else ranks[what]) for what in ranks}
    tensors = _v4_experts(base, name, SKIPS["every expert"], ranks)
    changes = {"rank_pattern": {"w1": 3, r"experts\.\d+\.w3": 4}, "alpha_pattern": {"w2": 7, "w3": 5}}
    _written(tmp_path, tensors, target_modules=["w1", "w2", "w3"], use_rslora=rslora, **changes)
    _assert_equals_merged(_loaded(tmp_path, base), _merged_by_hand(base, name, tensors, scaling), name)


def test_experts_loaded_by_old_names_are_saved_by_todays_and_come_back_to_the_bit(tmp_path: Path) -> None:
    base, targets = _base("qwen3_moe"), ["gate_proj", "up_proj", "down_proj"]
    tensors = _v4_experts(base, "qwen3_moe", SKIPS["some experts"], {**RANKS, "gate": 3})
    _written(tmp_path / "old", tensors, target_modules=targets, rank_pattern={"gate_proj": 3})
    model = _loaded(tmp_path / "old", base)
    model.save_pretrained(tmp_path / "new")
    assert _same(_weights(_loaded(tmp_path / "new", base)), _weights(model))
    values = json.loads((tmp_path / "new" / CONFIG).read_text())
    assert sorted(values["target_parameters"]) == ["down_proj", "gate_up_proj"]
    assert values["rank_pattern"] == {"gate_up_proj": 5}


def _with_magnitude(key: str, t: Tensor) -> Tensors:
    more = {key.replace("w1.lora_B.weight", "w1.lora_magnitude_vector"): t[:, 0]} if "w1.lora_B" in key else {}
    return {key: t, **more}


# What becomes of each tensor of single experts, and what is said then.
UNEVEN: dict[str, tuple[Callable[[str, Tensor], Tensors], str]] = {
    "half a pair": (lambda key, t: {} if "experts.1.w1.lora_A" in key else {key: t}, r"experts\.1\.w1\.lora_B.*lora_A"),
    "an expert too many": (lambda key, t: {key.replace("experts.1.", "experts.9."): t}, r"\[9\]"),
    "a row less": (lambda key, t: {key: t[:-1] if "w1.lora_B" in key else t}, "rows"),
    "another rank": (lambda key, t: {key: t[:-1] if "w1.lora_A" in key else t}, "rank 2"),
    "another width": (lambda key, t: {key: t[:, :-1] if "w1.lora_A" in key else t}, "width"),
    "a layer less": (lambda key, t: {} if "layers.1." in key else {key: t}, r"missing .*model\.layers\.1\.mlp\.experts"),
    "lengths": (_with_magnitude, "magnitude"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNEVEN)
def test_experts_that_do_not_add_up_are_refused_and_the_model_is_left_alone(case: str, tmp_path: Path) -> None:
    change, message = UNEVEN[case]
    base = copy.deepcopy(_base("mixtral"))
    tensors = _v4_experts(base, "mixtral", SKIPS["every expert"], RANKS)
    changed = {k: v for key, t in tensors.items() for k, v in change(key, t).items()}
    _written(tmp_path, changed, target_modules=["w1", "w2", "w3"])
    with pytest.raises(AdapterMismatchError, match=message):
        LoRAModel.from_pretrained(str(tmp_path), base_model=base)
    assert type(base) is type(_base("mixtral"))
    assert _same(_weights(base), _weights(_base("mixtral")))


# --- names from before version 5 ----------------------------------------------------------------------------------------

ATTENTION = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
OLD_VIT = _replaced(
    (".layers.", ".encoder.layer."), ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"), *((f"attention.{new}", f"attention.attention.{old}") for new, old in ATTENTION),
)  # fmt: skip
# (the base, today's config, its keys by older names, what the older config says of targets)
RENAMED: dict[str, tuple[str, dict[str, Any], Respell, dict[str, Any]]] = {
    "vit": (
        "vit",
        {"target_modules": ["q_proj", "v_proj", "o_proj", "fc1", "fc2"], "rank_pattern": {"q_proj": 3, "fc1": 4}, "alpha_pattern": {r"0\.attention\.v_proj": 7}, "modules_to_save": ["classifier"]},
        OLD_VIT,
        {"target_modules": ["query", "value", "dense"], "rank_pattern": {"query": 3, "intermediate.dense": 4}, "alpha_pattern": {r"layer\.0\.attention\.attention\.value": 7}},
    ),
    "vit with biases and norms": (
        "vit",
        {"target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["layernorm_before", "classifier"]},
        OLD_VIT,
        {"target_modules": ["query"]},
    ),
    "vit with lengths": ("vit", {"target_modules": ["q_proj", "k_proj"], "use_dora": True}, OLD_VIT, {"target_modules": ["query", "key"]}),
    "clip's vision": ("clip's vision", {"target_modules": ["q_proj", "fc1"]}, _replaced((PREFIX, f"{PREFIX}vision_model.")), {}),
    "segformer": (
        "segformer",
        {"target_modules": ["q_proj", "v_proj"]},
        _replaced(("stages.0.blocks.", "encoder.block.0."), ("stages.1.blocks.", "encoder.block.1."), ("attention.q_proj", "attention.self.query"), ("attention.v_proj", "attention.self.value")),
        {"target_modules": ["query", "value"]},
    ),
    "mixtral's router": (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]},
        _replaced((".mlp.gate.", ".block_sparse_moe.gate.")),
        {"target_modules": ["q_proj", "gate"], "target_parameters": None},
    ),
    "llava": (
        "llava",
        {"target_modules": ["q_proj", "v_proj", "linear_1", "lm_head"], "rank_pattern": {"language_model.layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"lm_head": 9}},
        _replaced((".model.model.", ".model."), (".model.language_model.", ".model.language_model.model."), (".lm_head", ".language_model.lm_head"), (".vision_tower.", ".vision_tower.vision_model.")),
        {"rank_pattern": {"language_model.model.layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"language_model.lm_head": 9}},
    ),
    "qwen2-vl": (
        "qwen2-vl",
        {"target_modules": ["q_proj", "qkv"], "rank_pattern": {"model.language_model.layers.0.self_attn.q_proj": 3}},
        _replaced((".model.language_model.", ".model."), (".model.visual.", ".visual.")),
        {"rank_pattern": {"model.layers.0.self_attn.q_proj": 3}},
    ),
}  # fmt: skip
SINCE_5_0 = ("qwen2-vl", "mixtral's router")  # the others were renamed later


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SINCE_5_0 else not_older) for n in RENAMED])
def test_an_adapter_saved_by_older_names_gives_the_weights_that_todays_give(name: str, tmp_path: Path) -> None:
    base, config, respell, old = RENAMED[name]
    model = _trained(_base(base), **config)
    written = _saved(model, tmp_path / "old", respell, **old)
    loaded = _loaded(tmp_path / "old", _base(base))
    assert _same(_weights(loaded), _weights(model))
    loaded.save_pretrained(tmp_path / "new")
    assert load_file(tmp_path / "new" / WEIGHTS).keys() != written.keys()
    assert _same(_weights(_loaded(tmp_path / "new", _base(base))), _weights(model))


@not_older
@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"bias": "lora_only"}], ids=str)
def test_an_adapter_of_a_projection_that_was_split_gives_each_part_its_rows(
    config: dict[str, Any], tmp_path: Path
) -> None:
    base = _base("dinov2")
    new = _saved(_trained(base, target_modules=["gate_proj", "up_proj"], **config), tmp_path / "new")
    new |= {k: new[k.replace("gate_proj", "up_proj")] for k in new if "gate_proj.lora_A" in k}
    _written(tmp_path / "new", new)
    old = {
        key.replace("up_proj", "weights_in"): up
        if "lora_A" in key
        else torch.cat((new[key.replace("up_", "gate_")], up))
        for key, up in new.items()
        if "up_proj" in key
    }
    values = json.loads((tmp_path / "new" / CONFIG).read_text())
    _written(tmp_path / "old", old, **{**values, "target_modules": ["weights_in"]})
    assert _same(_weights(_loaded(tmp_path / "old", base)), _weights(_loaded(tmp_path / "new", base)))


# --- spellings ----------------------------------------------------------------------------------------------------------

SAVED = {"r": 2, "target_modules": ["query", "value", "word_embeddings"], "modules_to_save": ["classifier", "pooler"]}


def _named(key: str) -> str:
    """Return a key with the adapter's name inside, as PEFT holds it in memory."""
    for leaf in ("lora_A", "lora_B"):
        key = key.replace(f"{leaf}.weight", f"{leaf}.mine.weight")
    for leaf in ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "trainable_tokens_delta"):
        key = key if not key.endswith(leaf) else f"{key}.mine"
    for module in ("classifier", "pooler"):
        key = key.replace(f"{module}.", f"{module}.modules_to_save.mine.")
    return key


SPELLINGS: dict[str, Respell] = {
    "as it is": str,
    "without the prefix": lambda key: key.removeprefix(PREFIX),
    "the prefix twice": lambda key: PREFIX + key,
    "the adapter's name inside": _named,
    "the adapter's name inside, without the prefix": lambda key: _named(key).removeprefix(PREFIX),
    "modules_to_save without a name": _replaced(("classifier.", "classifier.modules_to_save."), ("pooler.", "pooler.modules_to_save.")),
    "compiled": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled around": lambda key: f"_orig_mod.{key}",
    "distributed around": lambda key: f"module.{key}",
    "distributed inside": lambda key: key.replace(PREFIX, f"{PREFIX}module."),
    "distributed and native": lambda key: key.replace(PREFIX, "module."),
    "sharded": _replaced((".layer.0.", ".layer.0._fsdp_wrapped_module.")),
    "checkpointed": _replaced((".layer.1.", ".layer.1._checkpoint_wrapped_module.")),
    "everything at once": lambda key: f"module._orig_mod.{PREFIX}{_named(key)}".replace(".layer.1.", ".layer.1._fsdp_wrapped_module._checkpoint_wrapped_module."),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"trainable_token_indices": [3, 5], "target_modules": ["query"]}], ids=["lora", "dora", "tokens"])  # fmt: skip
def test_every_spelling_of_an_adapters_keys_gives_the_same_weights(
    spelling: str, config: dict[str, Any], tmp_path: Path
) -> None:
    model = _trained(_base("bert"), **{**SAVED, **config})
    _saved(model, tmp_path, SPELLINGS[spelling])
    assert _same(_weights(_loaded(tmp_path, _base("bert"))), _weights(model))


def test_the_bases_own_copies_beside_modules_saved_in_full_are_passed_over(tmp_path: Path) -> None:
    model = _trained(_base("bert"), **SAVED)
    tensors = _saved(model, tmp_path, _named)
    whole = {k: v for k, v in tensors.items() if "modules_to_save" in k}
    assert whole
    _written(
        tmp_path, {**tensors, **{k.replace("modules_to_save.mine", "original_module"): v + 1 for k, v in whole.items()}}
    )
    assert _same(_weights(_loaded(tmp_path, _base("bert"))), _weights(model))


def test_a_module_that_is_really_called_so_is_no_wrapper(tmp_path: Path) -> None:
    base = nn.ModuleDict({"module": nn.Linear(3, 2), "other": nn.Linear(3, 2)})
    model = _trained(base, target_modules=["module"])
    _saved(model, tmp_path)
    assert _same(_weights(_loaded(tmp_path, base)), _weights(model))


# --- one prefix ---------------------------------------------------------------------------------------------------------

TEXT = {"target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"model.layers.0.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 7}}  # fmt: skip
RAW = {"target_modules": [], "rank_pattern": {"model.layers.1.self_attn.q_proj.weight": 3}}
FULL = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
# (the whole's name, its prefix of the part, the part's own prefix, what is adapted of the whole or the part)
PARTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "plain": ("gemma 3", "model.language_model.", "model.", TEXT),
    "dora": ("gemma 3", "model.language_model.", "model.", {**TEXT, "use_dora": True}),
    "norms": ("gemma 3", "model.language_model.", "model.", {**TEXT, "modules_to_save": ["norm"]}),
    "an expression": ("gemma 3", "model.language_model.", "model.", {"target_modules": r"model\.layers\.\d+\.self_attn\.q_proj"}),
    "one layer": ("gemma 3", "model.language_model.", "model.", {**TEXT, "layers_to_transform": [0]}),
    "tokens": ("gemma 3", "model.language_model.", "model.", {**TEXT, "trainable_token_indices": [1, 2]}),
    "raw parameters": ("gemma 3", "model.language_model.", "model.", {**RAW, "target_parameters": ["q_proj.weight"]}),
    "full names": ("gemma 3", "model.language_model.", "model.", {**RAW, "target_parameters": FULL}),
    "an encoder": ("bert", "bert.", "", {"target_modules": ["query", "dense"], "rank_pattern": {"query": 3}, "modules_to_save": ["pooler"]}),
}  # fmt: skip


def _part(whole: nn.Module, outer: str, inner: str) -> nn.Module:
    """Return a model of a part's own class with the weights that it has in the whole."""
    if not inner:
        return copy.deepcopy(whole.get_submodule(outer.rstrip(".")))
    part = tiny("gemma3", noisy=True)
    values = {inner + name: weight for name, weight in _weights(whole, outer).items()}
    part.load_state_dict(values, strict=False)
    return part


@pytest.mark.parametrize("case", PARTS)
def test_an_adapter_of_the_language_model_loads_onto_the_vision_language_model_and_back(
    case: str, tmp_path: Path
) -> None:
    name, outer, inner, config = PARTS[case]
    whole, said = _base(name), [re.escape(repr(prefix or "no prefix")) for prefix in (outer, inner)]
    part = _part(whole, outer, inner)
    model = _trained(part, **config)
    model.save_pretrained(tmp_path / "part")
    with pytest.warns(UserWarning, match=f"{said[1]}.*{said[0]}"):
        onto = _loaded(tmp_path / "part", whole)
    assert _same(_weights(onto, outer), _weights(model, inner))
    onto.save_pretrained(tmp_path / "whole")
    with pytest.warns(UserWarning, match=f"{said[0]}.*{said[1]}"):
        back = _loaded(tmp_path / "whole", part)
    assert _same(_weights(back), _weights(model))
    assert _same(_weights(_loaded(tmp_path / "whole", whole)), _weights(onto))


def test_an_adapter_moved_to_another_class_names_that_class_when_saved_again(tmp_path: Path) -> None:
    base = _base("gpt2")
    _trained(base, target_modules=["c_attn"]).save_pretrained(tmp_path / "a")
    with pytest.warns(UserWarning, match=r"'transformer\.'"):
        moved = _loaded(tmp_path / "a", base.transformer)
    moved.save_pretrained(tmp_path / "b")
    assert LoRAConfig.from_pretrained(tmp_path / "a").auto_mapping["base_model_class"] == "GPT2LMHeadModel"
    assert LoRAConfig.from_pretrained(tmp_path / "b").auto_mapping["base_model_class"] == "GPT2Model"
    _loaded(tmp_path / "b", base.transformer)  # and fits without a word


def test_a_prefix_that_could_be_rewritten_in_two_ways_is_refused(tmp_path: Path) -> None:
    twins = nn.ModuleDict({side: nn.ModuleDict({"up": nn.Linear(3, 4), "down": nn.Linear(4, 3)}) for side in ("left", "right")})  # fmt: skip
    _trained(twins["left"], target_modules=["up", "down"]).save_pretrained(tmp_path)
    with pytest.raises(AdapterMismatchError, match="'left'.*'right'"):
        _loaded(tmp_path, twins)


def test_a_key_without_a_place_is_named_with_the_nearest_names(tmp_path: Path) -> None:
    model = _trained(_base("bert"), target_modules=["query"])
    _saved(model, tmp_path, _replaced(("layer.0.attention.self.query.lora_A", "layer.0.attention.self.quary.lora_A")))
    query = r"bert\.encoder\.layer\.0\.attention\.self\.query"
    with pytest.raises(
        AdapterMismatchError, match=rf"unexpected \S*quary\S* [^;]*{query}.*missing lora_A [^;]*{query}"
    ):
        _loaded(tmp_path, _base("bert"))


# --- what else files hold, and what they lack ----------------------------------------------------------------------------


def _without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if not any(part in k for part in parts)}


def _respelt(respell: Respell) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {respell(k): v for k, v in tensors.items()}


Q1, V1 = "bert.encoder.layer.1.attention.self.query", "bert.encoder.layer.1.attention.self.value"
QV = {"target_modules": ["query", "value"]}
LISTED = {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}
FUSED = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
# (the base it was made for, the base it is loaded onto, the adapter, what becomes of its file, of its config, the error)
LACKING: dict[str, tuple[str, str, dict[str, Any], Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "a listed target": ("bert", "bert", QV, _without(V1), {}, f"missing .*{V1}"),
    "a preset's target": ("bert", "bert", QV, _without(V1), {"target_modules": "all-linear"}, f"missing .*{V1}"),
    "a target of a config that names none": ("bert", "bert", QV, _without(V1), {"target_modules": None}, f"missing .*{V1}"),
    "experts": ("mixtral", "mixtral", FUSED, _without("layers.1.mlp.experts.lora"), {}, r"missing .*layers\.1\.mlp\.experts\.\w+_proj"),
    "a saved bias": ("bert", "bert", LISTED, _without("classifier.bias"), {}, r"missing .*classifier\.bias"),
    "a bias that is not listed": ("bert", "bert", LISTED, _without("classifier.bias"), {"modules_to_save": ["pooler"]}, r"missing .*classifier\.bias"),
    "part of a saved module": ("bert", "bert", LISTED, _without("pooler.dense.weight"), {}, r"missing .*pooler\.dense\.weight"),
    "a saved module": ("bert", "bert", LISTED, _without("classifier"), {}, r"missing .*classifier\.weight"),
    "biases alike": ("bert", "bert", {**QV, "bias": "lora_only"}, _without(f"{V1}.base_layer.bias", f"{V1}.bias"), {}, rf"missing .*{V1}\.bias"),
    "a target, by its older name": ("vit", "vit", {"target_modules": ["q_proj"]}, lambda t: _without(".layer.1.")(_respelt(OLD_VIT)(t)), {"target_modules": ["query"]}, r"missing .*vit\.layers\.1\.attention\.q_proj"),
    "a target, by another prefix": ("bert's encoder", "bert", QV, _without(V1.removeprefix("bert.")), {}, f"missing .*{V1}"),
    "a place for the head": ("bert", "bert's encoder", {"target_modules": ["query"], "modules_to_save": ["classifier"]}, dict, {}, r"unexpected .*classifier\.weight"),
    "the layer that it is of": ("bert", "bert", {"target_modules": [Q1]}, _respelt(_replaced((".1.", ".7."))), {}, r"unexpected base_model\.model\.bert\.encoder\.layer\.7\."),
    "one spelling alone": ("bert", "bert", QV, lambda t: {**t, **_respelt(SPELLINGS["without the prefix"])(t)}, {}, rf"{PREFIX}(\S*) and \1 are two tensors"),
    "one adapter alone": ("bert", "bert", QV, lambda t: {**_respelt(_named)(t), **_respelt(lambda k: _named(k).replace(".mine.", ".other."))(t)}, {}, r"\.mine\..*\.other\..*two tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, marks=not_older if "older" in c else ()) for c in LACKING])
def test_a_layer_dropped_from_a_file_is_an_error_however_its_targets_are_given(case: str, tmp_path: Path) -> None:
    made_for, onto, config, edit, changes, message = LACKING[case]
    bases = [_base(name.partition("'")[0]).bert if "'" in name else _base(name) for name in (made_for, onto)]
    tensors = _saved(_trained(bases[0], **config), tmp_path, **changes)
    _written(tmp_path, edit(tensors))
    with pytest.raises(AdapterMismatchError, match=message):
        _loaded(tmp_path, bases[1])


@pytest.mark.parametrize("changes", [{"modules_to_save": None}, {"target_modules": ["query", "value", "q_proj"], "modules_to_save": ["classifier", "score"]}], ids=["unlisted", "absent"])  # fmt: skip
def test_a_head_that_is_not_listed_and_names_that_the_model_lacks_are_no_error(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model = _trained(_base("bert"), **QV, modules_to_save=["classifier"])
    _saved(model, tmp_path, **changes)
    assert _same(_weights(_loaded(tmp_path, _base("bert"))), _weights(model))


@pytest.mark.parametrize("config", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]}], ids=str)  # fmt: skip
def test_tables_of_another_vocabulary_say_how_to_make_room(config: dict[str, Any], tmp_path: Path) -> None:
    grown = tiny("llama", noisy=True, vocab_size=VOCAB + 3)
    model = _trained(grown, **{"target_modules": ["q_proj"], **config})
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterMismatchError, match=rf"resize_token_embeddings\({VOCAB + 3}\)"):
        _loaded(tmp_path, _base("llama"))
    assert _same(_weights(_loaded(tmp_path, grown)), _weights(model))


def test_a_checkpoint_by_older_names_goes_into_an_adapter_that_is_there(tmp_path: Path) -> None:
    model = _trained(_base("bert"), **SAVED)
    fresh = LoRAModel.from_model(copy.deepcopy(_base("bert")), LoRAConfig(**SAVED, lora_alpha=3))
    tensors = _saved(model, tmp_path, SPELLINGS["everything at once"])
    copy_in(fresh, fresh._lora, LoRAConfig.from_pretrained(tmp_path), tensors, "default")
    assert _same(_weights(fresh), _weights(model))


# --- Transformers' table ------------------------------------------------------------------------------------------------


def test_transformers_still_says_where_older_weights_lie_today() -> None:
    """The one place where this library depends on Transformers' conversion table: loud, should it change."""

    layer = "model.layers.0.block_sparse_moe"
    names = [f"{layer}.experts.3.w1.weight", f"{layer}.experts.2.w3.weight", f"{layer}.experts.1.w2.weight", f"{layer}.gate.weight", "model.norm.weight"]  # fmt: skip
    found = todays_names(_base("mixtral"), names)
    fused, down = ("model.layers.0.mlp.experts.gate_up_proj",), ("model.layers.0.mlp.experts.down_proj",)
    assert found == {
        names[0]: Today(fused, ("stack", "beside in 1"), 0, 2, 3),
        names[1]: Today(fused, ("stack", "beside in 1"), 1, 2, 2),
        names[2]: Today(down, ("stack",), 0, 1, 1),
        names[3]: Today(("model.layers.0.mlp.gate.weight",)),
    }
    assert todays_names(nn.Linear(2, 2), names) == {}


def test_an_adapter_that_fits_needs_no_table_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(fitting, "todays_names", asked)
    base = _base("bert")
    _trained(base, **SAVED).save_pretrained(tmp_path)
    _loaded(tmp_path, base)


def test_weights_put_together_in_unknown_ways_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _base("bert")
    _saved(_trained(base, target_modules=["query"]), tmp_path, _replaced((".query.", ".older.")))

    def table(model: nn.Module, names: list[str]) -> dict[str, Today]:
        return {n: Today((n.replace("older", "query"),), ("Roll(3)",)) for n in names}

    monkeypatch.setattr(fitting, "todays_names", table)
    with pytest.raises(AdapterMismatchError, match=r"older\.lora_.*query\.weight.*Roll\(3\)"):
        _loaded(tmp_path, base)


@pytest.mark.parametrize("dropped", ["", "v_proj"])
def test_projections_that_were_put_into_one_become_one_pair_of_their_ranks_together(
    dropped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    base = nn.ModuleDict({"qkv": nn.Linear(6, 12, bias=False)})
    sizes = {"q_proj": (0, 6, 2), "k_proj": (6, 9, 3), "v_proj": (9, 12, 2)}
    tensors, want = {}, base["qkv"].weight.detach().double().clone()
    for part, (start, end, r) in sizes.items():
        if part != dropped:
            a, b = torch.randn(r, 6), torch.randn(end - start, r)
            tensors |= {f"{PREFIX}{part}.lora_A.weight": a, f"{PREFIX}{part}.lora_B.weight": b}
            want[start:end] += (5 if part == "k_proj" else 3) / r * b.double() @ a.double()
    parts = list(sizes)

    def table(model: nn.Module, names: list[str]) -> dict[str, Today]:
        return {n: Today(("qkv.weight",), ("beside in 0",), parts.index(n.split(".")[0]), 3) for n in names}

    monkeypatch.setattr(fitting, "todays_names", table)
    _written(tmp_path, tensors, target_modules=parts, rank_pattern={"k_proj": 3}, alpha_pattern={"k_proj": 5})
    got = _loaded(tmp_path, base).merge_and_unload()["qkv"].weight
    assert (got.double() - want).abs().max() < 1e-6
