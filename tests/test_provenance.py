"""Provenance: the base an adapter was trained on is noted in its file, and another base is refused."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterFileError, BaseMismatchError

from .peek import fp, provenance, read_notes
from .tiny import IDS, tiny

WEIGHTS = "adapter_model.safetensors"
GRIDS = {"f": torch.float32, "h": torch.float16, "b": torch.bfloat16}
pytestmark = pytest.mark.usefixtures("elsewhere")
CONFIG = LoRAConfig(r=2, target_modules=["c_attn", "c_fc"], init_lora_weights=False)


def _base(seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2) -> Any:
    return tiny("gpt2", seed=seed, n_layer=layers).to(dtype)


def _saved(directory: Path, base: nn.Module, config: LoRAConfig = CONFIG) -> Path:
    LoRAModel.from_model(base, config).save_pretrained(directory)
    return directory


def _load(directory: Path, base: nn.Module, **kwargs: Any) -> LoRAModel:
    return LoRAModel.from_pretrained(directory, base_model=base, **kwargs)


def _notes(directory: Path) -> dict[str, Any]:
    return read_notes(directory / WEIGHTS)


def _rewrite(directory: Path, base: object) -> None:
    metadata = {"format": "pt", "hf_lora": json.dumps({**_notes(directory), "base": base})}
    save_file(load_file(directory / WEIGHTS), directory / WEIGHTS, metadata=metadata)


def _note_of(model: Any) -> Mapping[str, Any]:
    return provenance.note_of(model, model._lora, "default")


# --- the fingerprint ----------------------------------------------------------------------------------------------


def _differ(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    found = fp.differ(fp.fingerprint(list(mine)), fp.fingerprint(list(theirs)))
    assert found is not None
    return found


# By the coarser grid of two sides: the relative change of 24 weights that is rounding, and the one that is not.
@pytest.mark.parametrize(("grids", "rounding", "change"), [("f", 1e-7, 1e-5), ("fh", 1e-4, 3e-3), ("fhb", 1e-3, 3e-2)])
def test_what_is_found_follows_from_the_change_and_the_coarser_grid(grids: str, rounding: float, change: float) -> None:
    weights = [torch.randn(64, 64) * 0.02 for _ in range(24)]
    for share in (rounding, change):
        changed = [w + share * 0.02 * torch.randn_like(w) for w in weights]
        for other in grids:
            pair = [w.to(GRIDS[grids[-1]]) for w in weights], [w.to(GRIDS[other]) for w in changed]
            assert _differ(*pair) == _differ(*pair[::-1]) == (share == change), (other, share)


def _small_weights(generator: torch.Generator) -> list[Tensor]:
    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    shapes = [(number(1, 40), number(1, 70)) for _ in range(number(1, 12))]
    scales = [10.0 ** number(-4, 2) for _ in shapes]
    return [torch.randn(shape, generator=generator) * scale for shape, scale in zip(shapes, scales, strict=True)]


ROUTES = [["f"], ["b"], ["h"], ["b", "f"], ["h", "f"], ["f", "b", "f"]]


def _through(weights: list[Tensor], route: list[str]) -> list[Tensor]:
    for letter in route:
        weights = [w.to(GRIDS[letter]) for w in weights]
    return weights


def test_of_200_bases_in_every_pair_of_dtypes_none_is_taken_for_another_and_200_changed_ones_all_are() -> None:
    generator = torch.Generator().manual_seed(1)
    false_alarms, missed = [], []
    for number in range(200):
        weights = _small_weights(generator)
        changed = [
            w + 0.3 * w.std(correction=0).nan_to_num() * torch.randn(w.shape, generator=generator) for w in weights
        ]
        changed = [c if c.numel() > 1 else w * 1.3 for c, w in zip(changed, weights, strict=True)]
        mine, theirs = ROUTES[number % 6], ROUTES[number // 6 % 6]
        if _differ(_through(weights, mine), _through(weights, theirs)):
            false_alarms.append((number, mine, theirs))
        if not _differ(_through(weights, mine), _through(changed, theirs)):
            missed.append((number, mine, theirs))
    assert false_alarms == []
    assert missed == []


def test_a_low_rank_change_is_found_though_it_lies_in_one_direction() -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        weight = torch.randn(64, 96)
        assert _differ([weight], [weight + 0.3 * torch.outer(torch.randn(64), torch.randn(96))])


def test_stacks_convolutions_vectors_and_layouts_are_read_as_they_are() -> None:
    weights = [torch.randn(s) for s in [(4, 6, 5), (8, 3, 2, 2), (3000, 2), (2, 5000), (7,), (1, 1)]]
    kept = [w.clone() for w in weights]
    assert not _differ(weights, [w.mT.contiguous().mT if w.ndim > 1 else w for w in weights])
    assert all(torch.equal(a, b) for a, b in zip(weights, kept, strict=True))
    for i, weight in enumerate(weights):
        weight.add_(weight.std(correction=0) + 1)
        assert _differ(weights, kept), i
        weight.copy_(kept[i])


def test_what_cannot_be_read_is_left_out_and_nothing_read_compares_to_nothing() -> None:
    weight = torch.randn(8, 8)
    half = fp.fingerprint([weight, None, torch.full((8, 8), torch.nan), torch.empty(0, 8), torch.tensor(1.0)])
    assert half.grids == "f...."
    assert fp.differ(half, fp.fingerprint([weight] * 5)) is False
    assert fp.differ(fp.fingerprint([None]), fp.fingerprint([weight])) is None
    assert fp.differ(half, fp.fingerprint([weight])) is None


def test_zero_weights_are_the_same_as_zero_weights_and_not_as_others() -> None:
    zero = torch.zeros(16, 16)
    assert not _differ([zero], [zero.half()])
    assert _differ([zero], [torch.randn(16, 16) * 0.02])


def test_a_fingerprint_written_and_read_again_is_the_same_and_the_signs_never_change() -> None:
    found = fp.fingerprint([torch.arange(4000.0).view(4, 1000), torch.arange(8).view(4, 2).bfloat16(), None])
    again = fp.decode(json.loads(json.dumps(fp.encode(found))))
    assert torch.equal(again.projections, found.projections)
    assert torch.equal(again.squares, found.squares.float().double())
    assert again.grids == found.grids == "fb."
    # files that are out there were written with these signs
    assert found.projections[0].tolist() == [-2222.0, 36750.0, -103654.0, 4462.0]


def _packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, {"data": 1, "grids": "f"}, {"data": "%", "grids": "f"}, {"data": "", "grids": "f"}, {"data": "é", "grids": ""},
        {"data": "AAAA" * 6, "grids": "fff"}, {"data": _packed(1, 1, 1, 1, 1), "grids": "x"}, {"data": _packed(1, 1, 1, 1, 1), "grids": 1},
        {"data": _packed(1, 1, 1, float("nan"), 1), "grids": "f"}, {"data": _packed(1, 1, 1, 1, -1), "grids": "f"},
    ],
)  # fmt: skip
def test_a_damaged_fingerprint_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match="no fingerprint"):
        fp.decode(value)


# --- loading ------------------------------------------------------------------------------------------------------


def test_an_adapter_is_refused_on_another_base_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    _saved(tmp_path, _base())
    other = _base(seed=1)
    kind, before, trains = type(other), copy.deepcopy(other.state_dict()), [p.requires_grad for p in other.parameters()]
    with pytest.raises(BaseMismatchError, match=r"other weights.*check_base=False"):
        _load(tmp_path, other)
    assert type(other) is kind
    assert [p.requires_grad for p in other.parameters()] == trains
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    assert not isinstance(_load(tmp_path, other, check_base=False).unload(), LoRAModel)
    model = LoRAModel.from_model(other, CONFIG)
    with pytest.raises(BaseMismatchError):
        model.load_adapter(tmp_path, "second")
    assert list(model.peft_config) == list(model._lora.records) == ["default"]
    model.load_adapter(tmp_path, "second", check_base=False)
    assert model.active_adapters() == ["second"]


def test_one_layer_of_another_base_is_enough(tmp_path: Path) -> None:
    _saved(tmp_path, _base(layers=12))
    other = _base(layers=12)
    nn.init.normal_(other.transformer.h[5].mlp.c_fc.weight, std=0.02)
    with pytest.raises(BaseMismatchError):
        _load(tmp_path, other)


@pytest.mark.parametrize("trained", GRIDS)
@pytest.mark.parametrize("loaded", GRIDS)
def test_the_same_base_in_another_dtype_is_the_same_base(trained: str, loaded: str, tmp_path: Path) -> None:
    _saved(tmp_path, _base(dtype=GRIDS[trained]))
    _load(tmp_path, _base(dtype=GRIDS[loaded]))
    tuned = _base(dtype=GRIDS[loaded])
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.02)
    with pytest.raises(BaseMismatchError):
        _load(tmp_path, tuned)


def test_other_adapters_merging_and_unloading_leave_the_base_the_same(tmp_path: Path) -> None:
    _saved(tmp_path, _base())
    model = LoRAModel.from_model(_base(), CONFIG.copy(init_lora_weights="pissa"), "other")
    model.load_adapter(tmp_path, "one")
    model.merge_adapter(["other"])
    model.unmerge_adapter()
    model.load_adapter(tmp_path, "two")
    model.delete_adapter(["one", "other"])
    _load(tmp_path, model.unload())


def test_a_merged_base_is_another_one_and_a_new_adapter_on_it_says_so(tmp_path: Path) -> None:
    _saved(tmp_path / "first", _base())
    merged = LoRAModel.from_model(_base(), CONFIG.copy(lora_alpha=64)).merge_and_unload()
    with pytest.raises(BaseMismatchError):
        _load(tmp_path / "first", merged)
    _saved(tmp_path / "second", merged)
    merged.unload()
    _load(tmp_path / "second", merged)
    with pytest.raises(BaseMismatchError):
        _load(tmp_path / "second", _base())


class Packed(nn.Linear):
    """A linear layer as quantising libraries make them: its numbers are integers."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, bias=False)
        self.scale = float(source.weight.detach().abs().max()) / 127
        self.weight = nn.Parameter((source.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def _quantised(model: Any) -> Any:
    """Return a model with its linear layers but the head packed, in place, as quantising libraries do."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name not in ("lm_head", "score"):
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, Packed(module))
    return model


def _other_norms() -> Any:
    model = tiny("llama")
    nn.init.normal_(model.model.layers[1].input_layernorm.weight)
    return model


SAME: dict[str, Callable[[], Any]] = {
    "the same": lambda: _quantised(tiny("llama")),
    "in float": lambda: tiny("llama"),
    "in half precision": lambda: tiny("llama").bfloat16(),
    "quantised and half": lambda: _quantised(tiny("llama").half()),
}
OTHER: dict[str, Callable[[], Any]] = {
    "another": lambda: _quantised(tiny("llama", seed=1)),
    "another in float": lambda: tiny("llama", seed=1),
    "another norm": lambda: _quantised(_other_norms()),
    "another norm in float": _other_norms,
}


@pytest.mark.parametrize(
    "settings", [{}, {"target_modules": "all-linear"}, {"modules_to_save": ["lm_head", "model.norm"]}]
)
@pytest.mark.parametrize("base", [*SAME, *OTHER])
def test_an_adapter_of_a_quantised_base_knows_it_by_what_stays_in_float(
    base: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    _saved(tmp_path / "once", _quantised(tiny("llama")), LoRAConfig(r=2, init_lora_weights=False, **settings))
    _load(tmp_path / "once", _quantised(tiny("llama"))).save_pretrained(tmp_path / "twice")
    for folder in ("once", "twice"):
        if base in SAME:
            _load(tmp_path / folder, SAME[base]())
        else:
            with pytest.raises(BaseMismatchError, match="other weights"):
                _load(tmp_path / folder, OTHER[base]())
            _load(tmp_path / folder, OTHER[base](), check_base=False)


def test_new_rows_and_a_new_head_on_a_quantised_base_do_not_make_it_another(tmp_path: Path) -> None:
    base = _quantised(tiny("llama"))
    base.resize_token_embeddings(52)
    _saved(tmp_path / "rows", base, LoRAConfig(r=2))
    other = _quantised(tiny("llama"))
    other.resize_token_embeddings(52)
    _load(tmp_path / "rows", other)
    config = LoRAConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False)
    settings = {"num_labels": 3, "pad_token_id": 0}
    _saved(tmp_path / "head", _quantised(tiny("llama", "LlamaForSequenceClassification", **settings)), config)
    model = tiny("llama", "LlamaForSequenceClassification", **settings)
    nn.init.normal_(model.score.weight)
    _load(tmp_path / "head", _quantised(model))


def test_weights_changed_after_the_adapter_was_added_are_what_it_was_trained_on(tmp_path: Path) -> None:
    model = LoRAModel.from_model(_base(seed=1), CONFIG)
    model.load_state_dict(_base().state_dict(), strict=False)
    model.save_pretrained(tmp_path)
    _load(tmp_path, _base())


def test_names_that_sort_otherwise_are_found_by_their_values_and_the_same_names_are_not() -> None:
    modules = {name: nn.Linear(8, 8) for name in ("a", "b", "c")}
    model = add_lora(nn.ModuleDict(modules), LoRAConfig(r=2, target_modules=["a", "b", "c"]))
    note = _note_of(model)
    net = model.unload()

    def check(**named: nn.Module) -> None:
        provenance.check(note, net, named, [(name, "weight") for name in named])

    check(x=modules["c"], y=modules["a"], z=modules["b"])
    check(x=nn.Linear(8, 8), **modules)  # others by number: nothing to compare with
    for others in ({"a": modules["b"], "b": modules["a"], "c": modules["c"]}, {**modules, "c": nn.Linear(8, 8)}):
        with pytest.raises(BaseMismatchError):
            check(**others)
    with pytest.raises(BaseMismatchError):
        check(x=modules["c"], y=modules["a"], z=nn.Linear(8, 8))


def test_raw_expert_parameters_are_looked_at(tmp_path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Parameter(torch.randn(4, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("eoi,bi->bo", self.stack, x)

    base = nn.Sequential(Experts())
    same = copy.deepcopy(base)
    _saved(tmp_path, base, LoRAConfig(r=2, target_parameters=["stack"]))
    _load(tmp_path, same)
    with pytest.raises(BaseMismatchError):
        _load(tmp_path, nn.Sequential(Experts()))


# --- what cannot be checked ---------------------------------------------------------------------------------------


def test_weights_that_cannot_be_read_are_not_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=provenance.__name__)
    _saved(tmp_path, _base())
    empty = LoRAModel.from_model(_base(seed=1).to("meta"), CONFIG)
    note = _note_of(empty)
    assert (note["class"], "fingerprint" in note) == ("GPT2LMHeadModel", False)
    _load(tmp_path, empty.unload())
    assert "not checked" in caplog.text
    packed, flat = nn.Linear(8, 8), nn.Linear(8, 8)
    packed.weight = nn.Parameter(torch.zeros(8, 4, dtype=torch.uint8), requires_grad=False)
    flat.weight = nn.Parameter(torch.ones(32))  # what FSDP1 leaves of a weight
    found = provenance.observe({"x": packed, "y": flat, "z": nn.Linear(8, 8)}, [(n, "weight") for n in "xyz"])
    assert found.grids == "..f"


def test_weights_sharded_after_the_adapter_came_are_known_from_before() -> None:
    model = LoRAModel.from_model(_base(), CONFIG)
    before = _note_of(model)
    model.to("meta")
    assert _note_of(model) == before


def test_an_adapter_of_peft_s_loads_as_before_and_claims_nothing_when_saved_again(tmp_path: Path) -> None:
    theirs = peft.get_peft_model(_base(), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    theirs.save_pretrained(tmp_path / "theirs")
    _load(tmp_path / "theirs", _base(seed=1)).save_pretrained(tmp_path / "again")
    assert "base" not in _notes(tmp_path / "again")
    trained = _load(tmp_path / "theirs", _base(seed=2), is_trainable=True)
    trained.save_pretrained(tmp_path / "trained")
    _load(tmp_path / "trained", _base(seed=2))
    with pytest.raises(BaseMismatchError):
        _load(tmp_path / "trained", _base())


# --- the notes ----------------------------------------------------------------------------------------------------


def test_a_loaded_adapter_saved_again_has_the_same_bytes_whatever_the_base_s_dtype(tmp_path: Path) -> None:
    _saved(tmp_path / "one", _base())
    for dtype in GRIDS.values():
        for trainable in (False, True):
            _load(tmp_path / "one", _base(dtype=dtype), is_trainable=trainable).save_pretrained(tmp_path / "two")
            assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()


def test_an_adapter_forced_onto_another_base_keeps_its_note_unless_it_trains_there(tmp_path: Path) -> None:
    _saved(tmp_path / "one", _base())
    _load(tmp_path / "one", _base(seed=1), check_base=False).save_pretrained(tmp_path / "kept")
    assert _notes(tmp_path / "kept")["base"] == _notes(tmp_path / "one")["base"]
    model = _load(tmp_path / "one", _base(seed=1), check_base=False, is_trainable=True)
    model.save_pretrained(tmp_path / "moved")
    _load(tmp_path / "moved", _base(seed=1))


def test_copies_and_later_saves_write_the_same_notes(tmp_path: Path) -> None:
    fresh = LoRAModel.from_model(_base(), CONFIG)
    fresh.save_pretrained(tmp_path / "one")
    loaded = _load(tmp_path / "one", _base())
    assert _notes(tmp_path / "one")["tensors"] == 8
    for i, twin in enumerate((fresh, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)))):
        twin.save_pretrained(tmp_path / str(i))
        assert _notes(tmp_path / str(i)) == _notes(tmp_path / "one")


@pytest.mark.parametrize(
    "damage", [["x"], "x", {"id": "a/b"}, {"format": "1"}, {"format": 1, "fingerprint": {"data": "%"}}]
)
def test_a_damaged_note_of_ours_is_an_error_that_check_base_passes_by(damage: Any, tmp_path: Path) -> None:
    _saved(tmp_path, _base())
    _rewrite(tmp_path, damage)
    with pytest.raises(AdapterFileError, match="check_base=False"):
        _load(tmp_path, _base())
    _load(tmp_path, _base(), check_base=False).save_pretrained(tmp_path / "again")


def test_a_note_of_a_later_format_is_left_alone_and_kept(tmp_path: Path) -> None:
    _saved(tmp_path, _base())
    later = {"format": 2, "fingerprint": ["something else"]}
    _rewrite(tmp_path, later)
    _load(tmp_path, _base(seed=1)).save_pretrained(tmp_path / "again")
    assert _notes(tmp_path / "again")["base"] == later


def test_a_local_path_is_never_noted_and_a_hub_id_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _base().save_pretrained(tmp_path / "secret-place")
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "secret-place"), "secret-place", "./secret-place"):
        LoRAModel.from_pretrained(name, CONFIG).save_pretrained("out")
        assert "secret" not in str(_notes(tmp_path / "out"))
    base = _base()
    base.name_or_path = "someone/base"
    _saved(tmp_path / "hub", base, CONFIG.copy(revision="v2"))
    want = {"id": "someone/base", "revision": "v2", "class": "GPT2LMHeadModel", "model_type": "gpt2"}
    assert want.items() <= _notes(tmp_path / "hub")["base"].items()


def test_the_notes_of_a_gpt2_of_twelve_layers_are_small(tmp_path: Path) -> None:
    _saved(tmp_path, _base(layers=12), LoRAConfig(r=1, target_modules=["c_attn", "c_fc", "attn.c_proj", "mlp.c_proj"]))
    assert len(json.dumps(_notes(tmp_path))) < 1664


# --- what an adapter took out of the base at birth ------------------------------------------------------------------


def _resumed(directory: Path, base: nn.Module) -> LoRAModel:
    model = LoRAModel.from_model(base, CONFIG.copy(**json.loads((directory / "start.json").read_text())))
    model.load_weights(directory)
    return model


def _beside(directory: Path, base: nn.Module) -> LoRAModel:
    model = LoRAModel.from_model(base, CONFIG, "other")
    model.load_adapter(directory, "again")
    return model


COME_BACK = {"loaded": _load, "beside another": _beside, "resumed": _resumed}


@pytest.mark.parametrize("back", COME_BACK.values(), ids=COME_BACK)
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_0", "pissa_niter_2", "pissa_niter_016"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_drawn_start_comes_back_to_the_same_bits_whatever_is_drawn_meanwhile(
    back: Any, start: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = CONFIG.copy(init_lora_weights=start)
    model = LoRAModel.from_model(_base(dtype=dtype), config)
    _train(model)
    model.save_pretrained(tmp_path)
    (tmp_path / "start.json").write_text(json.dumps({"init_lora_weights": start}))
    base = _base(dtype=dtype)
    torch.manual_seed(777)
    loaded = back(tmp_path, base)
    assert torch.equal(loaded.eval()(IDS).logits, model.eval()(IDS).logits)


def test_a_drawn_start_leaves_the_random_state_alone() -> None:
    base, state = _base(), torch.get_rng_state()
    LoRAModel.from_model(base, CONFIG.copy(init_lora_weights="pissa_niter_2"))
    assert torch.equal(torch.get_rng_state(), state)


def _train(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.2)


# A randomised SVD is off; of all of the matrix's rank it is the matrix, however it was drawn.
@pytest.mark.parametrize(
    ("start", "r", "refused"), [("pissa_niter_1", 2, True), ("pissa_niter_1", 16, False), ("pissa", 2, False)]
)
def test_a_start_whose_random_numbers_nobody_knows_is_refused_where_they_matter(
    start: str, r: int, refused: bool, tmp_path: Path
) -> None:
    _saved(tmp_path, _base(), CONFIG.copy(init_lora_weights=start, r=r))
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, metadata={"format": "pt"})  # as PEFT writes it
    if refused:
        with pytest.raises(BaseMismatchError, match="c_attn: .*random.*path_initial_model_for_weight_conversion"):
            _load(tmp_path, _base())
    _load(tmp_path, _base(), check_base=not refused)


@pytest.mark.parametrize("way", ["from_model", "after a save"])
def test_an_adapter_on_what_others_were_merged_into_is_told_that_its_base_is_in_no_file(
    way: str, tmp_path: Path
) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    first = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2, target_modules=["up_proj"]))
    merged = first.merge_and_unload()
    if way == "after a save":
        merged.save_pretrained(tmp_path / "merged")
        LoRAModel.from_pretrained(tmp_path / "merged", LoRAConfig(r=2))
        return
    with pytest.warns(UserWarning, match="merged into this model .* Save the merged model"):
        LoRAModel.from_model(merged, LoRAConfig(r=2))
