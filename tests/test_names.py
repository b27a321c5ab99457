"""Names: adapters of every version and origin find their places in today's model, exactly, or are refused."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterMismatchError, ConfigError

from .peek import Today, copy_in, fitting, todays_names
from .tiny import DECODER, VOCAB, floats, inputs, scatter, tiny
from .versions import not_older

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
Tensors = dict[str, Tensor]


def _trained(base: nn.Module, **config: Any) -> LoRAModel:
    """Return a copy of a base with an adapter whose every trained value is away from its start."""
    model = LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(**{"r": 2, "lora_alpha": 3, **config}))
    noise = torch.Generator().manual_seed(21)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.3)
    return model


def _saved(model: LoRAModel, directory: Path, respell: Callable[[str], str] = str, **changes: Any) -> Tensors:
    """Save an adapter under other names, its config changed; return what was written."""
    model.save_pretrained(directory)
    tensors = {respell(key): value for key, value in load_file(directory / WEIGHTS).items()}
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


def _outputs(model: nn.Module, name: str) -> list[Tensor]:
    with torch.no_grad():
        return floats(model(**inputs(name)))


def _same(got: list[Tensor], want: list[Tensor], tolerance: float = 0.0) -> bool:
    return all(bool((g - w).abs().max() <= tolerance * (1 + w.abs().max())) for g, w in zip(got, want, strict=True))


def _replaced(*pairs: tuple[str, str]) -> Callable[[str], str]:
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


def _expert_owners(base: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in base.named_modules() if n.endswith(".experts")}


def _v4_experts(base: nn.Module, name: str, skip: Callable[[int, int, str], bool], ranks: dict[str, int]) -> Tensors:
    """Return random pairs for single experts by their names in Transformers 4."""
    block, words = V4[name]
    noise = torch.Generator().manual_seed(4)
    tensors = {}
    for layer, (owner, experts) in enumerate(_expert_owners(base).items()):
        count, twice, hidden = experts.gate_up_proj.shape
        sizes = {"gate": (twice // 2, hidden), "up": (twice // 2, hidden), "down": tuple(experts.down_proj.shape[1:])}
        for i in range(count):
            for what, (out, in_) in sizes.items():
                if not skip(layer, i, what):
                    key = f"{PREFIX}{owner.replace('.mlp.', f'.{block}.')}.{i}.{words[what]}"
                    r = ranks[what]
                    tensors[f"{key}.lora_A.weight"] = torch.randn(r, in_, generator=noise)
                    tensors[f"{key}.lora_B.weight"] = torch.randn(out, r, generator=noise)
    return tensors


def _merged_by_hand(base: nn.Module, name: str, tensors: Tensors, scaling: dict[str, float]) -> nn.Module:
    """Return the base with every expert's update added to its own slice, in float64."""
    block, words = V4[name]
    merged = copy.deepcopy(base).double()
    for owner, experts in _expert_owners(merged).items():
        for i in range(experts.gate_up_proj.shape[0]):
            half = experts.gate_up_proj.shape[1] // 2
            slices = {
                "gate": experts.gate_up_proj.data[i, :half],
                "up": experts.gate_up_proj.data[i, half:],
                "down": experts.down_proj.data[i],
            }
            for what, weight in slices.items():
                key = f"{PREFIX}{owner.replace('.mlp.', f'.{block}.')}.{i}.{words[what]}"
                if f"{key}.lora_A.weight" in tensors:
                    b, a = tensors[f"{key}.lora_B.weight"].double(), tensors[f"{key}.lora_A.weight"].double()
                    weight += scaling[what] * b @ a
    return merged


def _assert_equals_merged(model: LoRAModel, merged: nn.Module, name: str) -> None:
    """Compare outputs, and every weight once merged, with weights that were merged by hand in float64."""
    want = _outputs(copy.deepcopy(merged).float(), name)
    assert not _same(want, _outputs(tiny(name, noisy=True), name), 1e-3)
    assert _same(_outputs(model, name), want, 1e-5)
    ours = dict(model.merge_and_unload().named_parameters())
    for key, weight in merged.named_parameters():
        assert (ours[key].double() - weight).abs().max() <= 1e-6 * (1 + weight.abs().max()), key


SKIPS: dict[str, Callable[[int, int, str], bool]] = {
    "every expert": lambda layer, i, what: False,
    "some experts": lambda layer, i, what: i % 2 == 1,
    "the gate alone": lambda layer, i, what: what != "gate",
    "down alone": lambda layer, i, what: what != "down",
    "a hole": lambda layer, i, what: i == 1 and what == "up",
}


@pytest.mark.parametrize("skipped", SKIPS)
@pytest.mark.parametrize("name", V4)
def test_adapters_of_single_experts_compute_on_fused_ones_what_their_merged_weights_do(
    name: str, skipped: str, tmp_path: Path
) -> None:
    base = tiny(name, noisy=True)
    ranks = {"gate": 2, "up": 2, "down": 2}
    tensors = _v4_experts(base, name, SKIPS[skipped], ranks)
    _written(tmp_path, tensors, target_modules=list(V4[name][1].values()))
    _assert_equals_merged(
        _loaded(tmp_path, base), _merged_by_hand(base, name, tensors, dict.fromkeys(ranks, 1.5)), name
    )


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_scalings_given_by_experts_old_names_keep_their_meaning(rslora: bool, tmp_path: Path) -> None:
    name, base = "mixtral", tiny("mixtral", noisy=True)
    ranks, alphas = {"gate": 3, "up": 4, "down": 2}, {"gate": 3, "up": 5, "down": 7}
    scaling = {what: alphas[what] / (ranks[what] ** 0.5 if rslora else ranks[what]) for what in ranks}
    tensors = _v4_experts(base, name, SKIPS["every expert"], ranks)
    changes = {"rank_pattern": {"w1": 3, r"experts\.\d+\.w3": 4}, "alpha_pattern": {"w2": 7, "w3": 5}}
    _written(tmp_path, tensors, target_modules=["w1", "w2", "w3"], use_rslora=rslora, **changes)
    _assert_equals_merged(_loaded(tmp_path, base), _merged_by_hand(base, name, tensors, scaling), name)


def test_experts_loaded_by_old_names_are_saved_by_todays_and_come_back_to_the_bit(tmp_path: Path) -> None:
    base = tiny("qwen3_moe", noisy=True)
    _written(
        tmp_path / "old",
        _v4_experts(base, "qwen3_moe", SKIPS["some experts"], {"gate": 3, "up": 2, "down": 2}),
        target_modules=["gate_proj", "up_proj", "down_proj"],
        rank_pattern={"gate_proj": 3},
    )
    model = _loaded(tmp_path / "old", base)
    model.save_pretrained(tmp_path / "new")
    assert _same(_outputs(_loaded(tmp_path / "new", base), "qwen3_moe"), _outputs(model, "qwen3_moe"))
    values = json.loads((tmp_path / "new" / CONFIG).read_text())
    assert sorted(values["target_parameters"]) == ["down_proj", "gate_up_proj"]
    assert values["rank_pattern"] == {"gate_up_proj": 5}


def test_a_router_adapted_by_its_old_name_and_the_attention_beside_it_find_their_places(tmp_path: Path) -> None:
    base = tiny("mixtral", noisy=True)
    config = {"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]}
    model = _trained(base, **config)
    _saved(
        model,
        tmp_path,
        _replaced((".mlp.gate.", ".block_sparse_moe.gate.")),
        target_modules=["q_proj", "gate"],
        target_parameters=None,
    )
    assert _same(_outputs(_loaded(tmp_path, base), "mixtral"), _outputs(model, "mixtral"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key, t: {} if "experts.1.w1.lora_A" in key else {key: t}, r"experts\.1\.w1\.lora_B.*lora_A"),
        (lambda key, t: {key.replace("experts.1.", "experts.9."): t}, r"\[9\]"),
        (lambda key, t: {key: t[:-1] if "w1.lora_B" in key else t}, "rows"),
        (lambda key, t: {key: t[:-1] if "w1.lora_A" in key else t}, "rank 2"),
        (lambda key, t: {key: t[:, :-1] if "w1.lora_A" in key else t}, "width"),
        (lambda key, t: {} if "layers.1." in key else {key: t}, r"missing .*model\.layers\.1\.mlp\.experts"),
        (lambda key, t: {key: t, key.replace("w1.lora_B.weight", "w1.lora_magnitude_vector"): t[:, 0]} if "w1.lora_B" in key else {key: t}, "magnitude"),
    ],
)  # fmt: skip
def test_experts_that_do_not_add_up_are_refused_and_the_model_is_left_alone(
    change: Callable[[str, Tensor], Tensors], message: str, tmp_path: Path
) -> None:
    base = tiny("mixtral", noisy=True)
    tensors = _v4_experts(base, "mixtral", SKIPS["every expert"], {"gate": 2, "up": 2, "down": 2})
    changed = {k: v for key, t in tensors.items() for k, v in change(key, t).items()}
    _written(tmp_path, changed, target_modules=["w1", "w2", "w3"])
    before = {n: p.clone() for n, p in base.named_parameters()}
    with pytest.raises(AdapterMismatchError, match=message):
        LoRAModel.from_pretrained(str(tmp_path), base_model=base)
    assert type(base) is tf.MixtralForCausalLM
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())


# --- names from before version 5 ----------------------------------------------------------------------------------------

TEXT: dict[str, Any] = {**DECODER, "hidden_size": 16}
VISION: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16, "patch_size": 4}  # fmt: skip


def _llava() -> nn.Module:
    text, vision = tf.LlamaConfig(**TEXT), tf.CLIPVisionConfig(**VISION)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=47)
    )


def _gemma3() -> nn.Module:
    text, vision = tf.Gemma3TextConfig(**TEXT), tf.SiglipVisionConfig(**VISION, vision_use_head=False)
    return tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(text_config=text, vision_config=vision, image_token_index=47)
    )


def _gemma3_text() -> nn.Module:
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**TEXT))


def _qwen2_vl() -> nn.Module:
    vision = {"depth": 2, "embed_dim": 12, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
    return tf.Qwen2VLForConditionalGeneration(tf.Qwen2VLConfig(text_config=dict(TEXT), vision_config=vision))


def _dinov2() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    return tf.Dinov2ForImageClassification(tf.Dinov2Config(**sizes, use_swiglu_ffn=True))


def _segformer() -> nn.Module:
    sizes = {"hidden_sizes": [8, 8], "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "strides": [4, 2]}
    more = {"patch_sizes": [7, 3], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 8}
    return tf.SegformerForImageClassification(tf.SegformerConfig(**sizes, **more))


def _ast() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return tf.ASTForAudioClassification(tf.ASTConfig(**sizes, max_length=32, num_mel_bins=16))


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    model = build().eval()
    scatter(model)
    return model


ATTENTION = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
OLD_VIT = _replaced(
    (".layers.", ".encoder.layer."), ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"), *((f"attention.{new}", f"attention.attention.{old}") for new, old in ATTENTION),
)  # fmt: skip
# (today's model, today's config, its keys by older names, what the older config says of targets)
RENAMED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Callable[[str], str], dict[str, Any]]] = {
    "vit": (
        lambda: tiny("vit", noisy=True),
        {"target_modules": ["q_proj", "v_proj", "o_proj", "fc1", "fc2"], "rank_pattern": {"q_proj": 3, "fc1": 4}, "alpha_pattern": {r"0\.attention\.v_proj": 7}, "modules_to_save": ["classifier"]},
        OLD_VIT,
        {"target_modules": ["query", "value", "dense"], "rank_pattern": {"query": 3, "intermediate.dense": 4}, "alpha_pattern": {r"layer\.0\.attention\.attention\.value": 7}},
    ),
    "vit with biases and norms": (
        lambda: tiny("vit", noisy=True),
        {"target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["layernorm_before", "classifier"]},
        OLD_VIT,
        {"target_modules": ["query"]},
    ),
    "vit with lengths": (lambda: tiny("vit", noisy=True), {"target_modules": ["q_proj", "k_proj"], "use_dora": True}, OLD_VIT, {"target_modules": ["query", "key"]}),
    "ast": (
        lambda: _seeded(_ast),
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}},
        OLD_VIT,
        {"target_modules": ["query", "value"], "rank_pattern": {"value": 3}},
    ),
    "swin": (
        lambda: tiny("swin", noisy=True),
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}},
        _replaced(*((f"attention.{new}", f"attention.self.{old}") for new, old in ATTENTION)),
        {"target_modules": ["query", "value"], "rank_pattern": {"self.value": 3}},
    ),
    "dinov2": (
        lambda: _seeded(_dinov2),
        {"target_modules": ["q_proj", "o_proj"]},
        _replaced(("attention.q_proj", "attention.attention.query"), ("attention.o_proj", "attention.output.dense")),
        {"target_modules": ["query", "attention.output.dense"]},
    ),
    "clip's vision": (
        lambda: _seeded(lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**VISION))),
        {"target_modules": ["q_proj", "fc1"]},
        lambda key: key.replace(PREFIX, f"{PREFIX}vision_model."),
        {},
    ),
    "segformer": (
        lambda: _seeded(_segformer),
        {"target_modules": ["q_proj", "v_proj"]},
        _replaced(("stages.0.blocks.", "encoder.block.0."), ("stages.1.blocks.", "encoder.block.1."), ("attention.q_proj", "attention.self.query"), ("attention.v_proj", "attention.self.value")),
        {"target_modules": ["query", "value"]},
    ),
    "llava": (
        lambda: _seeded(_llava),
        {"target_modules": ["q_proj", "v_proj", "linear_1", "lm_head"], "rank_pattern": {"language_model.layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"lm_head": 9}},
        _replaced((".model.model.", ".model."), (".model.language_model.", ".model.language_model.model."), (".lm_head", ".language_model.lm_head"), (".vision_tower.", ".vision_tower.vision_model.")),
        {"rank_pattern": {"language_model.model.layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"language_model.lm_head": 9}},
    ),
    "gemma 3": (
        lambda: _seeded(_gemma3),
        {"target_modules": r".*language_model.*\.(q|v)_proj"},
        _replaced((".model.model.", ".model."), (".language_model.", ".language_model.model.")),
        {},
    ),
    "qwen2-vl": (
        lambda: _seeded(_qwen2_vl),
        {"target_modules": ["q_proj", "qkv"], "rank_pattern": {"model.language_model.layers.0.self_attn.q_proj": 3}},
        _replaced((".model.language_model.", ".model."), (".model.visual.", ".visual.")),
        {"rank_pattern": {"model.layers.0.self_attn.q_proj": 3}},
    ),
}  # fmt: skip


def _weights(model: nn.Module) -> Tensors:
    """Return every weight with the active adapter merged into it."""
    merged = copy.deepcopy(model)
    merged = merged.merge_and_unload() if isinstance(merged, LoRAModel) else merged
    return {name: p.detach() for name, p in merged.named_parameters()}


def _assert_same_weights(got: LoRAModel, want: nn.Module, tolerance: float = 0.0) -> None:
    ours, theirs = _weights(got), _weights(want)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() <= tolerance * (1 + weight.abs().max()), name


SINCE_5_0 = ("gemma 3", "qwen2-vl")  # the others were renamed later


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SINCE_5_0 else not_older) for n in RENAMED])
def test_an_adapter_saved_by_older_names_gives_the_weights_that_todays_give(name: str, tmp_path: Path) -> None:
    build, config, respell, old = RENAMED[name]
    base = build()
    model = _trained(base, **config)
    written = _saved(model, tmp_path / "old", respell, **old)
    loaded = _loaded(tmp_path / "old", base)
    _assert_same_weights(loaded, model)
    loaded.save_pretrained(tmp_path / "new")
    assert load_file(tmp_path / "new" / WEIGHTS).keys() != written.keys()
    _assert_same_weights(_loaded(tmp_path / "new", base), model)


@not_older
def test_an_older_name_with_a_layer_dropped_is_refused(tmp_path: Path) -> None:
    base = tiny("vit", noisy=True)
    tensors = _saved(_trained(base, target_modules=["q_proj"]), tmp_path, OLD_VIT, target_modules=["query"])
    _written(tmp_path, {k: v for k, v in tensors.items() if ".layer.1." not in k})
    with pytest.raises(AdapterMismatchError, match=r"missing .*vit\.layers\.1\.attention\.q_proj"):
        _loaded(tmp_path, base)


@not_older
@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"bias": "lora_only"}], ids=str)
def test_an_adapter_of_a_projection_that_was_split_gives_each_part_its_rows(
    config: dict[str, Any], tmp_path: Path
) -> None:
    base = _seeded(_dinov2)
    model = _trained(base, target_modules=["gate_proj", "up_proj"], **config)
    model.save_pretrained(tmp_path)
    new = load_file(tmp_path / WEIGHTS)
    old = {}
    for key, up in new.items():
        if "gate_proj" not in key:
            a = "lora_A" in key
            gate = new[key.replace("up_proj", "gate_proj")]
            old[key.replace("mlp.up_proj", "mlp.weights_in")] = up if a else torch.cat((gate, up))
    _written(tmp_path, old, target_modules=["weights_in"])
    shared = {k: new[k.replace("gate_proj", "up_proj")] if "lora_A" in k else v for k, v in new.items()}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / CONFIG).write_text((tmp_path / CONFIG).read_text())
    _written(tmp_path / "new", shared, target_modules=["gate_proj", "up_proj"])
    _assert_same_weights(_loaded(tmp_path, base), _loaded(tmp_path / "new", base))


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


SPELLINGS: dict[str, Callable[[str], str]] = {
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
def test_every_spelling_of_an_adapters_keys_gives_the_same_outputs(
    spelling: str, config: dict[str, Any], tmp_path: Path
) -> None:
    base = tiny("bert", noisy=True)
    model = _trained(base, **{**SAVED, **config})
    _saved(model, tmp_path, SPELLINGS[spelling])
    assert _same(_outputs(_loaded(tmp_path, base), "bert"), _outputs(model, "bert"))


def test_the_bases_own_copies_beside_modules_saved_in_full_are_passed_over(tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    model = _trained(base, **SAVED)
    tensors = _saved(model, tmp_path, _named)
    extra = {
        k.replace("modules_to_save.mine", "original_module"): v + 1
        for k, v in tensors.items()
        if "modules_to_save" in k
    }
    assert extra
    _written(tmp_path, {**tensors, **extra})
    assert _same(_outputs(_loaded(tmp_path, base), "bert"), _outputs(model, "bert"))


@pytest.mark.parametrize("spelling", ["without the prefix", "the adapter's name inside", "distributed around"])
def test_two_keys_for_one_place_are_an_error_that_names_both(spelling: str, tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    tensors = _saved(_trained(base, target_modules=["query"]), tmp_path)
    key = next(iter(tensors))
    other = SPELLINGS[spelling](key)
    assert other != key
    _written(tmp_path, {**tensors, other: tensors[key] + 1})
    with pytest.raises(AdapterMismatchError) as refused:
        _loaded(tmp_path, base)
    assert key in str(refused.value)
    assert other in str(refused.value)


def test_two_adapters_in_one_file_are_an_error(tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    tensors = _saved(_trained(base, target_modules=["query"]), tmp_path, _named)
    _written(tmp_path, {**tensors, **{k.replace(".mine.", ".other."): v for k, v in tensors.items()}})
    with pytest.raises(AdapterMismatchError, match=r"\.mine\..*\.other\..*two tensors"):
        _loaded(tmp_path, base)


def test_a_module_that_is_really_called_so_is_no_wrapper(tmp_path: Path) -> None:
    base = nn.ModuleDict({"module": nn.Linear(3, 2), "other": nn.Linear(3, 2)})
    model = _trained(base, target_modules=["module"])
    _saved(model, tmp_path)
    _assert_same_weights(_loaded(tmp_path, base), model)


# --- one prefix ---------------------------------------------------------------------------------------------------------


def _text_config(**changes: Any) -> dict[str, Any]:
    return {"target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"model.layers.0.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 7}, **changes}  # fmt: skip


def _language_weights(model: nn.Module, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): w for n, w in _weights(model).items() if n.startswith(prefix)}


def _given_language(whole: nn.Module, text: nn.Module) -> None:
    """Copy a language model's weights into a vision-language model's."""
    own = dict(whole.named_parameters())
    for name, weight in text.named_parameters():
        if name.startswith("model."):
            own[name.replace("model.", "model.language_model.", 1)].data.copy_(weight)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}, {"target_modules": r"model\.layers\.\d+\.self_attn\.q_proj", "rank_pattern": {}}, {"layers_to_transform": [0]}, {"trainable_token_indices": [1, 2]}], ids=str)  # fmt: skip
def test_an_adapter_of_the_language_model_loads_onto_the_vision_language_model_and_back(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    text, whole = _seeded(_gemma3_text), _seeded(_gemma3)
    _given_language(whole, text)
    model = _trained(text, **_text_config(**changes))
    model.save_pretrained(tmp_path / "text")
    with pytest.warns(UserWarning, match=r"'model\.'.*'model\.language_model\.'"):
        onto = _loaded(tmp_path / "text", whole)
    onto.save_pretrained(tmp_path / "whole")
    want = _language_weights(model, "model.")
    got = _language_weights(onto, "model.language_model.")
    assert want.keys() == got.keys()
    assert all(torch.equal(got[n], w) for n, w in want.items())
    with pytest.warns(UserWarning, match=r"'model\.language_model\.'.*'model\.'"):
        back = _loaded(tmp_path / "whole", text)
    _assert_same_weights(back, model)
    again = _loaded(tmp_path / "whole", whole)
    assert all(torch.equal(w, got[n]) for n, w in _language_weights(again, "model.language_model.").items())


@pytest.mark.parametrize("keep", ["classifier", ""])
def test_an_adapter_of_the_encoder_loads_onto_the_classifier_and_back(keep: str, tmp_path: Path) -> None:
    classifier = tiny("bert", noisy=True)
    encoder = copy.deepcopy(classifier.bert)
    model = _trained(encoder, target_modules=["query", "dense"], rank_pattern={"query": 3}, modules_to_save=["pooler"])
    model.save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match=r"'no prefix'.*'bert\.'"):
        onto = _loaded(tmp_path / "encoder", classifier)
    assert all(torch.equal(_language_weights(onto, "bert.")[n], w) for n, w in _weights(model).items())
    onto = _trained(classifier, target_modules=["query"], modules_to_save=[keep] if keep else None)
    onto.save_pretrained(tmp_path / "classifier")
    if keep:  # the encoder has no place for a head
        with pytest.raises(AdapterMismatchError, match=r"unexpected .*classifier\.weight"):
            _loaded(tmp_path / "classifier", encoder)
        return
    with pytest.warns(UserWarning, match=r"'bert\.'.*'no prefix'"):
        back = _loaded(tmp_path / "classifier", encoder)
    assert all(torch.equal(_language_weights(onto, "bert.")[n], w) for n, w in _weights(back).items())


def test_an_adapter_moved_to_another_class_names_that_class_when_saved_again(tmp_path: Path) -> None:
    base = tiny("gpt2", noisy=True)
    model = _trained(base, target_modules=["c_attn"])
    model.save_pretrained(tmp_path / "a")
    with pytest.warns(UserWarning, match=r"'transformer\.'"):
        moved = LoRAModel.from_pretrained(tmp_path / "a", base_model=copy.deepcopy(base.transformer))
    moved.save_pretrained(tmp_path / "b")
    assert LoRAConfig.from_pretrained(tmp_path / "a").auto_mapping["base_model_class"] == "GPT2LMHeadModel"
    assert LoRAConfig.from_pretrained(tmp_path / "b").auto_mapping["base_model_class"] == "GPT2Model"
    LoRAModel.from_pretrained(tmp_path / "b", base_model=copy.deepcopy(base.transformer))  # and fits without a word


def test_a_prefix_rewrite_with_a_layer_dropped_is_refused(tmp_path: Path) -> None:
    classifier = tiny("bert", noisy=True)
    tensors = _saved(_trained(classifier.bert, target_modules=["query", "value"]), tmp_path)
    _written(tmp_path, {k: v for k, v in tensors.items() if "layer.1.attention.self.value" not in k})
    with pytest.raises(AdapterMismatchError, match=r"missing .*bert\.encoder\.layer\.1\.attention\.self\.value"):
        _loaded(tmp_path, classifier)


class Twins(nn.Module):
    """Two parts alike."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.ModuleDict({"up": nn.Linear(3, 4), "down": nn.Linear(4, 3)}) for _ in range(2))


def test_a_prefix_that_could_be_rewritten_in_two_ways_is_refused(tmp_path: Path) -> None:
    twins = Twins()
    _trained(twins.left, target_modules=["up", "down"]).save_pretrained(tmp_path)
    with pytest.raises(AdapterMismatchError, match="'left'.*'right'"):
        _loaded(tmp_path, twins)


def test_an_adapter_of_one_layer_is_never_moved_to_another(tmp_path: Path) -> None:
    twins = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    _saved(_trained(twins, target_modules=["0"]), tmp_path, _replaced(("model.0.", "model.7.")))
    with pytest.raises(AdapterMismatchError, match=r"unexpected base_model\.model\.7\.lora_A"):
        _loaded(tmp_path, twins)


def test_a_key_without_a_place_is_named_with_the_nearest_names(tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    tensors = _saved(_trained(base, target_modules=["query"]), tmp_path)
    key = next(k for k in tensors if "layer.0" in k and "lora_A" in k)
    wrong = key.replace("query", "quary")
    _written(tmp_path, {wrong if k == key else k: v for k, v in tensors.items()})
    with pytest.raises(AdapterMismatchError) as refused:
        _loaded(tmp_path, base)
    said = str(refused.value)
    assert re.search(rf"unexpected {re.escape(wrong)}[^;]*bert\.encoder\.layer\.0\.attention\.self\.query", said)
    assert re.search(r"missing lora_A [^;]*bert\.encoder\.layer\.0\.attention\.self\.query", said)


# --- what else files hold -----------------------------------------------------------------------------------------------


def test_a_head_that_is_saved_without_being_listed_is_loaded(tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    model = _trained(base, target_modules=["query"], modules_to_save=["classifier"])
    _saved(model, tmp_path, modules_to_save=None)
    assert _same(_outputs(_loaded(tmp_path, base), "bert"), _outputs(model, "bert"))


@pytest.mark.parametrize("listed", [["classifier", "pooler"], ["pooler", "score"]], ids=str)
@pytest.mark.parametrize("dropped", ["classifier.bias", "pooler.dense.bias"])
def test_a_module_saved_in_part_is_an_error(dropped: str, listed: list[str], tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    tensors = _saved(_trained(base, **SAVED), tmp_path, modules_to_save=listed)
    _loaded(tmp_path, base)
    _written(tmp_path, {k: v for k, v in tensors.items() if not k.endswith(dropped)})
    with pytest.raises(AdapterMismatchError, match=rf"missing .*{dropped}"):
        _loaded(tmp_path, base)


def test_a_listed_module_that_the_file_does_not_hold_is_an_error(tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    tensors = _saved(_trained(base, **SAVED), tmp_path)
    _written(tmp_path, {k: v for k, v in tensors.items() if "classifier" not in k})
    with pytest.raises(AdapterMismatchError, match=r"missing .*classifier\.weight"):
        _loaded(tmp_path, base)


def test_targets_and_modules_to_save_that_the_model_does_not_have_are_no_error(tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    model = _trained(base, target_modules=["query", "value"], modules_to_save=["classifier"])
    _saved(model, tmp_path, target_modules=["query", "value", "xxx", "q_proj"], modules_to_save=["classifier", "score"])
    assert _same(_outputs(_loaded(tmp_path, base), "bert"), _outputs(model, "bert"))


@pytest.mark.parametrize("targets", [["query", "value"], "all-linear", None], ids=str)
def test_a_layer_dropped_from_a_file_is_an_error_however_its_targets_are_given(targets: Any, tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    tensors = _saved(_trained(base, target_modules=["query", "value"]), tmp_path, target_modules=targets)
    _loaded(tmp_path, base)
    _written(tmp_path, {k: v for k, v in tensors.items() if "layer.1.attention.self.value" not in k})
    with pytest.raises(AdapterMismatchError, match=r"missing .*bert\.encoder\.layer\.1\.attention\.self\.value"):
        _loaded(tmp_path, base)


def test_fused_experts_dropped_from_a_file_are_an_error(tmp_path: Path) -> None:
    base = tiny("mixtral", noisy=True)
    model = _trained(base, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    tensors = _saved(model, tmp_path)
    _written(tmp_path, {k: v for k, v in tensors.items() if "layers.1.mlp.experts.lora" not in k})
    with pytest.raises(AdapterMismatchError, match=r"missing .*model\.layers\.1\.mlp\.experts\.\w+_proj"):
        _loaded(tmp_path, base)


@pytest.mark.parametrize("config", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]}], ids=str)  # fmt: skip
def test_tables_of_another_vocabulary_say_how_to_make_room(config: dict[str, Any], tmp_path: Path) -> None:
    base = tiny("llama", noisy=True)
    grown = copy.deepcopy(base)
    grown.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    grown.save_pretrained(tmp_path / "base")
    grown = type(base).from_pretrained(tmp_path / "base")  # a base that was always so: nothing in it is new
    model = _trained(grown, **{"target_modules": ["q_proj"], **config})
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterMismatchError, match=rf"resize_token_embeddings\({VOCAB + 3}\)"):
        _loaded(tmp_path, base)
    assert _same(_outputs(_loaded(tmp_path, grown), "llama"), _outputs(model, "llama"))


def test_a_checkpoint_by_older_names_goes_into_an_adapter_that_is_there(tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    model = _trained(base, **SAVED)
    fresh = LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(**SAVED, lora_alpha=3))
    tensors = _saved(model, tmp_path, SPELLINGS["everything at once"])
    copy_in(fresh, fresh._lora, LoRAConfig.from_pretrained(tmp_path), tensors, "default")
    assert _same(_outputs(fresh, "bert"), _outputs(model, "bert"))


@pytest.mark.parametrize("parameters", [["q_proj.weight"], ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"]], ids=len)  # fmt: skip
def test_raw_parameters_follow_a_prefix_too(parameters: list[str], tmp_path: Path) -> None:
    base = tiny("llama", noisy=True)
    part = copy.deepcopy(base.model)
    model = _trained(base, target_parameters=parameters, rank_pattern={"model.layers.1.self_attn.q_proj.weight": 3})
    model.save_pretrained(tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"'model\.'.*'no prefix'"):
        onto = _loaded(tmp_path / "whole", part)
    assert all(torch.equal(_language_weights(model, "model.")[n], w) for n, w in _weights(onto).items())
    onto.save_pretrained(tmp_path / "part")
    with pytest.warns(UserWarning, match=r"'no prefix'.*'model\.'"):
        back = _loaded(tmp_path / "part", base)
    _assert_same_weights(back, model)


# --- Transformers' table ------------------------------------------------------------------------------------------------


def test_transformers_still_says_where_older_weights_lie_today() -> None:
    """The one place where this library depends on Transformers' conversion table: loud, should it change."""

    layer = "model.layers.0.block_sparse_moe"
    names = [f"{layer}.experts.3.w1.weight", f"{layer}.experts.2.w3.weight", f"{layer}.experts.1.w2.weight", f"{layer}.gate.weight", "model.norm.weight"]  # fmt: skip
    found = todays_names(tiny("mixtral", noisy=True), names)
    fused, down = ("model.layers.0.mlp.experts.gate_up_proj",), ("model.layers.0.mlp.experts.down_proj",)
    assert found == {
        names[0]: Today(fused, ("stack", "beside in 1"), 0, 2, 3),
        names[1]: Today(fused, ("stack", "beside in 1"), 1, 2, 2),
        names[2]: Today(down, ("stack",), 0, 1, 1),
        names[3]: Today(("model.layers.0.mlp.gate.weight",)),
    }
    assert todays_names(nn.Linear(2, 2), names) == {}


@not_older
def test_transformers_still_says_what_it_split() -> None:

    name = "dinov2.encoder.layer.0.mlp.weights_in.weight"
    parts = tuple(name.replace("weights_in", part) for part in ("gate_proj", "up_proj"))
    assert todays_names(_seeded(_dinov2), [name]) == {name: Today(parts, ("split",))}


def test_an_adapter_that_fits_as_it_is_never_asks_for_transformers_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(fitting, "todays_names", asked)
    base = tiny("bert", noisy=True)
    _trained(base, **SAVED).save_pretrained(tmp_path)
    _loaded(tmp_path, base)
    _saved(_trained(base, **SAVED), tmp_path, lambda key: f"module.{key}x")
    with pytest.raises(AssertionError, match="asked"):
        _loaded(tmp_path, base)


def test_weights_that_were_put_together_in_ways_not_understood_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny("bert", noisy=True)
    tensors = _saved(_trained(base, target_modules=["query"]), tmp_path, _replaced((".query.", ".older.")))

    def table(model: nn.Module, names: list[str]) -> dict[str, Today]:
        return {n: Today((n.replace("older", "query"),), ("Roll(3)",)) for n in names}

    monkeypatch.setattr(fitting, "todays_names", table)
    with pytest.raises(AdapterMismatchError, match=r"older\.lora_.*query\.weight.*Roll\(3\)"):
        _loaded(tmp_path, base)
    assert tensors


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


# --- unknown keys -------------------------------------------------------------------------------------------------------


def test_an_unknown_key_of_a_config_is_an_error_unless_it_is_ignored_and_is_then_written_back(tmp_path: Path) -> None:
    _written(tmp_path, {"x": torch.zeros(1)}, target_modules=["q"], brand_new_switch=True)
    with pytest.raises(ConfigError, match="brand_new_switch=True.*ignore_unknown"):
        LoRAConfig.from_pretrained(tmp_path)
    config = LoRAConfig.from_pretrained(tmp_path, ignore_unknown=True)
    assert config.to_dict()["brand_new_switch"] is True
    _written(tmp_path, {"x": torch.zeros(1)}, use_qalora=True)
    with pytest.raises(ConfigError, match="use_qalora=True"):  # known, and it changes the maths
        LoRAConfig.from_pretrained(tmp_path, ignore_unknown=True)
