"""Tiny models of Transformers, the same every time: a class, its config's sizes and example inputs, by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Inputs = dict[str, Any]
Row = tuple[str, dict[str, Any], Callable[[], Inputs]]  # class, its config's settings, inputs of a batch of two

BATCH, LENGTH, VOCAB, HIDDEN = 2, 7, 48, 16
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _ids(length: int = LENGTH) -> Tensor:
    """Return token ids above 3, clear of the special ones."""
    return torch.randint(4, VOCAB, (BATCH, length), generator=torch.Generator().manual_seed(2))


def _tokens() -> Inputs:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, -2:] = 0
    return {"input_ids": _ids(), "attention_mask": mask}


def _ids_only() -> Inputs:
    return {"input_ids": _ids()}


def _pair() -> Inputs:
    return {"input_ids": _ids(), "decoder_input_ids": _ids(5)}


def _image() -> Inputs:
    return {"pixel_values": _random(BATCH, 3, 16, 16)}


def _sound() -> Inputs:
    return {"input_values": _random(BATCH, 400)}


def _features() -> Inputs:
    return {"input_features": _random(BATCH, 8, 20), "decoder_input_ids": _ids(5)}


def _without(sizes: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if key not in keys}


def _both_sides(**sizes: int) -> dict[str, int]:
    return {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sizes.items()}


# What nearly every transformer's config calls its sizes.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
_NO_SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
# Decoders of the Llama line: fewer key and value heads than query heads, no token with a meaning of its own.
DECODER: dict[str, Any] = {
    **SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, **_NO_SPECIAL
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": HIDDEN, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_SEEN = _without(SIZES, "vocab_size")
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
_PICTURE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_channels": 3}
_SIDES = _both_sides(layers=2, attention_heads=2, ffn_dim=32)
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
# The wav2vec 2.0 line: two strided convolutions before the transformer.
_SPEECH = {
    **SIZES, "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
_ONES = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1)

FAMILIES: dict[str, Row] = {
    "bert": ("BertForSequenceClassification", {**SIZES, "num_labels": 3}, _tokens),
    "bert_mlm": ("BertForMaskedLM", SIZES, _tokens),
    "roberta": ("RobertaForTokenClassification", {**SIZES, "num_labels": 4, "pad_token_id": 1}, _tokens),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCAB, "dim": HIDDEN, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "num_labels": 3}, _tokens,
    ),
    "albert": ("AlbertForSequenceClassification", {**SIZES, "embedding_size": 8, "num_labels": 3}, _tokens),
    "electra": ("ElectraForQuestionAnswering", {**SIZES, "embedding_size": 8}, _tokens),
    "deberta": ("DebertaModel", {**SIZES, **_RELATIVE, "max_relative_positions": 8}, _tokens),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification", {**SIZES, **_RELATIVE, "position_buckets": 4, "num_labels": 3}, _tokens,
    ),
    "modernbert": (
        "ModernBertForMaskedLM", {**SIZES, **_ONES, "cls_token_id": 1, "sep_token_id": 1}, _tokens,
    ),
    "xlnet": ("XLNetModel", {"vocab_size": VOCAB, "d_model": HIDDEN, "n_layer": 2, "n_head": 2, "d_inner": 32}, _tokens),
    "gpt2": ("GPT2LMHeadModel", GPT2, _tokens),
    "gpt2_classifier": ("GPT2ForSequenceClassification", {**GPT2, "pad_token_id": 0, "num_labels": 3}, _tokens),
    "gpt_neox": ("GPTNeoXForCausalLM", {**SIZES, "max_position_embeddings": 32}, _tokens),
    "gptj": ("GPTJForCausalLM", {**_without(GPT2, "bos_token_id", "eos_token_id"), "rotary_dim": 4}, _tokens),
    "bloom": ("BloomForCausalLM", {"vocab_size": VOCAB, "hidden_size": HIDDEN, "n_layer": 2, "n_head": 2}, _tokens),
    "opt": (
        "OPTForCausalLM",
        {**_without(SIZES, "intermediate_size"), "ffn_dim": 32, "word_embed_proj_dim": HIDDEN, "max_position_embeddings": 32},
        _tokens,
    ),
    "falcon": ("FalconForCausalLM", _without(SIZES, "intermediate_size"), _tokens),
    "phi": ("PhiForCausalLM", {**DECODER, "partial_rotary_factor": 0.5}, _tokens),
    "phi3": ("Phi3ForCausalLM", DECODER, _tokens),
    "llama": ("LlamaForCausalLM", DECODER, _tokens),
    "mistral": (
        "MistralForSequenceClassification", {**DECODER, "pad_token_id": 0, "sliding_window": 4, "num_labels": 3}, _tokens,
    ),
    "qwen2": ("Qwen2ForCausalLM", _without(DECODER, "head_dim"), _tokens),
    "qwen3": ("Qwen3ForCausalLM", DECODER, _tokens),
    "gemma2": ("Gemma2ForCausalLM", {**DECODER, "query_pre_attn_scalar": 8, "sliding_window": 4}, _tokens),
    "gemma3": ("Gemma3ForCausalLM", {**DECODER, "query_pre_attn_scalar": 8, "sliding_window": 4}, _tokens),
    "mixtral": ("MixtralForCausalLM", {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}, _tokens),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**DECODER, **_EXPERTS, "num_experts": 4}, _tokens),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}, _tokens,
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **_without(DECODER, "head_dim"), **_EXPERTS, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
            "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        },
        _tokens,
    ),
    "t5": (
        "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": True}, _pair,
    ),
    "bart": (
        "BartForConditionalGeneration",
        {"vocab_size": VOCAB, "d_model": HIDDEN, "max_position_embeddings": 32, **_SIDES}, _pair,
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            "vocab_size": VOCAB, "d_model": HIDDEN, "num_mel_bins": 8, "max_source_positions": 10, **_SIDES, **_ONES,
            "max_target_positions": 16, "suppress_tokens": None, "begin_suppress_tokens": None,
            "decoder_start_token_id": 1,
        },
        _features,
    ),
    "vit": ("ViTForImageClassification", {**_SEEN, **_PICTURE, "num_labels": 3}, _image),
    "swin": (
        "SwinForImageClassification",
        {
            **_PICTURE, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "drop_path_rate": 0.0,
            "num_labels": 3,
        },
        _image,
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"num_channels": 3, "patch_size": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3, "num_stages": 2},
        _image,
    ),
    "clip": (
        "CLIPModel",
        {
            "text_config": {**SIZES, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1},
            "vision_config": {**_SEEN, **_PICTURE}, "projection_dim": 8,
        },
        lambda: {**_tokens(), **_image()},
    ),
    "siglip": (
        "SiglipModel",
        {
            "text_config": {**SIZES, "max_position_embeddings": 16, "projection_size": HIDDEN},
            "vision_config": {**_SEEN, **_PICTURE},
        },
        lambda: {**_ids_only(), **_image()},
    ),
    "detr": (
        "DetrForObjectDetection",
        {
            "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": HIDDEN,
            "backbone_config": {
                "model_type": "resnet", "num_channels": 3, "embedding_size": 8, "hidden_sizes": [8] * 4,
                "depths": [1] * 4, "out_features": ["stage4"],
            },
            "num_queries": 4, "num_labels": 3, **_SIDES,
        },
        lambda: {"pixel_values": _random(BATCH, 3, 64, 64)},
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", _SPEECH, _sound),
    "wavlm": ("WavLMModel", {**_SPEECH, "num_buckets": 8, "max_bucket_distance": 16}, _sound),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4},
        _ids_only,
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8,
            "expand": 2, "state_size": 4, "n_groups": 1, "chunk_size": 4,
        },
        _ids_only,
    ),
    "jamba": (
        "JambaForCausalLM",
        {
            **_without(DECODER, "head_dim", "max_position_embeddings"), "attn_layer_period": 2, "attn_layer_offset": 1,
            "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
            "use_mamba_kernels": False, "num_experts": 4, "num_experts_per_tok": 2,
        },
        _ids_only,
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {
            **DECODER, **_EXPERTS, "linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "num_experts": 4, "shared_expert_intermediate_size": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        _ids_only,
    ),
}  # fmt: skip


def tiny(
    name: str = "bert", cls: type | str | None = None, *, seed: int = 0, noisy: bool = False, **settings: Any
) -> Any:
    """Return a small model in eval mode: same arguments, same bits; the global random numbers are left alone.

    cls: another class of the family, itself or its name. settings: of the config, beside the family's own. noisy:
    every float parameter gets noise on top, so that no bias, norm or decay is left at a special value.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _class(cls or FAMILIES[name][0])(tiny_config(name, cls, **settings))
        if noisy:
            scatter(model)
    return model.eval()


def tiny_config(name: str = "bert", cls: type | str | None = None, **settings: Any) -> Any:
    """Return the config of a small model; arguments as of `tiny`."""
    usual, sizes, _ = FAMILIES[name]
    return _class(cls or usual).config_class(**{**sizes, **settings})


def inputs(name: str) -> Inputs:
    """Return example inputs of a batch of two, the same at every call."""
    return FAMILIES[name][2]()


def without_dropout(model: nn.Module) -> Any:
    """Return a model whose dropout, modules and attributes, is switched off."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def checkpointed(model: Any, use_reentrant: bool) -> None:
    """Switch gradient checkpointing on, by the name that it has in this version of Transformers."""
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    switch({"use_reentrant": use_reentrant})


@torch.no_grad()
def outputs(model: nn.Module, name: str) -> list[Tensor]:
    """Return a model's float outputs on its family's example inputs."""
    return floats(model(**inputs(name)))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of a saved adapter's config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def scatter(model: nn.Module) -> None:
    """Add noise to every float parameter, from torch's global generator."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.15 if parameter.ndim > 1 else 0.05)


def floats(output: Any) -> list[Tensor]:
    """Return every float tensor inside a model's output, in order; caches are left out."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [t for key, value in output.items() if "past" not in key and "cache" not in key for t in floats(value)]
    if isinstance(output, list | tuple):
        return [t for value in output for t in floats(value)]
    return []


def _class(cls: type | str) -> Any:
    return getattr(transformers, cls) if isinstance(cls, str) else cls
