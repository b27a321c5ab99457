"""What the inputs of a batch by row are made of: images that are a row's own or nobody's, rows that are not counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterStateError

from . import tiny
from .test_by_row import ROWS, four, of_family, picked

TEXT: dict[str, Any] = {**tiny.SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64}
SEEN = {name: size for name, size in tiny.SIZES.items() if name != "vocab_size"}
IMAGE = 47  # the token in whose place an image comes


def llava() -> Any:
    vision = CLIPVisionConfig(**SEEN, image_size=16, patch_size=8)
    text = LlamaConfig(**TEXT)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config)


def qwen() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {
        "depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "mlp_ratio": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE)
    return Qwen2VLForConditionalGeneration(config)


def tokens(places: int) -> torch.Tensor:
    """Return a text of twelve tokens, some of them in the place of an image."""
    return torch.tensor([[5, 6] + [IMAGE] * places + [7] * (10 - places)])


def pictures(*images: int) -> list[dict[str, Any]]:
    """Return for each row its tokens and so many images, of four places each."""
    drawn = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": tokens(4 * count),
            "pixel_values": torch.randn(count, 3, 16, 16, generator=drawn, dtype=torch.float64),
        }
        for count in images
    ]


def patches(*sizes: int) -> list[dict[str, Any]]:
    """Return for each row its tokens and an image of so many places, of four patches each."""
    drawn = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": tokens(size), "image_grid_thw": torch.tensor([[1, 2, 2 * size]]),
            "mm_token_type_ids": (tokens(size) == IMAGE).long(),
            "pixel_values": torch.randn(4 * size, 96, generator=drawn, dtype=torch.float64),
        }
        for size in sizes
    ]  # fmt: skip


Parts = list[dict[str, Any]]
MEDIA: dict[str, tuple[Callable[[], Any], Parts, Parts]] = {
    "images": (llava, pictures(1, 1), pictures(2, 0)),
    "several images": (llava, pictures(2, 2), pictures(1, 2)),
    "patches": (qwen, patches(4, 4), patches(2, 6)),
}


def adapted(make: Callable[[], Any], **targets: Any) -> LoRAModel:
    torch.manual_seed(0)
    base = make()
    tiny.scatter(base)
    config = LoRAConfig(r=2, init_lora_weights=False, **targets)
    model = LoRAModel.from_model(base.double().eval(), config, "a")
    model.add_adapter(config, "b")
    return model


def alone(model: LoRAModel, parts: Parts) -> torch.Tensor:
    logits = []
    for name, part in zip(("a", "b"), parts, strict=True):
        with model.adapters_active(name):
            logits.append(model(**{key: value for key, value in part.items() if len(value)}).logits)
    return torch.cat(logits)


def together(parts: Parts) -> dict[str, torch.Tensor]:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


@pytest.mark.parametrize("what", MEDIA)
@torch.no_grad()
def test_images_are_seen_by_the_adapter_of_their_row_or_refused_where_nobody_can_tell_whose_they_are(what: str) -> None:
    make, even, uneven = MEDIA[what]
    model = adapted(make, target_modules="all-linear", exclude_modules=["lm_head"])
    assert (model(**together(even), adapter_names=["a", "b"]).logits - alone(model, even)).abs().max() < 1e-10
    words = r"(vision_tower|visual).*whose cannot be told"
    with pytest.raises(AdapterStateError, match=words):
        model(**together(uneven), adapter_names=["a", "b"])
    with pytest.raises(AdapterStateError, match=words):
        model.generate(**together(uneven), adapter_names=["a", "b"], max_new_tokens=2)
    with pytest.raises(AdapterStateError, match=words), model.adapters_active(rows=["a", "b"]):
        model(**together(uneven))
    model(**together(uneven), adapter_names=["a", "a"])
    of_text = adapted(make, target_modules=r".*language_model.*(q|v)_proj")
    assert (of_text(**together(uneven), adapter_names=["a", "b"]).logits - alone(of_text, uneven)).abs().max() < 1e-10


@pytest.mark.parametrize("as_tuple", [False, True])
@torch.no_grad()
def test_a_model_that_compares_all_rows_is_refused_and_its_parts_are_not(as_tuple: bool) -> None:
    model, batch = of_family("clip"), four("clip")
    with pytest.raises(AdapterStateError, match="logits_per_image"):
        model(**batch, return_dict=not as_tuple, adapter_names=ROWS)
    with pytest.raises(AdapterStateError, match="vision_model"):
        model(input_ids=batch["input_ids"][:2], pixel_values=batch["pixel_values"], adapter_names=["a", "b"])
    assert model(**batch, adapter_names=["b"] * 4).logits_per_image.shape == (4, 4)

    def images() -> torch.Tensor:
        return tiny.floats(model.get_image_features(pixel_values=batch["pixel_values"]))[-1]

    with model.adapters_active(rows=ROWS):
        got = images()
    assert (got - picked(model, images)).abs().max() < 1e-10


def time_major() -> Any:
    """Return a model around torch's own attention, whose batches have their rows in the second dimension."""
    base = tiny.tiny("bert", "BertModel").double()
    base.encoder = torch.nn.Sequential(torch.nn.TransformerEncoderLayer(tiny.HIDDEN, 2, 32, dropout=0.0).double())
    return base


TURNED: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "the whole model": (lambda: tiny.tiny("xlnet").double(), "all-linear", None),
    "one layer's own code": (
        lambda: transformers.LongformerModel(transformers.LongformerConfig(**TEXT, attention_window=[4, 4])).double(),
        "attention", "output.dense",
    ),
    "an attention of torch's": (time_major, ["linear1"], None),
}  # fmt: skip


@pytest.mark.parametrize("what", TURNED)
@pytest.mark.parametrize("length", [4, 8])
@torch.no_grad()
def test_layers_that_get_time_before_rows_are_refused_where_both_sizes_fit(what: str, length: int) -> None:
    make, targets, straight = TURNED[what]
    ids = torch.arange(4, 4 + 4 * length).reshape(4, length)

    def called(targets: Any, compute: Callable[[LoRAModel], Any]) -> Any:
        torch.manual_seed(0)
        config = LoRAConfig(r=2, init_lora_weights=False, target_modules=targets)
        model = LoRAModel.from_model(make().eval(), config, "a")
        model.add_adapter(config, "b")
        return compute(model)

    def given(model: LoRAModel) -> torch.Tensor:  # to the adapted layers, in the order that they have them
        x = torch.randn(length, 4, tiny.HIDDEN, dtype=torch.float64)
        return model.encoder[0](x) if what == "an attention of torch's" else model(ids)[0]

    def by_row(model: LoRAModel) -> Any:
        with model.adapters_active(rows=ROWS[:1] * 2 + ["b"] * 2):
            return given(model)

    with pytest.raises(AdapterStateError, match="another dimension than the first"):
        called(targets, by_row)
    if straight is not None:
        assert called([straight], by_row).shape[:2] == (4, length)


@torch.no_grad()
def test_rows_are_counted_whatever_tells_their_number() -> None:
    model, ids = of_family("t5"), torch.arange(4, 24).reshape(4, 5)
    encoded = model.encoder(input_ids=ids)
    for given in ({"labels": ids}, {"decoder_input_ids": ids}):
        with pytest.raises(AdapterStateError, match="4 rows, with adapters named for 2"):
            model(encoder_outputs=encoded, adapter_names=["a", "b"], **given)
    with pytest.raises(AdapterStateError, match="4 rows, with adapters named for 2"):
        model.generate(encoder_outputs=encoded, adapter_names=["a", "b"], max_new_tokens=2)
    want = picked(model, lambda: model(encoder_outputs=encoded, labels=ids).logits)
    assert (model(encoder_outputs=encoded, labels=ids, adapter_names=ROWS).logits - want).abs().max() < 1e-10


@torch.no_grad()
def test_a_weight_may_be_a_number_of_numpy() -> None:
    model, batch = of_family("llama"), four("llama")
    got = model(**batch, adapter_names=[{"a": np.float32(0.5)}] * 4).logits
    assert torch.equal(got, model(**batch, adapter_names=[{"a": 0.5}] * 4).logits)
