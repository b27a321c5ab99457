"""Tiny random models of some forty families: a config, a class and example inputs for each, built in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

# For models this small a second thread only waits; on a busy machine it made the tests that use them 15 times slower.

Inputs = dict[str, Any]
Row = tuple[type, Any, Callable[[Any], Inputs]]  # class, config, config -> inputs

BATCH, LENGTH, VOCAB, HIDDEN = 2, 7, 48, 16
# What nearly every transformer's config calls its sizes.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
# Decoders of the Llama line: fewer key and value heads than query heads, no token with a meaning of its own.
DECODER: dict[str, Any] = {
    **SIZES,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_channels": 3}


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _ids(vocab: int = VOCAB, length: int = LENGTH) -> Tensor:
    """Return token ids above 3, clear of the special ones."""
    return torch.randint(4, vocab, (BATCH, length), generator=torch.Generator().manual_seed(2))


def _tokens(config: Any) -> Inputs:
    ids = _ids()
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _ids_only(config: Any) -> Inputs:
    return {"input_ids": _ids()}


def _pair(config: Any) -> Inputs:
    return {"input_ids": _ids(), "decoder_input_ids": _ids(length=5)}


def _image(config: Any) -> Inputs:
    return {"pixel_values": _random(BATCH, 3, 16, 16)}


def _sound(config: Any) -> Inputs:
    return {"input_values": _random(BATCH, 400)}


def _bert() -> Row:
    return tf.BertForSequenceClassification, tf.BertConfig(**SIZES, num_labels=3), _tokens


def _bert_mlm() -> Row:
    return tf.BertForMaskedLM, tf.BertConfig(**SIZES), _tokens


def _roberta() -> Row:
    return tf.RobertaForTokenClassification, tf.RobertaConfig(**SIZES, num_labels=4, pad_token_id=1), _tokens


def _distilbert() -> Row:
    config = tf.DistilBertConfig(vocab_size=VOCAB, dim=HIDDEN, hidden_dim=32, n_layers=2, n_heads=2, num_labels=3)
    return tf.DistilBertForSequenceClassification, config, _tokens


def _albert() -> Row:
    return tf.AlbertForSequenceClassification, tf.AlbertConfig(**SIZES, embedding_size=8, num_labels=3), _tokens


def _electra() -> Row:
    return tf.ElectraForQuestionAnswering, tf.ElectraConfig(**SIZES, embedding_size=8), _tokens


def _deberta() -> Row:
    positions = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
    return tf.DebertaModel, tf.DebertaConfig(**SIZES, **positions), _tokens


def _deberta_v2() -> Row:
    positions = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4}
    return tf.DebertaV2ForSequenceClassification, tf.DebertaV2Config(**SIZES, **positions, num_labels=3), _tokens


def _modernbert() -> Row:
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    return tf.ModernBertForMaskedLM, tf.ModernBertConfig(**SIZES, **special), _tokens


def _xlnet() -> Row:
    return tf.XLNetModel, tf.XLNetConfig(vocab_size=VOCAB, d_model=HIDDEN, n_layer=2, n_head=2, d_inner=32), _tokens


def _gpt2(**extra: Any) -> Any:
    sizes = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return tf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **extra)


def _gpt2_lm() -> Row:
    return tf.GPT2LMHeadModel, _gpt2(), _tokens


def _gpt2_classifier() -> Row:
    return tf.GPT2ForSequenceClassification, _gpt2(pad_token_id=0, num_labels=3), _tokens


def _gpt_neox() -> Row:
    return tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**SIZES, max_position_embeddings=32), _tokens


def _gptj() -> Row:
    sizes = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4}
    return tf.GPTJForCausalLM, tf.GPTJConfig(**sizes), _tokens


def _bloom() -> Row:
    return tf.BloomForCausalLM, tf.BloomConfig(vocab_size=VOCAB, hidden_size=HIDDEN, n_layer=2, n_head=2), _tokens


def _opt() -> Row:
    config = tf.OPTConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32,
        word_embed_proj_dim=HIDDEN, max_position_embeddings=32,
    )  # fmt: skip
    return tf.OPTForCausalLM, config, _tokens


def _falcon() -> Row:
    config = tf.FalconConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2)
    return tf.FalconForCausalLM, config, _tokens


def _phi() -> Row:
    return tf.PhiForCausalLM, tf.PhiConfig(**{**DECODER, "partial_rotary_factor": 0.5}), _tokens


def _phi3() -> Row:
    return tf.Phi3ForCausalLM, tf.Phi3Config(**DECODER), _tokens


def _llama() -> Row:
    return tf.LlamaForCausalLM, tf.LlamaConfig(**DECODER), _tokens


def _mistral() -> Row:
    config = tf.MistralConfig(**{**DECODER, "pad_token_id": 0}, sliding_window=4, num_labels=3)
    return tf.MistralForSequenceClassification, config, _tokens


def _qwen2() -> Row:
    return tf.Qwen2ForCausalLM, tf.Qwen2Config(**{k: v for k, v in DECODER.items() if k != "head_dim"}), _tokens


def _qwen3() -> Row:
    return tf.Qwen3ForCausalLM, tf.Qwen3Config(**DECODER), _tokens


def _gemma2() -> Row:
    return tf.Gemma2ForCausalLM, tf.Gemma2Config(**DECODER, query_pre_attn_scalar=8, sliding_window=4), _tokens


def _gemma3() -> Row:
    return tf.Gemma3ForCausalLM, tf.Gemma3TextConfig(**DECODER, query_pre_attn_scalar=8, sliding_window=4), _tokens


def _mixtral() -> Row:
    config = tf.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)
    return tf.MixtralForCausalLM, config, _tokens


def _qwen3_moe() -> Row:
    return tf.Qwen3MoeForCausalLM, tf.Qwen3MoeConfig(**DECODER, **EXPERTS, num_experts=4), _tokens


def _gpt_oss() -> Row:
    config = tf.GptOssConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2, sliding_window=4)
    return tf.GptOssForCausalLM, config, _tokens


def _deepseek_v3() -> Row:
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    routing = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    sizes = {k: v for k, v in DECODER.items() if k not in ("head_dim", "num_key_value_heads")}
    config = tf.DeepseekV3Config(**sizes, **latent, **routing, **EXPERTS, num_key_value_heads=2)
    return tf.DeepseekV3ForCausalLM, config, _tokens


def _t5() -> Row:
    config = tf.T5Config(
        vocab_size=VOCAB, d_model=HIDDEN, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration, config, _pair


def _bart() -> Row:
    sizes = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
        (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
    }  # fmt: skip
    config = tf.BartConfig(vocab_size=VOCAB, d_model=HIDDEN, max_position_embeddings=32, **sizes)
    return tf.BartForConditionalGeneration, config, _pair


def _whisper() -> Row:
    sizes = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
        (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
    }  # fmt: skip
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = tf.WhisperConfig(
        vocab_size=VOCAB, d_model=HIDDEN, num_mel_bins=8, max_source_positions=10, max_target_positions=16,
        suppress_tokens=None, begin_suppress_tokens=None, **sizes, **special,
    )  # fmt: skip

    def inputs(config: Any) -> Inputs:
        return {"input_features": _random(BATCH, 8, 20), "decoder_input_ids": _ids(length=5)}

    return tf.WhisperForConditionalGeneration, config, inputs


def _vit() -> Row:
    return tf.ViTForImageClassification, tf.ViTConfig(**_without_vocab(), **IMAGE, num_labels=3), _image


def _swin() -> Row:
    config = tf.SwinConfig(
        **IMAGE, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2, drop_path_rate=0.0, num_labels=3
    )
    return tf.SwinForImageClassification, config, _image


def _convnext() -> Row:
    config = tf.ConvNextConfig(
        num_channels=3, patch_size=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, num_stages=2
    )
    return tf.ConvNextForImageClassification, config, _image


def _clip() -> Row:
    text = {**SIZES, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**_without_vocab(), **IMAGE}
    config = tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return tf.CLIPModel, config, lambda c: {**_tokens(c), **_image(c)}


def _siglip() -> Row:
    text = {**SIZES, "max_position_embeddings": 16, "projection_size": HIDDEN}
    vision = {**_without_vocab(), **IMAGE}
    config = tf.SiglipConfig(text_config=text, vision_config=vision)
    return tf.SiglipModel, config, lambda c: {**_ids_only(c), **_image(c)}


def _detr() -> Row:
    backbone = tf.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    sizes = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
        (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
    }  # fmt: skip
    config = tf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, backbone=None,
        d_model=HIDDEN, num_queries=4, num_labels=3, **sizes,
    )  # fmt: skip
    return tf.DetrForObjectDetection, config, lambda c: {"pixel_values": _random(BATCH, 3, 64, 64)}


def _speech() -> dict[str, Any]:
    """Return the sizes of the wav2vec 2.0 line: two strided convolutions before the transformer."""
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return {**SIZES, **convolutions, **positions, "mask_time_prob": 0.0, "layerdrop": 0.0}


def _wav2vec2() -> Row:
    return tf.Wav2Vec2ForCTC, tf.Wav2Vec2Config(**_speech()), _sound


def _wavlm() -> Row:
    return tf.WavLMModel, tf.WavLMConfig(**_speech(), num_buckets=8, max_bucket_distance=16), _sound


def _mamba() -> Row:
    config = tf.MambaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, state_size=4, time_step_rank=4)
    return tf.MambaForCausalLM, config, _ids_only


def _mamba2() -> Row:
    sizes = {"num_heads": 4, "head_dim": 8, "expand": 2, "state_size": 4, "n_groups": 1, "chunk_size": 4}
    config = tf.Mamba2Config(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, **sizes)
    return tf.Mamba2ForCausalLM, config, _ids_only


def _jamba() -> Row:
    sizes = {k: v for k, v in DECODER.items() if k not in ("head_dim", "max_position_embeddings")}
    hybrid = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    state = {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
    config = tf.JambaConfig(**sizes, **hybrid, **state, num_experts=4, num_experts_per_tok=2)
    return tf.JambaForCausalLM, config, _ids_only


def _qwen3_next() -> Row:
    linear = {
        "linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }  # fmt: skip
    config = tf.Qwen3NextConfig(
        **DECODER, **EXPERTS, **linear, num_experts=4, shared_expert_intermediate_size=8,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    return tf.Qwen3NextForCausalLM, config, _ids_only


def _without_vocab() -> dict[str, Any]:
    return {k: v for k, v in SIZES.items() if k != "vocab_size"}


FAMILIES: Mapping[str, Callable[[], Row]] = {
    "bert": _bert,
    "bert_mlm": _bert_mlm,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "albert": _albert,
    "electra": _electra,
    "deberta": _deberta,
    "deberta_v2": _deberta_v2,
    "modernbert": _modernbert,
    "xlnet": _xlnet,
    "gpt2": _gpt2_lm,
    "gpt2_classifier": _gpt2_classifier,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "bloom": _bloom,
    "opt": _opt,
    "falcon": _falcon,
    "phi": _phi,
    "phi3": _phi3,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
    "t5": _t5,
    "bart": _bart,
    "whisper": _whisper,
    "vit": _vit,
    "swin": _swin,
    "convnext": _convnext,
    "clip": _clip,
    "siglip": _siglip,
    "detr": _detr,
    "wav2vec2": _wav2vec2,
    "wavlm": _wavlm,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "qwen3_next": _qwen3_next,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """Return a model in eval mode whose every float parameter is random: same name and seed, same bits.

    Its own initialisation is kept and noise added, so that no bias, norm or decay is left at a special value.
    """
    cls, config, _ = FAMILIES[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
        scatter(model)
    return model.eval()


def scatter(model: nn.Module) -> None:
    """Add noise to every float parameter, from torch's global generator."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.15 if parameter.ndim > 1 else 0.05)


def inputs(name: str) -> Inputs:
    """Return example inputs of a batch of two, the same at every call."""
    _, config, make = FAMILIES[name]()
    return make(config)


def floats(output: Any) -> list[Tensor]:
    """Return every float tensor inside a model's output, in order; caches are left out."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [t for key, value in output.items() if "past" not in key and "cache" not in key for t in floats(value)]
    if isinstance(output, list | tuple):
        return [t for value in output for t in floats(value)]
    return []
