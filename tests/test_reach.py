"""Presets leave out what a model computes and never takes: an adapter there would get no gradient."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel

from .peek import preset_targets

TEXT = {
    "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
PIXELS, IDS = torch.ones(1, 3, 16, 16), torch.tensor([[1, 63, 63, 63, 63, 5, 6, 7]])
WITH_IMAGE = {"pixel_values": PIXELS, "input_ids": IDS, "labels": IDS}


def _made(model: str, **settings: Any) -> nn.Module:
    cls = getattr(transformers, model)
    return cls(cls.config_class(**settings))


def _llava(name: str = "Llava", layer: Any = -2, **more: Any) -> nn.Module:
    text, vision = {"model_type": "llama", **TEXT}, {"model_type": "clip_vision_model", **VISION}
    tokens = {"image_token_index": 63, "image_token_id": 63, "projector_hidden_act": "gelu"}
    given = {"text_config": text, "vision_config": vision, "vision_feature_layer": layer, **tokens, **more}
    return _made(f"{name}ForConditionalGeneration", **given)


def _gemma3() -> nn.Module:
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 63, "boi_token_index": 62, "eoi_token_index": 61}
    return _made("Gemma3ForConditionalGeneration", text_config=TEXT, vision_config=VISION, **tokens)


def _siglip(cls: str) -> nn.Module:
    if cls == "SiglipVisionModel":
        return _made(cls, **VISION)
    return _made(cls, text_config={**TEXT, "projection_size": 32}, vision_config=VISION, num_labels=2)


HEAD, LAST = ".head.", ".layers.2."
# A model, its inputs, and what of its towers no target may be in.
UNREACHED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "Gemma 3 pools by itself": (_gemma3, {**WITH_IMAGE, "token_type_ids": (IDS == 63).long()}, HEAD),
    "SigLIP's classifier takes the mean": (
        lambda: _siglip("SiglipForImageClassification"), {"pixel_values": PIXELS, "labels": torch.tensor([1])}, HEAD
    ),
    "LLaVA takes the last layer but one": (_llava, WITH_IMAGE, LAST),
    "several layers": (lambda: _llava(layer=[0, -3, 2]), WITH_IMAGE, LAST),
    "VipLLaVA takes a tuple": (lambda: _llava("VipLlava", (-2, 1)), WITH_IMAGE, LAST),
}  # fmt: skip


@pytest.mark.parametrize("preset", ["auto", "all-linear"])
@pytest.mark.parametrize("case", UNREACHED)
def test_every_adapter_of_a_preset_gets_a_gradient(case: str, preset: Any) -> None:
    make, inputs, unreached = UNREACHED[case]
    model = LoRAModel.from_model(make(), LoRAConfig(r=2, target_modules=preset))
    model(**inputs).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert not any(unreached in name for name in trained)
    assert any("encoder.layers.1." in name for name in trained)


REACHED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a tower alone": (lambda: _siglip("SiglipVisionModel"), "head.attention"),
    "SigLIP compares what is pooled": (lambda: _siglip("SiglipModel"), "vision_model.head.attention"),
    "the last layer is taken": (lambda: _llava(layer=-1), "model.vision_tower.encoder.layers.2.self_attn.q_proj"),
    "one of several is the last": (
        lambda: _llava(layer=[1, -1]),
        "model.vision_tower.encoder.layers.2.self_attn.q_proj",
    ),
}


@pytest.mark.parametrize("case", REACHED)
def test_what_is_taken_keeps_its_adapter(case: str) -> None:
    make, target = REACHED[case]
    assert target in preset_targets(make(), "auto")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x) + self.value(x)


class Quantizer(nn.Module):
    """Takes the nearest code."""


class Tower(nn.Module):
    """A model inside another one."""

    base_model_prefix = "tower"

    def __init__(self, codes: bool = False) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=2)
        self.layers, self.pooler = nn.ModuleList([Attention(), Attention()]), Attention()
        self.predictor = Attention()
        if codes:
            self.quantizer = Quantizer()

    def forward(self, x: Tensor, skip_predictor: bool = False) -> Any:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        last = states[-1] if skip_predictor else self.predictor(states[-1])
        return SimpleNamespace(last_hidden_state=last, hidden_states=states, pooler_output=self.pooler(last))


class Holder(nn.Module):
    def __init__(self, codes: bool = False) -> None:
        super().__init__()
        self.tower, self.own = Tower(codes), Attention()
        self.config = SimpleNamespace(level=1, pairs=[(0, 1)])


class Last(Holder):
    def forward(self, x: Tensor) -> Any:
        return self.own(self.tower(x).last_hidden_state)


class Named(Holder):
    def _features(self, x: Tensor) -> Any:
        return self.tower(x)

    def forward(self, x: Tensor) -> Any:
        output = self._features(x)
        output.pooler_output = self.own(output.last_hidden_state)
        return output


class ByNumber(Holder):
    def forward(self, x: Tensor) -> Any:
        return self.own(self.tower(x).hidden_states[-2])


class ByConfig(Holder):
    def forward(self, x: Tensor) -> Any:
        return self.own(self.tower(x).hidden_states[self.config.level])


class ByPairs(Holder):
    def forward(self, x: Tensor) -> Any:
        output = self.tower(x)
        return [self.own(output.hidden_states[first]) for first, _ in self.config.pairs]


class Asking(Holder):
    def forward(self, x: Tensor, level: int = 1) -> Any:
        output = self.tower(x)
        if level == -1:
            return self.own(output.last_hidden_state)
        return self.own(output.hidden_states[level])


class Skipping(Holder):
    def forward(self, x: Tensor) -> Any:
        return self.own(self.tower(x, skip_predictor=True)[0])


class Pooling(Holder):
    def forward(self, x: Tensor) -> Any:
        output = self.tower(x)
        return self.own(output.pooler_output) + output.last_hidden_state


class HandingOn(Holder):
    def forward(self, x: Tensor) -> Any:
        output = self.tower(x)
        return self.own(output.last_hidden_state), output


PARTS = ["tower.layers.0", "tower.layers.1", "tower.pooler", "tower.predictor", "own"]
# A holder, and the parts of it that its presets leave out.
HOLDERS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "at once": (Last, {"tower.pooler"}),
    "by a method, and replaced": (Named, {"tower.pooler"}),
    "a hidden state by its number": (ByNumber, {"tower.layers.1", "tower.pooler"}),
    "a hidden state of the config's": (ByConfig, {"tower.layers.1", "tower.pooler"}),
    "the last one where it is asked for": (Asking, {"tower.layers.1", "tower.pooler"}),
    "hidden states in a way that cannot be read": (ByPairs, {"tower.pooler"}),
    "what a call skips": (Skipping, {"tower.pooler", "tower.predictor"}),
    "what is pooled": (Pooling, set()),
    "what is handed on": (HandingOn, set()),
    "codes": (lambda: Last(codes=True), {*PARTS} - {"own"}),
    "codes and nothing else": (lambda: nn.ModuleDict({"tower": Tower(codes=True)}), {"own"}),
}


@pytest.mark.parametrize("case", HOLDERS)
def test_what_a_holder_takes_of_a_tower_is_read_in_its_source(case: str) -> None:
    make, left_out = HOLDERS[case]
    names = {name.rpartition(".")[0] for name in preset_targets(make(), "auto")}
    assert {*PARTS} - names == left_out
