"""New parts of a model: they train, are saved and come back with every adapter, or it is told that they do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    EncoderDecoderModel,
    PreTrainedModel,
)

from hf_lora import LoRAConfig, LoRAModel, add_lora

from .cases import move
from .tiny import CLOSE, IDS, tiny


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny("bert_mlm").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


class Tagger(nn.Module):
    """What people write: a pretrained encoder and new layers."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.body = AutoModel.from_pretrained(base, add_pooling_layer=False)
        self.scorer = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
        self.norm = nn.LayerNorm(2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.scorer(self.body(input_ids).last_hidden_state))


class InMemory(Tagger):
    """The same with an encoder that was never loaded."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        torch.manual_seed(5)
        self.body = BertModel(BertConfig.from_pretrained(base), add_pooling_layer=False)
        self.body.name_or_path = ""


class Towers(nn.Module):
    """Two encoders and a projection of each."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.towers = nn.ModuleList(AutoModel.from_pretrained(base, add_pooling_layer=False) for _ in range(2))
        self.maps = nn.ModuleList(nn.Linear(16, 4) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        pairs = zip(self.towers, self.maps, strict=True)
        return torch.cat([put(tower(input_ids).last_hidden_state) for tower, put in pairs], -1)


class Own(PreTrainedModel):
    """A class of one's own that loads its encoder by itself."""

    config_class = BertConfig

    def __init__(self, base: Path) -> None:
        super().__init__(BertConfig.from_pretrained(base))
        self.body = AutoModel.from_pretrained(base, add_pooling_layer=False)
        self.out = nn.Linear(16, 3)
        self.name_or_path = ""

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.out(self.body(input_ids).last_hidden_state)


class Headed(nn.Module):
    """A module around a model that has a new head itself."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.inner = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.inner(input_ids).logits


def _classifier(base: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)


CONFIG = LoRAConfig(r=2)
TASK = LoRAConfig(r=2, task_type="SEQ_CLS")


def _second(made: Callable[[Path], nn.Module], config: LoRAConfig) -> Callable[[Path], LoRAModel]:
    def make(base: Path) -> LoRAModel:
        model = LoRAModel.from_model(made(base), config, "first")
        model.add_adapter(config, "second")
        model.delete_adapter("first")
        return model

    return make


# How the model with a new part is made; what makes its base again; whether it is told that the part was taken for new.
NEW: dict[str, tuple[Callable[[Path], LoRAModel], Callable[[Path], nn.Module], bool]] = {
    "loaded by its class, without a task": (lambda b: LoRAModel.from_model(_classifier(b), CONFIG), _classifier, False),
    "a second adapter of a task": (_second(_classifier, TASK), _classifier, False),
    "a second adapter without a task": (_second(_classifier, CONFIG), _classifier, False),
    "layers beside an encoder": (lambda b: add_lora(Tagger(b), CONFIG), Tagger, True),
    "layers beside an encoder made in memory": (lambda b: add_lora(InMemory(b), CONFIG), InMemory, True),
    "a second adapter beside an encoder": (_second(Tagger, CONFIG), Tagger, True),
    "layers beside two encoders": (lambda b: add_lora(Towers(b), CONFIG), Towers, True),
    "layers of a class of one's own": (lambda b: LoRAModel.from_model(Own(b), CONFIG), Own, True),
    "a new head in a model inside": (lambda b: add_lora(Headed(b), CONFIG), Headed, False),
    "layers that are named": (
        lambda b: add_lora(Tagger(b), LoRAConfig(r=2, modules_to_save=["scorer", "norm"])), Tagger, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NEW)
@pytest.mark.filterwarnings("ignore:PEFT cannot open:UserWarning")
def test_new_parts_train_with_every_adapter_are_saved_and_come_back(
    case: str, checkpoint: Path, tmp_path: Path
) -> None:
    make, make_base, is_told = NEW[case]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.manual_seed(1)
        model = make(checkpoint)
    assert any("taken to be new" in str(w.message) for w in said) == is_told
    model.save_pretrained(tmp_path / "untouched")
    move(model, 3)
    model.eval().save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    base = make_base(checkpoint).eval()
    with torch.no_grad():
        before, want = _logits(base(input_ids=IDS)), _logits(model(input_ids=IDS))
        again = LoRAModel.from_pretrained(tmp_path / "adapter", base_model=base).eval()
        torch.testing.assert_close(_logits(again(input_ids=IDS)), want, **CLOSE)
    assert not torch.allclose(before, want, atol=1e-2)


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def test_new_cross_attention_of_a_decoder_is_trained_and_saved(checkpoint: Path) -> None:
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(checkpoint, checkpoint)
    adapted = LoRAModel.from_model(model, LoRAConfig(r=2, target_modules=["query"]))
    saved = [n for n, p in adapted.named_parameters() if p.requires_grad and "saved" in n]
    assert len([n for n in saved if "crossattention" in n]) == 2 * 10
    assert all("crossattention" in n or "encoder.pooler" in n for n in saved)


def test_parts_that_are_excluded_adapted_or_tied_are_not_taken_to_be_new(checkpoint: Path) -> None:
    """A module that the config adapts is a base of its own, however large."""
    tied = Tagger(checkpoint)
    tied.scorer, tied.norm = nn.Linear(16, 48, bias=False), nn.Identity()
    tied.scorer.weight = tied.body.embeddings.word_embeddings.weight
    for module, config in (
        (Tagger(checkpoint), LoRAConfig(r=2, exclude_modules=["scorer", "norm"])),
        (Tagger(checkpoint), LoRAConfig(r=2, target_modules=["query", "scorer.0"], exclude_modules=["norm"])),
        (tied, LoRAConfig(r=2)),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoRAConfig(r=2, target_modules=["0"])),
    ):
        assert add_lora(module, config).peft_config["default"].modules_to_save is None


def test_a_new_parameter_of_the_module_itself_is_told_to_stay_as_it_is(checkpoint: Path) -> None:
    module = Headed(checkpoint)
    module.temperature = nn.Parameter(torch.ones(()))
    with pytest.warns(UserWarning, match="temperature.* stay as they are"):
        model = add_lora(module, CONFIG)
    assert not model.temperature.requires_grad


@pytest.mark.parametrize(
    ("name", "told", "new"),
    [
        ("llama", {"attention_bias": True}, "q_proj.bias"),
        ("wav2vec2", {"mask_time_prob": 0.3}, "masked_spec_embed"),
    ],
)
def test_a_new_parameter_in_what_is_adapted_leaves_the_rest_to_adapt(
    name: str, told: dict[str, Any], new: str, tmp_path: Path
) -> None:
    tiny(name).save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match=f"{new}.* stay as they are"):
        model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2, init_lora_weights=False), **told)
    assert any("lora_A" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path / "out")
    with pytest.warns(UserWarning, match=f"start at random.*{new}"):
        again = LoRAModel.from_pretrained(tmp_path / "out").eval()
    if name != "wav2vec2":  # biases start at zero
        assert torch.equal(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


def test_an_adapter_without_the_new_head_is_told_wherever_it_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    bare = LoRAConfig(r=2, target_modules=["query"], exclude_modules=["pooler", "classifier"])
    LoRAModel.from_model(_classifier(checkpoint), bare).save_pretrained(tmp_path / "bare")
    model = LoRAModel.from_model(_classifier(checkpoint), CONFIG)
    with pytest.warns(UserWarning, match="start at random.*classifier"):
        model.load_adapter(tmp_path / "bare", "second")
    with pytest.warns(UserWarning, match="start at random.*classifier"):
        LoRAModel.from_pretrained(tmp_path / "bare", base_model=_classifier(checkpoint))
