"""mlx-lm's adapters: a folder with its own adapter_config.json and A and B the other way round.

    adapters.safetensors    <module>.lora_a (in, r), <module>.lora_b (r, out);  y += scale (x lora_a) lora_b
    adapter_config.json     fine_tune_type, num_layers, lora_parameters: rank, scale, dropout, keys

Keys are names inside a layer (self_attn.q_proj) and whole names of what lies in none (model.embed_tokens).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import EngineError
from ...files.disk import write_new
from ...files.tensors import write_tensors
from .factors import MERGES, Factors, refuse_tied

# Types of models whose modules have the same names in mlx-lm.
TYPES = frozenset({"gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe", "mixtral"})
_LAYERS = "model.layers."
_ROOTS = ("model.", "lm_head")


def write_mlx(folder: Path, factors: Mapping[str, Factors], config: Any) -> None:
    """Write an adapter for mlx-lm into an empty folder.

    factors: by module, of one rank, the scaling inside. config: the base's. Raises EngineError for a type of model
    or layers whose names there nobody knows, and for experts.
    """
    if config.model_type not in TYPES:
        raise EngineError(
            f"mlx-lm's names of a {config.model_type} are not known here ({', '.join(sorted(TYPES))} are); {MERGES}."
        )
    refuse_tied(factors, config, "mlx-lm")
    if other := next((name for name in factors if not name.startswith(_ROOTS)), ""):
        raise EngineError(
            f"{other}: mlx-lm's models are causal ones, in which no layer has this name, and it passes over factors of "
            f"a layer that it does not find. Convert an adapter that was trained on a {config.model_type} with its "
            f"language modelling head, or {MERGES}."
        )
    if expert := next((name for name in factors if ".experts." in name), ""):
        raise EngineError(f"{expert}: mlx-lm keeps experts in layers of its own, which are not written here; {MERGES}.")
    keys = {name.removeprefix(_LAYERS).partition(".")[2] if name.startswith(_LAYERS) else name for name in factors}
    tensors = {}
    for name, each in factors.items():
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = each.a.mT, each.b.mT
    parameters = {"rank": max(each.b.shape[1] for each in factors.values()), "scale": 1.0, "dropout": 0.0}
    values = {
        "fine_tune_type": "lora",
        "num_layers": config.num_hidden_layers,
        "lora_parameters": {**parameters, "keys": sorted(keys)},
    }
    write_tensors(folder / "adapters.safetensors", tensors, {"format": "mlx"})
    write_new(folder / "adapter_config.json", json.dumps(values, indent=2).encode())
