"""llama.cpp's adapters: one .gguf file of A and B under the names that its own tensors have.

    blk.N.attn_q.weight.lora_a (r, in)    blk.N.attn_q.weight.lora_b (out, r)    adapter.lora.alpha = r
    blk.N.ffn_gate_exps.weight.lora_a (experts, r, in)    token_embd.weight.lora_a (entries, r)

It multiplies by alpha / r of each tensor. In models of the Llama line it rotates neighbouring numbers of a head, where
Transformers rotates its halves: rows of a query and a key change places. As llama.cpp's convert_lora_to_gguf.py has it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import EngineError
from .factors import MERGES, Factors, package, refuse_tied


class Architecture(NamedTuple):
    """llama.cpp's name for a type of model. permuted: whether rows of its queries and keys change places."""

    name: str
    permuted: bool = False


ARCHITECTURES = {
    "gemma": Architecture("GEMMA"),
    "gemma2": Architecture("GEMMA2"),
    "gpt2": Architecture("GPT2"),
    "llama": Architecture("LLAMA", permuted=True),
    "mistral": Architecture("LLAMA", permuted=True),
    "mixtral": Architecture("LLAMA", permuted=True),
    "phi3": Architecture("PHI3"),
    "qwen2": Architecture("QWEN2"),
    "qwen3": Architecture("QWEN3"),
    "qwen3_moe": Architecture("QWEN3MOE"),
}
_EXPERT = re.compile(r"(?<=\.experts)\.(\d+)(?=\.)")


def write_gguf(path: Path, factors: Mapping[str, Factors], config: Any) -> None:
    """Write an adapter for llama.cpp into a new file, in float32.

    factors: by module, of one rank. config: the base's. Raises EngineError for a type of model or a layer whose name
    there nobody knows, MissingExtraError.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise EngineError(
            f"llama.cpp's names of a {config.model_type} are not known here ({', '.join(ARCHITECTURES)} are). Convert "
            "it for peft, which makes it plain, and run llama.cpp's convert_lora_to_gguf.py on that."
        )
    refuse_tied(factors, config, "llama.cpp")
    gguf = package("gguf")
    arch = getattr(gguf.MODEL_ARCH, architecture.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors: dict[str, Tensor] = {}
    for module, each in _stacked(factors).items():
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None:
            raise EngineError(f"llama.cpp has no place for factors of {module}; {MERGES}.")
        b = _permuted(each.b, module, config) if architecture.permuted else each.b
        tensors[f"{name}.lora_a"] = each.a.mT if each.embeds else each.a
        tensors[f"{name}.lora_b"] = b
    _write(gguf, path, gguf.MODEL_ARCH_NAMES[arch], tensors, max(each.b.shape[-1] for each in factors.values()))


def _stacked(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return factors with those of single experts as stacks, under the name without a number."""
    alone = {name: each for name, each in factors.items() if not _EXPERT.search(name)}
    groups: dict[str, dict[int, Factors]] = defaultdict(dict)
    for name, each in factors.items():
        if found := _EXPERT.search(name):
            groups[_EXPERT.sub("", name)][int(found[1])] = each
    for name, group in groups.items():
        ordered = [group[number] for number in sorted(group)]
        alone[name] = Factors(torch.stack([each.a for each in ordered]), torch.stack([each.b for each in ordered]))
    return alone


def _permuted(b: Tensor, module: str, config: Any) -> Tensor:
    """Return B with the rows of a query or a key in llama.cpp's order: i and i + d/2 of a head beside each other."""
    last, heads = module.rpartition(".")[2], config.num_attention_heads
    count = {"q_proj": heads, "k_proj": getattr(config, "num_key_value_heads", None) or heads}.get(last)
    return b if count is None else b.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)


def _write(gguf: Any, path: Path, architecture: str, tensors: Mapping[str, Tensor], rank: int) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.detach().float().contiguous().cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
