"""The contestants: BERT layers, and what PEFT, loralib and hf_lora make of copies of them, all with the same A and B.

loralib 0.1.2 (microsoft/LoRA) has no conversion of its own: its layers are put in by hand, as its README says.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import loralib
import peft
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hf_lora import LoRAConfig, LoRAModel

SCALING = 2  # lora_alpha / r
FROZEN, FULL, OURS = "frozen", "full fine-tuning", "hf_lora"
PEFT_ARMS = ("PEFT", "PEFT, base dtype")

Factors = dict[tuple[str, str], Tensor]  # (layer, "A" or "B") -> the factor

# encoder.layer.0.output.dense in loralib, PEFT and here:
#     <layer>.lora_A      base_model.model.<layer>.lora_A.default.weight      <layer>.adapters.default.weight.lora_A
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+?)(?:\.adapters\..+)?\.lora_([AB])(?:\..+)?")


@dataclass(frozen=True)
class Settings:
    """What is adapted and how. targets: endings of layers' names."""

    r: int
    targets: tuple[str, ...]
    dropout: float

    def layers(self, base: nn.Module) -> dict[str, nn.Linear]:
        """Return the layers to adapt by their full names."""
        linears = {name: m for name, m in base.named_modules() if isinstance(m, nn.Linear)}
        return {name: linear for name, linear in linears.items() if name.rpartition(".")[2] in self.targets}


def bert_layers(layers: int, hidden: int, dropout: float, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return BERT layers with random weights, to be called with `inputs_embeds`.

    dropout: the base's own, of hidden states and attention alike.
    """
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=max(1, hidden // 64),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        vocab_size=8,
    )
    model: nn.Module = BertModel(config, add_pooling_layer=False)
    return model.to(device, dtype)


def draw_factors(base: nn.Module, settings: Settings) -> Factors:
    """Return random A and B for every layer to adapt, of the base's dtype; B is not zero."""
    factors: Factors = {}
    for name, linear in settings.layers(base).items():
        bound = linear.in_features**-0.5
        factors[name, "A"] = linear.weight.new_empty(settings.r, linear.in_features).uniform_(-bound, bound)
        factors[name, "B"] = linear.weight.new_empty(linear.out_features, settings.r).normal_(std=0.02)
    return factors


def lora_parameters(model: nn.Module) -> dict[tuple[str, str], nn.Parameter]:
    """Return a model's factors by (layer, "A" or "B"), whichever library holds them."""
    found = ((_FACTOR.fullmatch(name), parameter) for name, parameter in model.named_parameters())
    return {(match[1], match[2]): parameter for match, parameter in found if match}


def contestants(base: nn.Module, settings: Settings, factors: Factors) -> dict[str, nn.Module]:
    """Return a copy of the base for every library by arm, adapted, with these factors, in training mode."""
    return {name: _filled(make(copy.deepcopy(base), settings), factors).train() for name, make in ADAPTED.items()}


def references(base: nn.Module) -> dict[str, nn.Module]:
    """Return what the libraries are held against, by arm: nothing trains, everything trains."""
    frozen = copy.deepcopy(base).requires_grad_(False)
    return {FROZEN: frozen.train(), FULL: copy.deepcopy(base).requires_grad_(True).train()}


def _filled(model: nn.Module, factors: Factors) -> nn.Module:
    parameters = lora_parameters(model)
    if parameters.keys() != factors.keys():
        raise AssertionError(f"adapted other layers than asked: {sorted(parameters.keys() ^ factors.keys())}")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(factors[key])
    return model


def _fields(settings: Settings) -> dict[str, Any]:
    """Return the fields that PEFT's config and ours share."""
    return {
        "r": settings.r,
        "lora_alpha": SCALING * settings.r,
        "lora_dropout": settings.dropout,
        "target_modules": list(settings.targets),
    }


def _peft(model: nn.Module, settings: Settings) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(**_fields(settings)))


def _peft_in_base_dtype(model: nn.Module, settings: Settings) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(**_fields(settings)), autocast_adapter_dtype=False)


def _hf_lora(model: nn.Module, settings: Settings) -> nn.Module:
    return LoRAModel.from_model(model, LoRAConfig(**_fields(settings)))


def _loralib(model: nn.Module, settings: Settings) -> nn.Module:
    for name, linear in settings.layers(model).items():
        layer = loralib.Linear(
            linear.in_features,
            linear.out_features,
            settings.r,
            lora_alpha=SCALING * settings.r,
            lora_dropout=settings.dropout,
            merge_weights=False,
        )
        layer.to(linear.weight.device, linear.weight.dtype)
        layer.load_state_dict(linear.state_dict(), strict=False)
        model.set_submodule(name, cast(nn.Module, layer))
    loralib.mark_only_lora_as_trainable(model)
    return model


ADAPTED: Mapping[str, Callable[[nn.Module, Settings], nn.Module]] = {
    PEFT_ARMS[0]: _peft,
    PEFT_ARMS[1]: _peft_in_base_dtype,
    "loralib": _loralib,
    OURS: _hf_lora,
}
