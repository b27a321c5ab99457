"""Every architecture of the installed Transformers gets the right targets.

Two kinds of check. The reviewed table (tests/data/architectures.json, see tests/architectures.py) holds for the version
it was written with. The others know nothing of the mapper's words or rules and hold for any version: what the
attention's own source calls a query or a value, equal targets in equal layers, nothing outside the base model.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from hf_lora.errors import TargetError
from tests.architectures import TABLE, build, patterns, targets

from .peek import PRESETS

CHUNKS = 16
TYPES = sorted(CONFIG_MAPPING.keys())
LEAVES = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TABLED: dict[str, Any] = json.loads(TABLE.read_text())
SAME_VERSION = TABLED["transformers"] == transformers.__version__
# Attention that no adapter fits: XLNet's projections are parameters, I-BERT's return tuples, and RWKV rescales its output
# projection in place.
REFUSED = {
    "xlnet": {"auto", "attention"},
    "ibert": {"auto", "attention", "all-linear"},
    "rwkv": {"attention", "all-linear"},
}
# Classes that say attention, own linear layers and get no target, and why that is right.
NO_TARGET = {
    "CvtSelfAttentionConvProjection": "a depthwise convolution before the projections",
    "DabDetrAttention": "the output projection alone; query and value are its parent's",
    "DFineMultiscaleDeformableAttention": "no value projection: sampling offsets and weights only",
    "Deimv2MultiscaleDeformableAttention": "no value projection: sampling offsets and weights only",
    "EsmFold2RowAttentionPooling": "one score per row, no query or value",
    "LxmertAttentionOutput": "the output projection alone",
    "SLANetAttentionGRUCell": "additive attention of a recurrent head",
    "SLANeXtAttentionGRUCell": "additive attention of a recurrent head",
    "PatchTSMixerGatedAttention": "a gate",
}
# What a source calls a query or a value and is none, and targets that a source calls something else.
NOT_QUERY_OR_VALUE = {
    "q_a_proj": "the first factor of a pair",
    "linear1": "the MLP of SAM 3's memory layer, whose stream is called query",
    "linear2": "the MLP of SAM 3's memory layer, whose stream is called query",
}
UNNAMED_QUERY_OR_VALUE = {
    ("Attention", "c_attn"): "OpenAI GPT's qkv, called x",
    ("RwkvSelfAttention", "receptance"): "RWKV's query",
    ("SwiftFormerEfficientAdditiveAttention", "to_key"): "no value: the key doubles as one",
    ("DiffusionGemmaDecoderTextAttention", "k_proj"): "no value in global layers: the key doubles as one",
    ("DiffusionGemmaEncoderTextAttention", "k_proj"): "no value in global layers: the key doubles as one",
}
# What of a class computes and is never taken (tests/test_reach.py), so that it has no target, by full name.
_HEAD, _CODEC = r"vision_(tower|model)\.head\b", r"(vqmodel|codec_model|audio_encoder)\b"
UNREACHED = {
    "Gemma3ForConditionalGeneration": _HEAD,
    "Cohere2VisionForConditionalGeneration": _HEAD,
    "ColModernVBertForRetrieval": _HEAD,
    "DeepseekVLForConditionalGeneration": _HEAD,
    "DeepseekVLHybridForConditionalGeneration": _HEAD,
    "Lfm2VlForConditionalGeneration": _HEAD,
    "ModernVBertForSequenceClassification": _HEAD,
    "SiglipForImageClassification": _HEAD,
    "Siglip2ForImageClassification": _HEAD,
    "T5Gemma2ForConditionalGeneration": _HEAD,
    "T5Gemma2Encoder": _HEAD,
    "Phi4MultimodalForCausalLM": r"img_processor\.(head|encoder\.layers\.26)\b",
    **dict.fromkeys(
        [
            f"{name}ForConditionalGeneration"
            for name in ("Llava", "LlavaNext", "LlavaNextVideo", "VideoLlava", "VipLlava")
        ],
        r"(vision|image|video)_tower\.encoder\.layers\.23\b",
    ),
    **dict.fromkeys(
        [f"{name}ForConditionalGeneration" for name in ("Chameleon", "Csm", "Emu3", "Janus", "Moshi")], _CODEC
    ),
    "VJEPA2ForVideoClassification": r"vjepa2\.predictor\b",
}
FORBIDDEN = re.compile(
    r"(^|\.)(lm_heads?|classifier|score|router|cls|qa_outputs|pooler|embed_out|indexer|class_embed|bbox_embed)(\.|$)"
)
ROUTER = re.compile(r"Router|TopK|Gating$|Indexer")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_architecture_gets_the_right_targets(chunk: int) -> None:
    problems: list[str] = []
    for model_type in TYPES[chunk::CHUNKS]:
        try:
            model = build(model_type)
        except Exception as error:
            if SAME_VERSION and model_type not in TABLED["not_built"]:
                problems.append(f"{model_type} no longer builds: {error}")
            continue
        problems += [f"{model_type}: {problem}" for problem in problems_of(model_type, model)]
    assert not problems, "\n".join(problems)


@pytest.mark.skipif(not SAME_VERSION, reason="the table was written with another version of Transformers")
def test_at_least_99_percent_of_the_types_with_attention_are_mapped_and_the_rest_refused_by_name() -> None:
    rows = TABLED["types"]
    attention = [t for t, r in rows.items() if isinstance(r["attention"], list) or t in REFUSED]
    mapped = [t for t in attention if t not in REFUSED]
    assert len(TYPES) == len(rows) + len(TABLED["not_built"])
    assert len(mapped) >= 0.99 * len(attention)
    for model_type, presets in REFUSED.items():
        assert all(rows[model_type][preset].startswith("refused: ") for preset in presets)


def problems_of(model_type: str, model: nn.Module) -> Iterator[str]:
    """Yield what is wrong with the targets of one model."""
    found = {preset: targets_of(model, preset) for preset in PRESETS}
    refused = {preset for preset in PRESETS if found[preset] is None}
    has_attention = any(is_attention(module) for module in inside_base(model).values())
    if model_type in REFUSED:
        if refused != REFUSED[model_type]:
            yield f"refused for {refused}"
        return
    if "attention" not in refused:
        if refused:
            yield f"refused for {refused}"
        if not set(found["auto"]) <= set(found["attention"]) <= set(found["all-linear"]):
            yield "the presets are not nested"
        yield from problems_of_attention(model, found["auto"])
    elif has_attention and not any(type(m).__name__ in NO_TARGET for m in model.modules()):
        yield "has attention and was refused"
    for preset in PRESETS:
        yield from problems_of_names(model, preset, found[preset] or ())
    if SAME_VERSION:
        then = TABLED["types"].get(model_type, {})
        for preset, names in found.items():
            wanted = then.get(preset, [])
            if names is None:
                if not str(wanted).startswith("refused: "):
                    yield f"{preset} is refused, in the table it is {wanted}"
            elif patterns(names) != wanted:
                yield f"{preset} gives {patterns(names)}, in the table {wanted}"


def targets_of(model: nn.Module, preset: Any) -> tuple[str, ...] | None:
    try:
        return targets(model, preset)
    except TargetError:
        return None


def inside_base(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of the base model, as a task model's `base_model_prefix` gives it, by full name."""
    prefix = getattr(model, "base_model_prefix", "")
    modules = dict(model.named_modules())
    inner = {name: m for name, m in modules.items() if prefix and (name + ".").startswith(prefix + ".")}
    says = any(re.search("att(entio)?n", type(m).__name__, re.IGNORECASE) for m in inner.values())
    return inner if says else modules


def is_unreached(model: nn.Module, name: str) -> bool:
    """Tell whether a module of that full name gets no gradient in its model."""
    return re.search(UNREACHED.get(type(model).__name__, r"(?!)"), name) is not None


def is_attention(module: nn.Module) -> bool:
    """Tell whether a class says attention and owns linear layers, by its name and children only."""
    says = re.search("att(entio)?n", type(module).__name__, re.IGNORECASE)
    return says is not None and any(isinstance(child, LEAVES) for child in module.children())


def problems_of_attention(model: nn.Module, auto: tuple[str, ...]) -> Iterator[str]:
    """Yield where `auto` misses an attention, or disagrees with what its source calls query and value."""
    holders = {name.rsplit(".", depth)[0] for name in auto for depth in range(name.count(".") + 1)} | {""}
    for name, module in inside_base(model).items():
        if not is_attention(module) or is_unreached(model, name):
            continue
        kind = type(module).__name__
        if name not in holders and kind not in NO_TARGET:
            yield f"no target in {name} ({kind})"
        for label, child in module.named_children():
            called = variables(type(module)).get(label, set())
            if not called or not isinstance(child, LEAVES):
                continue
            full = f"{name}.{label}".lstrip(".")
            wanted = any(re.fullmatch(r"(mixed_)?(query|value)(_?(states?|layers?|proj|s))?|[qv]", v) for v in called)
            if wanted and full not in auto and label not in NOT_QUERY_OR_VALUE:
                yield f"{full} makes {called} and is no target"
            meant = any(re.search(r"quer|value|qkv|kv|^[qv]", v) for v in called)
            if SAME_VERSION and full in auto and not meant and (kind, label) not in UNNAMED_QUERY_OR_VALUE:
                yield f"{full} makes {called} and is a target"


@cache
def variables(cls: type) -> dict[str, set[str]]:
    """Return the names that a class's source gives to what its children return: q_proj -> {query_states}."""
    found: dict[str, set[str]] = {}
    for base in cls.__mro__[:-2]:
        for line in sources(base.__module__).get(base.__name__, "").splitlines():
            left, equals, right = line.partition(" = ")
            if equals and re.fullmatch(r"\s*[\w, ]+", left):
                for child in re.findall(r"self\.(\w+)\(", right):
                    found.setdefault(child, set()).update(v.strip() for v in left.split(","))
    return found


@cache
def sources(module: str) -> dict[str, str]:
    """Return the text of each class at the top of a Python module."""
    path = sys.modules[module].__file__
    with open(path or "", encoding="utf-8") as file:
        pieces = re.split(r"^class (\w+)", file.read(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def problems_of_names(model: nn.Module, preset: str, names: tuple[str, ...]) -> Iterator[str]:
    """Yield names that are no module or raw parameter, heads, routers, names outside the base, uneven coverage."""
    modules, inner = dict(model.named_modules()), inside_base(model)
    routers = tuple(f"{name}." for name, m in modules.items() if ROUTER.search(type(m).__name__))
    tables = (m.num_embeddings for m in modules.values() if isinstance(m, nn.Embedding))
    vocabulary = {size for size in tables if size > 20_000}  # which no hidden layer has
    for name in names:
        owner, _, parameter = name.rpartition(".")
        raw = name not in modules
        module = modules.get(owner if raw else name)
        if module is None or (raw and parameter not in dict(module.named_parameters(recurse=False))):
            yield f"{preset}: {name} does not exist"
        elif not raw and not isinstance(module, (*LEAVES, nn.MultiheadAttention)):
            yield f"{preset}: {name} is a {type(module).__name__}"
        elif (owner if raw else name) not in inner:
            yield f"{preset}: {name} is outside the base model"
        elif FORBIDDEN.search(name) or getattr(module, "out_features", 0) in vocabulary:
            yield f"{preset}: {name} is a head, a router or an indexer"
        elif name.startswith(routers):
            yield f"{preset}: {name} is in a router"
    if taken := [name for name in names if is_unreached(model, name)]:
        yield f"{preset}: {taken} get no gradient"
    yield from problems_of_coverage(model, modules, preset, set(names))


def problems_of_coverage(
    model: nn.Module, modules: dict[str, nn.Module], preset: str, names: set[str]
) -> Iterator[str]:
    """Yield lists of layers in which two layers of equal structure have different targets."""
    for name, module in modules.items():
        if not isinstance(module, nn.ModuleList):
            continue
        prefixes = [f"{name}.{label}.".lstrip(".") for label, _ in module.named_children()]
        if not any(target.startswith(prefix) for target in names for prefix in prefixes[:1] + prefixes[-1:]):
            continue
        seen: dict[tuple[Any, ...], set[str]] = {}
        for prefix, item in zip(prefixes, module, strict=True):
            if is_unreached(model, prefix):
                continue
            shape = tuple((n, type(m).__name__, getattr(m, "groups", 1) == 1) for n, m in item.named_modules())
            targets = {target.removeprefix(prefix) for target in names if target.startswith(prefix)}
            if seen.setdefault(shape, targets) != targets:
                yield f"{preset}: {prefix} and a layer of equal structure have different targets"
