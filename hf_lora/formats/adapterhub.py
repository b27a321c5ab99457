"""AdapterHub's folder, which the `adapters` library (once adapter-transformers) writes for a LoRA.

    adapter_config.json     {"config": {"architecture": "lora", "r", "alpha", "attn_matrices", ...}, "model_name", ...}
    adapter.safetensors     or pytorch_adapter.bin: <layer>.loras.<adapter's name>.lora_A (r, in) and lora_B (out, r)
    head_config.json        with model_head.safetensors or pytorch_model_head.bin: the head that was saved along

Of a layer that holds query, key and value in one (GPT-2's c_attn), attn_matrices say which of the three are adapted;
formats/pairs.py has the shapes. Poth et al. 2023, arXiv:2311.11077.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterFileError, ConfigError, some
from ..files.shards import find_weights
from ..files.sources import Source
from ..files.strict_json import read_json
from ..variants.adapter import own_tensor
from ..variants.table import FORMULAS
from .contents import Candidate, Contents
from .keys import PREFIX
from .pairs import fit_pairs, fit_targets

WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_CONFIG = "head_config.json"
HEAD_WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")
# The values with which an adapter is a plain LoRA, and why any other is something else.
PLAIN: dict[str, tuple[Any, str]] = {
    "composition_mode": ("add", "it scales outputs as (IA)3 does and is no LoRA"),
    "use_gating": (False, "its gate weighs the adapter by the input, which no pair of factors can"),
    **{row.switch: (False, row.elsewhere["AdapterHub"]) for row in FORMULAS.values() if "AdapterHub" in row.elsewhere},
    "vera_d": (None, "it is a VeRA, whose factors are shared and frozen"),
    "vera_b": (None, "it is a VeRA, whose factors are shared and frozen"),
}
# What says how the adapter was made; the tensors themselves show where it is.
INERT = ("architecture", "dtype", "init_weights", "init_weights_seed", "intermediate_lora", "leave_out", "output_lora")
READ = ("alpha", "attn_matrices", "dropout", "r", "selfattn_lora")
HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "ImageClassification", "MultipleChoice")
_UNSCALED = re.compile(r"adapters\.(0|1\.0)\.")  # versions of `adapters`, not of adapter-transformers
_KEY = re.compile(r"(.+)\.loras\.([^.]+)\.lora_([AB])")


def read_adapterhub(candidate: Candidate) -> Contents | None:
    """Read an AdapterHub LoRA; None where adapter_config.json is not AdapterHub's.

    Raises ConfigError for another of its methods, AdapterFileError where the weights are not what the config says.
    """
    values, source, where = candidate.values, candidate.source, candidate.where
    if values is None or "peft_type" in values or not isinstance(values.get("config"), Mapping):
        return None
    if not {"hidden_size", "model_class", "model_type"} & values.keys():
        return None
    config, enabled = _config(values, where)
    path = find_weights(source, WEIGHTS)
    if path is None or path.suffix == ".json":
        raise AdapterFileError(f"{source.name} holds AdapterHub's config, but neither {' nor '.join(WEIGHTS)}.")
    tensors = _named(source.tensors(path)[0], str(path))
    head, head_class, labels = _head(source)
    if head_class:
        config = config.copy(auto_mapping={"base_model_class": head_class, "parent_library": "transformers"})

    def fit(modules: Mapping[str, nn.Module]) -> tuple[LoRAConfig, dict[str, Tensor]]:
        pairs = fit_pairs(config, tensors, modules, enabled)
        pairs.check_ranks(config, where)
        fitted = fit_targets(pairs.config, list(pairs.ranks), list(modules))
        kept = _fitting(source, head, head_class, modules)
        owners = list(dict.fromkeys(key.removeprefix(PREFIX).rpartition(".")[0] for key in kept))
        return fitted.copy(modules_to_save=owners or None), pairs.tensors | kept

    return Contents(source, config, tensors | head, {"id2label": labels}, fit)


def _config(values: Mapping[str, Any], where: str) -> tuple[LoRAConfig, list[bool]]:
    """Return the LoRAConfig, targets still to be found, and which of query, key and value a merged layer adapts."""
    given = values["config"]
    architecture = given.get("architecture")
    if architecture != "lora":
        found = repr(architecture) if architecture else "a bottleneck, which names no architecture"
        raise ConfigError(f"{where} is AdapterHub's, for the architecture {found}; hf_lora reads its 'lora'.")
    problems = [
        f"{key}={given[key]!r}: {why}." for key, (plain, why) in PLAIN.items() if given.get(key, plain) != plain
    ]
    problems += [
        f"unknown key {key}={value!r}; if it has no effect, delete it from the file."
        for key, value in given.items()
        if value and key not in (*PLAIN, *INERT, *READ)
    ]
    matrices = given.get("attn_matrices", ["q", "v"])
    if not isinstance(matrices, list) or not set(map(str, matrices)) <= {"q", "k", "v", "o"}:
        problems.append(f"attn_matrices={matrices!r}, but it lists some of 'q', 'k', 'v' and 'o'.")
    if problems:
        raise ConfigError(f"{where}: " + " ".join(problems))
    r, alpha = given.get("r", 8), given.get("alpha", 8)
    if _UNSCALED.match(str(values.get("version"))) and r != alpha:
        warnings.warn(
            f"{where}: the adapters library left alpha/r out before 1.1.0; with version {values['version']!r} the "
            f"scaling is 1, as the adapter was trained, not {alpha}/{r}.",
            stacklevel=2,
        )
        alpha = r
    base = values.get("model_name")
    own = {"r": r, "lora_alpha": alpha, "lora_dropout": given.get("dropout", 0.0), "target_modules": "auto"}
    own |= {"peft_type": "LORA", "base_model_name_or_path": base if isinstance(base, str) else None}
    return LoRAConfig.from_dict(own, where), [matrix in matrices for matrix in "qkv"]


def _named(raw: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return the tensors under PEFT's names. Raises AdapterFileError where they are not one LoRA's."""
    found = {key: _KEY.fullmatch(key) for key in raw}
    if odd := [key for key, match in found.items() if match is None]:
        raise AdapterFileError(f"{path} holds {len(odd)} tensors that are no lora_A or lora_B: {some(odd)}.")
    names = sorted({match[2] for match in found.values() if match})
    if len(names) != 1:
        raise AdapterFileError(f"{path} holds {len(names)} adapters ({some(names)}); one was expected.")
    return {f"{PREFIX}{match[1]}.lora_{match[3]}.weight": raw[key] for key, match in found.items() if match}


def _head(source: Source) -> tuple[dict[str, Tensor], str | None, dict[str, str]]:
    """Return a head's tensors under PEFT's names, its class and its labels; nothing where it is not Transformers' own.

    AdapterHub's own heads, of its AdapterModel classes, are left out with a UserWarning.
    """
    config_file = source.find(HEAD_CONFIG)
    path = find_weights(source, HEAD_WEIGHTS) if config_file is not None else None
    if config_file is None or path is None:
        return {}, None, {}
    values = read_json(config_file)
    named = values.get("model_class")
    if values.get("config") is not None or not isinstance(named, str) or not hasattr(transformers, named):
        _warn_of_head(source, f"it belongs to {named!r}, not to a class of Transformers")
        return {}, None, {}
    labels = values.get("label2id")
    labels = {str(v): str(k) for k, v in labels.items()} if isinstance(labels, Mapping) else {}
    return {PREFIX + key: tensor for key, tensor in source.tensors(path)[0].items()}, named, labels


def _fitting(
    source: Source, head: Mapping[str, Tensor], head_class: str | None, modules: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Return the part of a head that a model has and does not hold already; none, with a UserWarning, of any other."""
    # A language model's head is the base's own as a rule, tied to its embeddings; where it is not, it is left out too.
    kept = {}
    for key, tensor in head.items():
        owner, _, leaf = key.removeprefix(PREFIX).rpartition(".")
        own = own_tensor(modules[owner], leaf) if owner in modules else None
        if own is None:
            _warn_of_head(source, f"the model has no {owner}.{leaf}")
            return {}
        if own.is_meta or own.shape != tensor.shape or not torch.equal(own.cpu(), tensor.to(own.dtype)):
            kept[key] = tensor
    if kept and not (head_class or "").endswith(HEADS):
        _warn_of_head(source, f"it is a {head_class}'s, and other than the base's own")
        return {}
    return kept


def _warn_of_head(source: Source, reason: str) -> None:
    warnings.warn(
        f"the head that lies beside the adapter {source.name} is left out: {reason}. Its logits need a head; train or "
        "load one.",
        stacklevel=2,
    )
