"""Every architecture of the installed Transformers as a model without memory, and the reviewed table of its targets.

Models are built on the meta device, at full size. `python -m tests.architectures --write` rewrites the table,
`tests/data/architectures.json`: read the difference, architecture by architecture, before keeping it.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, ResNetConfig, ViTConfig
from transformers.models.auto import modeling_auto

from hf_lora import LoRAConfig
from hf_lora.errors import TargetError

from .peek import PRESETS, plan

try:
    from transformers.initialization import no_init_weights
except ImportError:  # other versions keep it elsewhere, and on the meta device nothing is written anyway
    no_init_weights = contextlib.nullcontext

TABLE = Path(__file__).parent / "data" / "architectures.json"

# Auto classes in the order in which a type's model is chosen: with a head first, so that heads can be hit by mistake.
_TASKS = """
    IMAGE_TEXT_TO_TEXT MULTIMODAL_LM CAUSAL_LM SEQ_TO_SEQ_CAUSAL_LM SPEECH_SEQ_2_SEQ SEQUENCE_CLASSIFICATION
    IMAGE_CLASSIFICATION AUDIO_CLASSIFICATION CTC MASKED_LM OBJECT_DETECTION ZERO_SHOT_OBJECT_DETECTION
    SEMANTIC_SEGMENTATION DEPTH_ESTIMATION PRETRAINING
"""
TASKS = _TASKS.split()
_INDEXER = [f"indexer_{size}" for size in ("n_heads", "kv_heads", "head_dim", "budget", "compress_ratio")]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INTRACLASS = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]} | {
    f"{kind}_{size}ratio": [3, 1, 1]
    for kind in ("vertical_long_to_small_conv", "horizontal_small_to_long_conv", "symmetric_conv_long")
    for size in ("long", "mid", "short")
}
# What a default config lacks, or hides (attention among state-space layers): arguments of the config's class, by type.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 24},
    "informer": {"prediction_length": 24},
    "time_series_transformer": {"prediction_length": 24},
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "emu3": {"vocabulary_map": {"<image>": 1}},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "granite4_vision": {"deepstack_layer_map": [[0, 0], [8, 4]], "downsample_rate": "4/8"},
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 16},
}
# Attributes set on every config of a type, wherever it sits in the tree of sub-configs.
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] + ["sparse"] * 99},
    "diffusion_gemma_text": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 704},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 2},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl_text": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "moshi": {"audio_vocab_size": 2048},
    "nemotron": {"num_key_value_heads": 8},
    "": {"spatial_merge_size": 2},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 768},
    "qwen4_exp_text": dict(zip(_INDEXER, (4, 1, 128, 2048, 4), strict=True)),
    "pp_ocrv5_server_det": {"intraclass_block_config": _INTRACLASS, "kernel_list": [3, 2, 2]},
    "pp_ocrv6_medium_det": {"intraclass_block_config": _INTRACLASS, "kernel_list": [3, 2, 2]},
    "siglip_vision_model": {"num_attention_heads": 16},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "vitmatte": {"fusion_hidden_sizes": [256, 128, 64, 32], "convstream_hidden_sizes": [48, 96, 192]},
}


# Classes of types that no auto class names.
CLASSES = {"moshi": ["MoshiForConditionalGeneration"]}
# Sub-configs that want timm or Pillow, and what stands for them: the rest of such a model can be mapped all the same.
WITHOUT_TIMM = {
    "timm_backbone": lambda: ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"]),
    "timm_wrapper": lambda: ViTConfig(model_args={"embed_dim": 768}, rms_norm_eps=1e-6),
    "gemma3n_vision": lambda: ViTConfig(rms_norm_eps=1e-6, vocab_size=128, vocab_offset=0),
}


def configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield `config` and every config inside it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from configs(value)


def config_of(model_type: str) -> PreTrainedConfig:
    """Return the default config of `model_type`, completed where the default does not build."""
    config = CONFIG_MAPPING[model_type](**ARGUMENTS.get(model_type, {}))
    for part in configs(config):
        for name, value in ATTRIBUTES.get(part.model_type, {}).items():
            setattr(part, name, value)
        for name, value in list(vars(part).items()):
            if getattr(value, "model_type", None) in WITHOUT_TIMM:
                vars(part)[name] = WITHOUT_TIMM[value.model_type]()  # past the validation of the field's type
    return config


def classes_of(config: PreTrainedConfig, model_type: str) -> list[type[nn.Module]]:
    """Return the classes that may build `config`, those of the auto classes first."""
    tables = [f"MODEL_FOR_{task}_MAPPING_NAMES" for task in TASKS]
    tables += [name for name in dir(modeling_auto) if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES")]
    found = [getattr(transformers, name) for name in CLASSES.get(model_type, ())]
    for table in [*tables, "MODEL_MAPPING_NAMES", "MODEL_FOR_BACKBONE_MAPPING_NAMES"]:
        names = getattr(modeling_auto, table, {}).get(model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            found.append(getattr(transformers, name, None))
    own = [cls for cls in modeling_classes(type(config)) if takes(cls, type(config))]
    own.sort(key=lambda cls: (not issubclass(cls, PreTrainedModel), "For" not in cls.__name__, len(cls.__name__)))
    classes = [cls for cls in dict.fromkeys([*found, *own]) if inspect.isclass(cls)]
    whole = [cls for cls in classes if issubclass(cls, PreTrainedModel)]
    return whole or classes


def modeling_classes(config_class: type) -> list[type[nn.Module]]:
    """Return the concrete module classes of the modeling files beside a config class."""
    package = importlib.import_module(config_class.__module__.rsplit(".", 1)[0])
    found = []
    for entry in pkgutil.iter_modules(package.__path__):
        if entry.name.startswith(("modeling_", "vision", "perceiver")):
            module = importlib.import_module(f"{package.__name__}.{entry.name}")
            own = [cls for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__]
            found += [cls for cls in own if issubclass(cls, nn.Module) and "PreTrainedModel" not in cls.__name__]
    return found


def takes(cls: type[nn.Module], config_class: type) -> bool:
    """Tell whether `cls` is built from a config of `config_class`."""
    if issubclass(cls, PreTrainedModel):
        return getattr(cls, "config_class", None) is config_class
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return (
        bool(parameters)
        and str(parameters[0].annotation).split(".")[-1].strip("'>") == config_class.__name__
        and all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters[1:])
    )


def build(model_type: str) -> nn.Module:
    """Return a model of `model_type` on the meta device; raise ImportError or another error where none builds."""
    config = config_of(model_type)
    errors: list[Exception] = []
    for cls in classes_of(config, model_type):
        try:
            with torch.device("meta"), no_init_weights():
                return cls(config)
        except Exception as error:  # any failure means: try the next class
            errors.append(error)
    raise errors[0] if errors else LookupError(f"no class builds {model_type}")


def patterns(names: Iterable[str]) -> list[str]:
    """Return names as a few lines: `encoder.layer.*.attention.self.{query,value} x12`."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"(^|(?<=\.))\d+(?=\.|$)", "*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    groups: dict[tuple[str, int], list[str]] = {}
    for pattern, count in counts.items():
        prefix, dot, last = pattern.rpartition(".")
        groups.setdefault((prefix + dot, count), []).append(last)
    braced = {key: last[0] if len(last) == 1 else "{" + ",".join(last) + "}" for key, last in groups.items()}
    return [f"{prefix}{last} x{count}" for (prefix, count), last in braced.items()]


def targets(model: nn.Module, preset: Any) -> tuple[str, ...]:
    """Return what a preset targets on a model, in its order, as the plan has it: a layer may refuse an adapter."""
    _, layers, parameters = plan(model, LoRAConfig(target_modules=preset))
    found = {*layers, *parameters}
    walk = ((name, *(f"{name}.{p}".lstrip(".") for p in m._parameters)) for name, m in model.named_modules())
    return tuple(name for names in walk for name in names if name in found)


def row(model: nn.Module) -> dict[str, Any]:
    """Return a model's row of the table: its class, and the patterns of each preset, or the words of its refusal."""
    found: dict[str, Any] = {"class": type(model).__name__}
    for preset in PRESETS:
        try:
            found[preset] = patterns(targets(model, preset))
        except TargetError as error:
            found[preset] = f"refused: {str(error)[:300]}"
    return found


def write() -> None:
    """Write the table anew from the installed Transformers and the present mapper."""
    table: dict[str, Any] = {"transformers": transformers.__version__, "types": {}, "not_built": {}}
    for model_type in sorted(CONFIG_MAPPING.keys()):
        try:
            table["types"][model_type] = row(build(model_type))
        except TargetError:
            raise
        except Exception as error:
            table["not_built"][model_type] = " ".join(str(error).split())[:120]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(len(table["types"]), "types written,", len(table["not_built"]), "not built")


if __name__ == "__main__" and "--write" in sys.argv:
    write()
