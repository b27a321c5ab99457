"""Transformers' pipelines of a LoRAModel: each item is answered by its own adapter, however batches are made."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    CLIPImageProcessor,
    TextClassificationPipeline,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    pipeline,
)

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterNameError, AdapterStateError, ArgumentError

from .tiny import SIZES, tiny
from .trainings import tokenizer

WORDS = ("the", "cat", "dog", "sat", "on", "a", "mat", "is", "good", "bad", "This", "example", "photo", "of", ".")
TEXTS = ["the cat sat", "a dog", "the mat is good on the mat", "bad", "the dog is good ."]
NAMES = ["a", "b", "__base__", "b", "a"]
OTHERS = ["b", "__base__", "a", "a", "b"]
CROSSED = ("zero-shot-image-classification",)  # each image meets all labels: the labels' rows are no item's


class Items(Dataset):
    """A dataset that is not a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset):
    """A dataset of which nobody knows how long it is."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def words() -> Any:
    made = tokenizer(*WORDS)
    made.model_max_length = 32
    made.add_special_tokens({"mask_token": "[MASK]"})
    return made


def windows() -> Any:
    """Return a tokenizer that cuts long texts."""
    made = words()
    made.model_max_length = 4
    return made


def picture_of(processor: type, name: str) -> dict[str, Any]:
    size: Any = {"height": 16, "width": 16}
    return {name: processor(size=size, crop_size=size)}


def images() -> list[Any]:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def sounds() -> list[Any]:
    draw = np.random.default_rng(0)
    return [draw.standard_normal(n).astype(np.float32) for n in (3000, 800, 1600, 2500, 700)]


def wav2vec2() -> dict[str, Any]:
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=1000, return_attention_mask=True)
    return {"tokenizer": words(), "feature_extractor": extractor, "chunk_length_s": 1.0, "stride_length_s": 0.1}


def whisper() -> dict[str, Any]:
    extractor = WhisperFeatureExtractor(feature_size=8, hop_length=800, chunk_length=1, n_fft=1600)
    made = words()
    made._decode_asr = lambda found, **_: (" ".join(str(each["tokens"].tolist()) for each in found), {})
    return {"tokenizer": made, "feature_extractor": extractor}


ENTAILS = {"label2id": {"entailment": 0, "neutral": 1, "no": 2}, "id2label": {0: "entailment", 1: "neutral", 2: "no"}}
SEEN = {"text_config": {**SIZES, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 2}}  # the last token
GENERATES = {"max_new_tokens": 6, "do_sample": False}
# task -> family, its class, its settings; what pipeline() gets besides; the items; what a call gets besides
CASES: dict[str, tuple[tuple[Any, ...], Callable[[], dict[str, Any]], Callable[[], list[Any]], dict[str, Any]]] = {
    "text-classification": (("bert",), lambda: {"tokenizer": words()}, lambda: TEXTS, {"top_k": None}),
    "text-generation": (("llama",), lambda: {"tokenizer": words()}, lambda: TEXTS, GENERATES),
    "token-classification": (
        ("bert", "BertForTokenClassification"), lambda: {"tokenizer": windows(), "stride": 1, "aggregation_strategy": "simple"},
        lambda: TEXTS, {},
    ),
    "fill-mask": (
        ("bert_mlm",), lambda: {"tokenizer": words()}, lambda: [f"{text} [MASK]" for text in TEXTS], {"top_k": 48},
    ),
    "feature-extraction": (("bert", "BertModel"), lambda: {"tokenizer": words()}, lambda: TEXTS, {}),
    "zero-shot-classification": (
        ("bert", None, ENTAILS), lambda: {"tokenizer": words()}, lambda: TEXTS, {"candidate_labels": ["good", "bad", "cat"]},
    ),
    "image-classification": (("vit",), lambda: picture_of(ViTImageProcessor, "image_processor"), images, {}),
    "image-feature-extraction": (
        ("vit", "ViTModel"), lambda: picture_of(ViTImageProcessor, "image_processor"), images, {},
    ),
    "automatic-speech-recognition": (("wav2vec2",), wav2vec2, sounds, {}),
    "whisper": (("whisper",), whisper, sounds, {"generate_kwargs": {"max_new_tokens": 4}}),
    "zero-shot-image-classification": (
        ("clip", None, SEEN), lambda: {**picture_of(CLIPImageProcessor, "image_processor"), "tokenizer": words()}, images,
        {"candidate_labels": ["cat", "dog", "mat", "good"]},
    ),
}  # fmt: skip
TASKS = {"whisper": "automatic-speech-recognition"}


def model_of(family: str, cls: str | None = None, settings: Mapping[str, Any] | None = None) -> LoRAModel:
    """Return a family's model with "a" on its attention and "b", of another rank, on every linear layer."""
    base = tiny(family, cls, noisy=True, **(settings or {})).double()
    model = LoRAModel.from_model(base, LoRAConfig(r=2, init_lora_weights=False, lora_alpha=16), "a")
    model.add_adapter(LoRAConfig(r=3, target_modules="all-linear", init_lora_weights=False, lora_alpha=16), "b")
    return model.eval()


def pipe_of(case: str) -> tuple[Any, list[Any], dict[str, Any]]:
    model, parts, items, settings = CASES[case]
    return pipeline(TASKS.get(case, case), model=model_of(*model), device="cpu", **parts()), items(), settings


def answers(pipe: Any, items: Any, names: Sequence[Any] | None = None, **settings: Any) -> list[Any]:
    return list(pipe(items, **settings) if names is None else pipe(items, adapter_names=names, **settings))


def picked(pipe: Any, items: Any, choices: Sequence[Sequence[str]], **settings: Any) -> list[list[Any]]:
    """Return of what each adapter gives for all items, in batches of the same size, the answers to its own."""
    whole = {}
    for name in {name for names in choices for name in names}:
        with pipe.model.adapters_disabled() if name == "__base__" else pipe.model.adapters_active(name):
            whole[name] = answers(pipe, items, **settings)
    return [[whole[name][i] for i, name in enumerate(names)] for names in choices]


def are_same(got: Any, want: Any) -> bool:
    """Return whether answers are the same up to float32's rounding, in which many pipelines give them."""
    if isinstance(want, Mapping):
        return got.keys() == want.keys() and are_same(list(got.values()), list(want.values()))
    if isinstance(want, list | tuple):
        return len(got) == len(want) and all(map(are_same, got, want))
    return abs(got - want) <= 1e-6 * (1 + abs(want)) if isinstance(want, float) else got == want


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_each_item_is_answered_by_its_adapter_whatever_the_batch(case: str, size: int) -> None:
    pipe, items, settings = pipe_of(case)
    settings = {**settings, "batch_size": size}
    if case in CROSSED and size > 1:
        with pytest.raises(AdapterStateError, match="batch_size=1"):
            answers(pipe, items, NAMES, **settings)
        return
    want, others = picked(pipe, items, [NAMES, OTHERS], **settings)
    assert are_same(answers(pipe, items, NAMES, **settings), want)
    assert not are_same(others, want)
    assert not pipe.model._lora.is_routed


SOURCES: dict[str, Callable[[list[Any]], Any]] = {
    "a dataset": Items, "a stream": Stream, "a generator": lambda items: (item for item in items),
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", ["text-classification", "token-classification"])
def test_items_keep_their_adapters_wherever_they_come_from(case: str, source: str, workers: int) -> None:
    pipe, items, settings = pipe_of(case)
    settings = {**settings, "batch_size": 2}
    (want,) = picked(pipe, items, [NAMES], **settings)
    assert are_same(answers(pipe, SOURCES[source](items), NAMES, num_workers=workers, **settings), want)


def test_one_item_has_one_entry_which_may_have_weights() -> None:
    pipe, items, _ = pipe_of("text-classification")
    ((want,),) = picked(pipe, items[:1], [["b"]])
    assert are_same(pipe(items[0], adapter_names=["b"]), [want])
    got = pipe(items[:2], adapter_names=[{"a": 1.0, "b": 0.0}, ["b"]], batch_size=2)
    assert [got] == picked(pipe, items[:2], [["a", "b"]], batch_size=2)
    assert are_same(pickle.loads(pickle.dumps(pipe))(items[0], adapter_names=["b"]), [want])


WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "too few": (TEXTS, ["a"] * 4, ArgumentError, "4 entries are given for 5 items"),
    "too many": (TEXTS, ["a"] * 6, ArgumentError, "6 entries are given for 5 items"),
    "two for one": (TEXTS[0], ["a", "b"], ArgumentError, "2 entries are given for 1 item"),
    "one name": (TEXTS, "a", ArgumentError, "an entry a row"),
    "unknown": (TEXTS, ["a", "a", "x", "b", "b"], AdapterNameError, "no adapter 'x'"),
}


@pytest.mark.parametrize("case", ["text-classification", "zero-shot-classification", "text-generation"])
@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_refused_before_anything_computes(case: str, what: str) -> None:
    pipe, _, settings = pipe_of(case)
    items, names, error, words = WRONG[what]
    pipe.model.register_forward_pre_hook(lambda *_: pytest.fail("it computes"))
    with pytest.raises(error, match=words):
        answers(pipe, items, names, **settings)


@pytest.mark.parametrize(("count", "words"), [(4, "4 entries are given, and more"), (6, "6 entries are given for 5")])
def test_a_stream_of_another_length_is_refused_when_it_ends(count: int, words: str) -> None:
    pipe, items, _ = pipe_of("text-classification")
    with pytest.raises(ArgumentError, match=words):
        answers(pipe, Stream(items), ["a"] * count)


def test_a_pipeline_made_by_its_class_before_the_model_had_adapters_answers_by_row() -> None:
    pipe = TextClassificationPipeline(model=tiny("bert", noisy=True).double(), tokenizer=words(), device="cpu")
    cls = type(pipe)
    before = pipe(TEXTS, top_k=None)
    config = LoRAConfig(r=2, init_lora_weights=False, lora_alpha=16)
    LoRAModel.from_model(pipe.model, config, "a").add_adapter(config, "b")
    pipe.model.eval()
    with pipe.model.adapters_disabled():
        assert are_same(pipe(TEXTS, top_k=None), before)
    assert type(pipe) is cls
    got = pipe(TEXTS, adapter_names=NAMES, top_k=None, batch_size=2)
    assert [got] == picked(pipe, TEXTS, [NAMES], top_k=None, batch_size=2)


def test_names_are_given_in_the_call_and_while_the_model_has_adapters() -> None:
    model = model_of("bert")
    with pytest.raises(ArgumentError, match="in the call"):
        pipeline("text-classification", model=model, tokenizer=words(), adapter_names=["a"])
    pipe = pipeline("text-classification", model=model, tokenizer=words(), device="cpu")
    assert len(pipe(TEXTS, adapter_names=NAMES)) == len(TEXTS)
    model.unload()
    with pytest.raises(AdapterStateError, match="no adapters any more"):
        pipe(TEXTS, adapter_names=NAMES)
    assert len(pipe(TEXTS)) == len(TEXTS)
