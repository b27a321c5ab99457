"""loralib's checkpoints: one file of lora_A and lora_B, made by `torch.save(loralib.lora_state_dict(model))`.

    <layer>.lora_A, <layer>.lora_B      of Linear, Embedding, MergedLinear, Conv2d: formats/pairs.py has their shapes
    <layer>.bias, ...                   saved whole (bias="all" or "lora_only"); <layer>.conv.bias of a convolution

The file says neither alpha nor, of a merged layer, which blocks are adapted: the caller's LoRAConfig does. loralib's
own default is lora_alpha=1, a LoRAConfig's is 8. Hu et al. 2021, arXiv:2106.09685.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..config.keys import PRESETS
from ..config.lora_config import LoRAConfig
from ..errors import AdapterFileError, ConfigError, some
from ..files.tensors import read_tensors
from ..targets.names import listed_modules
from .contents import Candidate, Contents
from .keys import PREFIX
from .pairs import checked_flags, fit_pairs, fit_targets, split_pairs

SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")


def read_loralib(candidate: Candidate) -> Contents | None:
    """Read a loralib checkpoint; None where the source is no single file of tensors.

    Raises AdapterFileError where the file holds no such adapter, ConfigError where the caller gives no LoRAConfig.
    """
    path = Path(candidate.source.name)
    if not candidate.source.is_file or path.suffix not in SUFFIXES:
        return None
    tensors = _named(path, read_tensors(path))
    if candidate.given is None:
        raise ConfigError(
            f"{path} is a checkpoint of loralib, which does not say what alpha it was trained with; pass "
            "lora_config=LoRAConfig(lora_alpha=...) with the lora_alpha of its layers (loralib's default is 1). The "
            "rank and the layers are read from the file."
        )
    config = _with_saved(candidate.given, tensors)
    enabled = checked_flags(config.other.get("enable_lora"))
    config = config.copy(other={key: value for key, value in config.other.items() if key != "enable_lora"})

    def fit(modules: Mapping[str, nn.Module]) -> tuple[LoRAConfig, dict[str, Tensor]]:
        pairs = fit_pairs(config.copy(rank_pattern={}), tensors, modules, enabled)
        _check_given(config, pairs.ranks, str(path))
        chosen = config.target_modules is not None and config.target_modules not in PRESETS
        return pairs.config if chosen else fit_targets(pairs.config, list(pairs.ranks), list(modules)), pairs.tensors

    return Contents(candidate.source, config, tensors, fit=fit)


def _named(path: Path, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under PEFT's names. Raises AdapterFileError where it is not loralib's."""
    layers = {key.removesuffix(".lora_A") for key in raw if key.endswith(".lora_A")}
    if not layers:
        peft = any(".lora_A." in key for key in raw)
        raise AdapterFileError(
            f"{path} is the weights file of a PEFT adapter; name the folder that holds it and adapter_config.json."
            if peft
            else f"{path} holds no lora_A and lora_B of loralib: it is not an adapter. Its tensors: "
            f"{some(sorted(raw)) or 'none'}."
        )
    whole = sorted(n for n in layers if f"{n}.weight" in raw or f"{n}.conv.weight" in raw)
    if whole:
        raise AdapterFileError(
            f"{path} holds the base's own weights of {len(whole)} adapted layers ({whole[0]}, ...), which may have the "
            "adapter merged into them; save loralib.lora_state_dict(model) instead of model.state_dict()."
        )
    result = {}
    for key, tensor in raw.items():
        owner, _, leaf = key.rpartition(".")
        if leaf in ("lora_A", "lora_B"):
            key += ".weight"
        elif owner.endswith(".conv") and owner.removesuffix(".conv") in layers:
            key = f"{owner.removesuffix('.conv')}.{leaf}"
        result[PREFIX + key] = tensor
    return result


def _with_saved(config: LoRAConfig, tensors: Mapping[str, Tensor]) -> LoRAConfig:
    """Return a config that names what the file holds besides the pairs: biases, and modules saved whole."""
    pairs, rest = split_pairs(tensors)
    saved = [key.removeprefix(PREFIX).rpartition(".")[::2] for key in rest if ".lora_" not in key]
    modules = list(dict.fromkeys(owner for owner, leaf in saved if leaf != "bias"))
    biases = [owner for owner, leaf in saved if leaf == "bias" and owner not in modules]
    bias = config.bias
    if biases and bias == "none":
        bias = "lora_only" if pairs.keys() >= set(biases) else "all"
    return config.copy(bias=bias, modules_to_save=[*(config.modules_to_save or ()), *modules] or None)


def _check_given(config: LoRAConfig, ranks: Mapping[str, int], path: str) -> None:
    """Raise ConfigError where what the caller set differs from what the file holds; defaults count as not set."""
    problems = [
        f"rank {r} is asked for {name}, the file has {ranks[name]}."
        for name in ranks
        if (r := config.rank_of(name)) != ranks[name] and (r != LoRAConfig.r or config.rank_pattern)
    ]
    if config.target_modules is not None and config.target_modules not in PRESETS:
        named = set(listed_modules(config, ranks))
        problems += [
            f"{name} is in the file, but target_modules do not name it." for name in ranks if name not in named
        ]
    if problems:
        raise ConfigError(f"{path}: {' '.join(problems[:4])} Leave r and target_modules out: the file says both.")
