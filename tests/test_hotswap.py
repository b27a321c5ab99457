"""Hot swapping: an adapter becomes a file's in place, all of it at once, and nothing is compiled anew."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterMismatchError, AdapterNameError, AdapterStateError, ArgumentError

from . import tiny
from .cases import FLOAT_COVER, adapted, config_of, data_of, example, move, network

GROUPED = ("conv1d-grouped", "conv2d-grouped", "conv3d-depthwise")  # whose ranks belong to the groups: no room
WITHOUT = ("vera", "vera-drawn", "sharelora", "adalora", "lora_xs")  # have no room: see the tests of each
ROOM = [(k, v, "prepared") for k, v in FLOAT_COVER if k not in GROUPED and v not in WITHOUT]
CASES = [*((k, v, "as it is") for k, v in FLOAT_COVER), *ROOM]
FILE = "adapter_model.safetensors"


def saved(folder: Path, kind: str, variant: str, **changes: object) -> Path:
    """Save another adapter of a case: other numbers, and by default another rank and scaling."""
    model = add_lora(
        network(kind, torch.float64),
        config_of(kind, variant, **{"r": 4, "lora_alpha": 5, **changes}),
        **data_of(kind, variant),
    )
    move(model, 8)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "variant", "how"), CASES, ids=["-".join(case) for case in CASES])
def test_a_swapped_adapter_computes_and_saves_what_the_file_is(
    kind: str, variant: str, how: str, tmp_path: Path
) -> None:
    prepared = how == "prepared"
    path, x = saved(tmp_path / "new", kind, variant), example(kind, torch.float64)
    model = adapted(kind, variant, torch.float64)
    model.load_adapter(path, "other")
    model.set_adapter("default")
    with torch.no_grad():
        before = model(x)
        with model.adapters_active("other"):
            want = model(x)
        tensors = {id(p) for p in model.parameters()}
        if prepared:
            model.prepare_hotswap(5)
            assert (model(x) - before).abs().max() < 1e-12
        model.load_adapter(path, hotswap=True)
        assert (model(x) - want).abs().max() < 1e-12
        assert {id(p) for p in model.parameters()} == tensors
        assert (want - before).abs().max() > 1e-3
    model.delete_adapter("other")
    model.save_pretrained(tmp_path / "again")
    assert model.peft_config["default"].r == 4
    again = add_lora(network(kind, torch.float64), config_of(kind, variant), **data_of(kind, variant))
    again.load_adapter(tmp_path / "again", "again")
    with torch.no_grad():
        assert (again(x) - want).abs().max() < 1e-12
    if not prepared:
        assert (tmp_path / "again" / FILE).read_bytes() == (path / FILE).read_bytes()


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "lora-bias"])
def test_training_leaves_the_room_of_an_adapter_at_zero(variant: str) -> None:
    if ("linear", variant) not in FLOAT_COVER:
        pytest.skip("no such variant")
    x, models = example("linear", torch.float64), [adapted("linear", variant, torch.float64) for _ in range(2)]
    models[1].prepare_hotswap(7)
    for model in models:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
        for _ in range(4):
            model.train()(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (models[0](x) - models[1](x)).abs().max() < 1e-10
    for key, tensor in models[0].get_adapter_state_dict().items():
        assert (models[1].get_adapter_state_dict()[key] - tensor).abs().max() < 1e-10, key


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(r: int = 4, alpha: int = 8, seed: int = 3, **changes: object) -> LoRAModel:
    """Return a tiny Llama with an adapter that matters."""
    settings = {"target_modules": "all-linear", **changes}
    model = LoRAModel.from_model(tiny.tiny("llama", noisy=True), LoRAConfig(r=r, lora_alpha=alpha, **settings))
    move(model, seed)
    return model


def files(folder: Path, **shapes: tuple[int, int]) -> dict[str, Path]:
    """Save an adapter for each name, of a rank and lora_alpha."""
    for seed, (name, (r, alpha)) in enumerate(shapes.items(), 10):
        llama(r, alpha, seed).save_pretrained(folder / name)
    return {name: folder / name for name in shapes}


SHAPES = {"same": (4, 8), "scaled": (4, 3), "wide": (8, 8), "narrow": (1, 5)}


@torch.no_grad()
def test_a_compiled_model_that_is_prepared_compiles_nothing_anew(tmp_path: Path) -> None:
    paths, batch, model = files(tmp_path, **SHAPES), tiny.inputs("llama"), llama()
    want = {}
    for name, path in paths.items():
        model.load_adapter(path, name)
        want[name] = model(**batch).logits
    model.delete_adapter([*paths])
    model.set_adapter("default")
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    model.prepare_hotswap(max_r=8)
    model.compile(backend=backend)
    model(**batch)
    once = len(graphs)
    for name, path in paths.items():
        model.load_adapter(path, hotswap=True)
        assert (model(**batch).logits - want[name]).abs().max() < 1e-5, name
    assert len(graphs) == once > 0
    got = model(**batch, adapter_names=["default", "__base__"]).logits  # by row: a graph of its own
    model.load_adapter(paths["wide"], hotswap=True)
    by_row = len(graphs)
    assert (model(**batch, adapter_names=["default", "__base__"]).logits[1] - got[1]).abs().max() < 1e-5
    assert len(graphs) == by_row


@torch.no_grad()
def test_every_call_in_other_threads_is_the_old_ones_or_the_new_ones(tmp_path: Path) -> None:
    paths, batch, model = files(tmp_path, a=(4, 8), b=(8, 4)), tiny.inputs("llama"), llama()
    asks: dict[str, Callable[[], torch.Tensor]] = {
        "call": lambda: model(**batch).logits,
        "rows": lambda: model(**batch, adapter_names=["default", "__base__"]).logits,
        "block": lambda: block(),
        "generate": lambda: model.generate(batch["input_ids"], max_new_tokens=4, do_sample=False),
    }

    def block() -> torch.Tensor:
        with model.adapters_active("default"):
            return model(**batch).logits

    want: dict[str, list[torch.Tensor]] = {name: [] for name in asks}
    for path in paths.values():
        model.load_adapter(path, hotswap=True)
        for name, ask in asks.items():
            want[name].append(ask())
    stop = threading.Event()

    @torch.no_grad()
    def run(name: str) -> list[set[int]]:
        found = []
        while not stop.is_set() or len(found) < 3:
            got = asks[name]()
            found.append({i for i, each in enumerate(want[name]) if torch.equal(got, each)})
        return found

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run, name) for name in asks]
        for _ in range(10):
            for path in paths.values():
                model.load_adapter(path, hotswap=True)
        stop.set()
        found = [run.result() for run in runs]
    assert all(each for run in found for each in run)
    assert {i for run in found for each in run for i in each} == {0, 1}


WRONG = {
    "other targets": ({"target_modules": ["q_proj"]}, AdapterMismatchError, "has no tensors in the file"),
    "more targets": ({"target_modules": [*LINEARS, "lm_head"]}, AdapterMismatchError, "lm_head.weight is in the file alone"),
    "another formula": ({"use_dora": True}, AdapterMismatchError, "is dora"),
    "a bias": ({"lora_bias": True}, AdapterMismatchError, "lora_bias"),
    "a larger rank": ({"r": 9}, AdapterMismatchError, "has rank 9 in the file, and there is room for 8"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
@torch.no_grad()
def test_what_cannot_be_swapped_is_named_and_nothing_changes(what: str, tmp_path: Path) -> None:
    changes, error, words = WRONG[what]
    llama(**{"r": 4, **changes}).save_pretrained(tmp_path)
    model, batch = llama(), tiny.inputs("llama")
    model.prepare_hotswap(8)
    before, tensors = model(**batch).logits, {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=words):
        model.load_adapter(tmp_path, hotswap=True)
    assert torch.equal(model(**batch).logits, before)
    assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())


def test_a_swap_at_the_wrong_time_is_refused(tmp_path: Path) -> None:
    model, batch = llama(), tiny.inputs("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterNameError, match="no adapter 'x'"):
        model.load_adapter(tmp_path, "x", hotswap=True)
    model.load_adapter(tmp_path, "frozen")
    with pytest.raises(ArgumentError, match="is_trainable"):
        model.load_adapter(tmp_path, "frozen", is_trainable=True, hotswap=True)
    model.set_adapter("default")
    with pytest.raises(AdapterStateError, match="eval"):
        model.train().load_adapter(tmp_path, hotswap=True)
    model.eval().merge_adapter()
    with pytest.raises(AdapterStateError, match="unmerge"):
        model.load_adapter(tmp_path, hotswap=True)
    model.unmerge_adapter()
    for max_r, error in ((0, ArgumentError), (2, AdapterStateError)):
        with pytest.raises(error, match="max_r"):
            model.prepare_hotswap(max_r)
    handle = model.model.register_forward_hook(lambda *_: model.load_adapter(tmp_path, hotswap=True))
    with pytest.raises(AdapterStateError, match="inside of a call"):
        model(**batch)
    handle.remove()
    loss = model(**batch, labels=batch["input_ids"]).loss
    model.load_adapter(tmp_path, hotswap=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()  # and not a gradient of both


def test_transformers_own_word_prepares_as_well(tmp_path: Path) -> None:
    model = llama(2)
    model.enable_peft_hotswap(target_rank=6)
    llama(6).save_pretrained(tmp_path)
    model.load_adapter(tmp_path, hotswap=True)
    assert model.peft_config["default"].r == 6


@torch.no_grad()
def test_a_swap_that_is_interrupted_in_its_midst_is_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, batch, model = files(tmp_path, new=(2, 3))["new"], tiny.inputs("llama"), llama()
    model.load_adapter(path, "want")
    model.set_adapter("default")
    own = {id(p): i for i, p in enumerate(p for n, p in model.named_parameters() if ".default." in n)}
    interrupted, copy = [], torch.Tensor.copy_

    def copied(tensor: torch.Tensor, *args: object) -> torch.Tensor:
        if own.get(id(tensor), 0) > 2 and not interrupted:
            interrupted.append(tensor)
            raise KeyboardInterrupt
        return copy(tensor, *args)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    with pytest.raises(KeyboardInterrupt):
        model.load_adapter(path, hotswap=True)
    assert interrupted
    assert torch.equal(*(model(**batch, adapter_names=[name] * 2).logits for name in ("default", "want")))
    assert model.peft_config["default"].r == 2


@pytest.mark.parametrize("loaded_in", [False, True], ids=["loaded as ever", "loaded in inference mode"])
@pytest.mark.parametrize("swapped_in", [False, True], ids=["swapped as ever", "swapped in inference mode"])
def test_inference_mode_swaps_and_leaves_tensors_that_train(loaded_in: bool, swapped_in: bool, tmp_path: Path) -> None:
    paths, batch, model = files(tmp_path, wide=(8, 8), narrow=(1, 5)), tiny.inputs("llama"), llama()
    with torch.inference_mode(loaded_in):
        model.load_adapter(paths["narrow"], "loaded")
    model.load_adapter(paths["wide"], "want")
    for name in ("default", "loaded"):
        model.set_adapter(name)
        with torch.inference_mode(swapped_in):
            model.load_adapter(paths["wide"], name, hotswap=True)
        got = model(**batch, labels=batch["input_ids"])
        with model.adapters_active("want"):
            assert torch.equal(got.logits, model(**batch).logits)
        if name == "default":
            got.loss.backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("again", [False, True], ids=["plain", "checkpointing"])
def test_no_gradient_of_the_old_ones_comes_to_the_new_ones(again: bool, tmp_path: Path) -> None:
    path, batch, model = files(tmp_path, new=(4, 8))["new"], tiny.inputs("llama"), llama()
    if again:
        tiny.checkpointed(model, use_reentrant=False)
    losses = [model.train()(**batch, labels=batch["input_ids"]).loss for _ in range(2)]
    losses[0].backward()
    model.eval().load_adapter(path, hotswap=True)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(AdapterStateError if again else RuntimeError, match="became another" if again else "inplace"):
        losses[1].backward()


def test_token_rows_that_another_active_adapter_has_are_refused(tmp_path: Path) -> None:
    for name, rows in {"own": [1, 2], "beside": [5, 9], "new": [9, 3]}.items():
        llama(trainable_token_indices=rows).save_pretrained(tmp_path / name)
    model = llama()
    for name in ("own", "beside"):
        model.load_adapter(tmp_path / name, name)
    model.set_adapter(["own", "beside"])
    with pytest.raises(AdapterMismatchError, match="embed_tokens.weight has no meaning beside 'beside'"):
        model.load_adapter(tmp_path / "new", "own", hotswap=True)
    model.set_adapter("own")
    model.load_adapter(tmp_path / "new", "own", hotswap=True)
    with pytest.raises(AdapterStateError, match="combination has no meaning"):
        model.set_adapter(["own", "beside"])


@torch.no_grad()
def test_room_and_a_folded_scaling_change_no_combination(tmp_path: Path) -> None:
    paths, models = files(tmp_path, x=(2, 3), y=(2, 8), new=(2, 5)), [llama(2), llama(2)]
    for model in models:
        for name in ("x", "y"):
            model.load_adapter(paths[name], name)
    models[1].prepare_hotswap(8)
    for model in models:
        model.load_adapter(paths["new"], "x", hotswap=True)
        for kind, settings in {"cat": {}, "svd": {}, "linear": {}, "ties": {"density": 0.5}}.items():
            model.add_weighted_adapter(["x", "y"], [0.7, -0.3], kind, kind, **settings)
    for kind in ("cat", "svd", "linear", "ties"):
        ours, theirs = (model.get_adapter_state_dict(kind) for model in models)
        assert all((ours[key] - theirs[key]).abs().max() < 1e-5 for key in theirs), kind
        assert models[1].peft_config[kind].r == models[0].peft_config[kind].r
