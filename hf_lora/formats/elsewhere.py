"""What PEFT, which reads the same files, makes of an adapter: whether it can open it, and computes the same.

Seen in PEFT 0.21.2. What it refuses when an adapter is made is refused here as well (`targets/misfits.py`); here is
what it takes first and then cannot do.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..config.lora_config import LoRAConfig
from ..layers.layer import LoRALayer, base_modules
from ..layers.specialising import base_of
from ..targets.misfits import is_part_of_peft
from ..targets.names import input_table, is_inside, saved_modules
from ..variants.adapter import Adapter, own_tensor

# Types of models, and the layers in them that PEFT takes no low-rank adapters on.
_MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}), frozenset({"conv1d", "out_proj"})

# Types of models whose experts were layers once: there PEFT takes a layer of these names for the experts' parameters.
_FUSED = frozenset({
    "afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe",
    "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum",
    "olmoe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker", "solar_open",
}), frozenset({"down_proj", "gate", "gate_proj", "up_proj"})  # fmt: skip


def refused_by_type(model_type: str | None, modules: Iterable[str]) -> str:
    """Return why PEFT takes no low-rank adapters on layers of a type of model, "" where it does."""
    for (types, words), reason in (
        (_MAMBA, "a layer of a Mamba model's that it takes no adapters on"),
        (_FUSED, "a layer whose name it takes for the experts' parameters, which this type of model has fused"),
    ):
        found = next((name for name in modules if name.rpartition(".")[2] in words), "")
        if model_type in types and found:
            return f"{found} is {reason}"
    return ""


def no_peft(model: Any, name: str, config: LoRAConfig) -> str:
    """Return why PEFT cannot open the file of an adapter, "" where it can."""
    model_type, adapted = getattr(getattr(model, "config", None), "model_type", None), [*model._lora.carried(name)]
    weights = [m for m, _, _, a in adapted if a.low_rank and a.parameter == "weight"]
    if reason := refused_by_type(model_type, weights):
        return reason
    parts = [ending for ending in config.modules_to_save or () if is_part_of_peft(ending)]
    if parts and any(each.adapter.low_rank for each in adapted):
        return f"modules_to_save={parts[0]!r} also ends the name of a module in PEFT's own layers; rename the module"
    table, rows, names = input_table(model), config.trainable_token_indices or (), dict(base_modules(model))
    for ending in config.modules_to_save or ():
        found = [n for n in saved_modules([ending], names) if any(True for _ in names[n].parameters())]
        if inner := [n for n in found if any(n != outer and is_inside(n, outer) for outer in found)]:
            return f"modules_to_save={ending!r} also names {inner[0]} inside of another; rename one of them"
    tables = [m for m, _, _, a in adapted if a.row.of_rows]
    for ending in rows if isinstance(rows, Mapping) else [n for n in tables if names[n] is table]:
        if more := [m for m in saved_modules([ending], names) if m not in tables]:
            return f"trainable_token_indices={ending!r} also ends {more[0]} there; rename one of them"
    if isinstance(table, LoRALayer) and any(a.row.of_rows for a in table.carried(name).values()):
        weight = own_tensor(table, "weight")
        if tied := [m for m, layer, _, a in adapted if a.row.whole and own_tensor(layer, a.parameter) is weight]:
            return f"{tied[0]} is saved whole and tied to a table of which rows train, which PEFT ties again"
    return ""


def differs_in_peft(model: Any, name: str) -> str:
    """Return why PEFT computes something else with an adapter, "" where it computes the same."""
    found = [(m, layer, a) for m, layer, _, a in model._lora.carried(name)]
    tables = [(m, layer) for m, layer, a in found if a.row.of_rows]
    owners = {id(a) for _, _, a in found if a.row.of_rows}
    if len(owners) < len(tables) and input_table(model) not in [layer for _, layer in tables]:
        return f"{tables[0][0]} is tied in a way that PEFT does not know, so that rows train in one place only"
    return next(filter(None, (_difference(model, *each) for each in found)), "")


def _difference(model: Any, module: str, layer: LoRALayer, adapter: Adapter) -> str:
    owner, own = model.get_submodule(module.rpartition(".")[0]), base_of(type(layer))
    if adapter.low_rank and any(isinstance(each, nn.MultiheadAttention) for each in (layer, owner)):
        return f"{module} is of an nn.MultiheadAttention, whose output projection it updates twice or not at all"
    if adapter.low_rank and issubclass(own, nn.ParameterDict | nn.ParameterList):
        return f"{module} is a {own.__name__}, out of which no parameter can be taken there"
    if adapter.row.of_rows and issubclass(own, nn.Linear) and layer.bias is not None:
        return f"it leaves out the bias of {module}, of which rows train"
    scales = getattr(adapter, "factor", 1.0) != 1.0
    if adapter.row.of_rows:
        scales = issubclass(own, nn.Embedding) and own.forward is not nn.Embedding.forward
    return f"{module} computes in a way of its own" if scales and not hasattr(layer, "embed_scale") else ""
