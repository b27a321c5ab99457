"""The cache of adapters: whoever is asked for answers, few are resident, and threads never see each other's loads."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLong
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from hf_lora import AdapterCache, LoRAConfig, LoRAModel
from hf_lora.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterNameError,
    AdapterStateError,
    ArgumentError,
    ConfigError,
)

from . import tiny
from .cases import move

NAMES = [f"a{i}" for i in range(8)]
BATCH = tiny.inputs("llama")


def llama(r: int = 2) -> LoRAModel:
    return LoRAModel.from_model(tiny.tiny("llama", noisy=True).double().eval(), LoRAConfig(r=r), "own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of adapters of several ranks, and one that trains a head too."""
    top = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        model = llama(1 + seed % 3)
        move(model, seed)
        model.save_pretrained(top / name, adapter_name="own")
    return top


def answers(model: LoRAModel, names: Sequence[str]) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCH, adapter_names=list(names)).logits


@pytest.fixture(scope="module")
def want(folder: Path) -> dict[str, torch.Tensor]:
    """Return what each adapter answers where it is loaded alone."""
    model, found = llama(), {}
    for name in NAMES:
        model.load_adapter(folder / name, name)
        found[name] = answers(model, [name, name])
    return {**found, "__base__": answers(model, ["__base__"] * 2)}


def cache_of(folder: Path, **limits: int) -> AdapterCache:
    cache = AdapterCache(llama(), **limits)
    for name in NAMES:
        cache.register(name, folder / name)
    return cache


def resident(cache: AdapterCache) -> list[str]:
    return [name for name in cache.model.peft_config if name != "own"]


def test_whoever_is_asked_for_answers_and_those_asked_for_last_stay(folder: Path, want: dict) -> None:
    cache = cache_of(folder, max_adapters=3)
    assert cache.info() == (8, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    for name in [*NAMES, *NAMES[-3:], *NAMES]:
        with cache.using(name):
            assert torch.equal(answers(cache.model, [name, name]), want[name])
            assert cache.info().pinned == 1
            assert len(resident(cache)) <= 3
    info = cache.info()
    assert resident(cache) == NAMES[-3:]
    assert (info.hits, info.misses, info.from_host, info.evictions) == (3, 16, 8, 13)
    sizes = {n: sum(t.nbytes for t in cache.model.get_adapter_state_dict(n).values()) for n in NAMES[-3:]}
    assert info.bytes == sum(sizes.values())
    assert info.pinned == 0
    assert cache.model.active_adapters() == ["own"]


def test_all_of_a_batch_are_pinned_whatever_shape_its_rows_have(folder: Path, want: dict) -> None:
    cache = cache_of(folder, max_adapters=3)
    for rows in (["a0", "a1"], ["a2", "__base__"], [{"a3": 1.0}, ["a4"]], ["__base__", "a0"]):
        with cache.using(rows):
            got = answers(cache.model, rows)
            for i, row in enumerate(rows):
                assert (got[i] - want[row if isinstance(row, str) else next(iter(row))][i]).abs().max() < 1e-10
            for name in NAMES[5:]:
                with cache.using(name):
                    pass
            assert torch.equal(answers(cache.model, rows), got)
    with pytest.raises(AdapterStateError, match="4 adapters of .* max_adapters=3"), cache.using(NAMES[:4]):
        pass
    assert cache.info().pinned == 0


def test_bytes_are_a_limit_on_the_device_and_in_cpu_memory(folder: Path, want: dict) -> None:
    sizes = {}
    for name in NAMES:
        whole = cache_of(folder)
        with whole.using(name):
            sizes[name] = whole.info().bytes
    most = 2 * max(sizes.values())
    cache = cache_of(folder, max_bytes=most, max_host_bytes=sizes["a0"])
    for name in NAMES * 2:
        with cache.using([name, "a0"]):
            assert torch.equal(answers(cache.model, [name, name]), want[name])
            info = cache.info()
            assert info.bytes == sum(sizes[each] for each in resident(cache)) <= most
            assert info.host_bytes <= sizes["a0"]
    with pytest.raises(AdapterStateError, match="max_bytes"), cache_of(folder, max_bytes=sizes["a0"]).using("a1"):
        pass


def test_threads_are_each_answered_by_their_own_and_room_is_never_passed(folder: Path, want: dict) -> None:
    cache = cache_of(folder, max_adapters=4, max_host_bytes=20_000)

    def ask(seed: int) -> int:
        choose, most = random.Random(seed), 0
        for _ in range(12):
            rows = choose.choices([*NAMES, "__base__"], [1 / (1 + i) for i in range(9)], k=2)
            with cache.using(rows):
                most = max(most, len(resident(cache)))
                got = answers(cache.model, rows)
            for i, row in enumerate(rows):
                assert (got[i] - want[row][i]).abs().max() < 1e-10
        return most

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(ask, range(4))) <= 4
    info = cache.info()
    assert info.pinned == 0
    assert info.hits > 0 < info.from_host < info.misses


def test_who_finds_no_room_waits_until_somebody_is_done(folder: Path, want: dict) -> None:
    cache, began = cache_of(folder, max_adapters=2), threading.Event()

    def ask() -> torch.Tensor:
        began.set()
        with cache.using("a2"):
            return answers(cache.model, ["a2", "a2"])

    with ThreadPoolExecutor(1) as pool:
        with cache.using(["a0", "a1"]):
            asked = pool.submit(ask)
            began.wait()
            with pytest.raises(TooLong):
                asked.result(0.05)
            assert resident(cache) == ["a0", "a1"]
        assert torch.equal(asked.result(30), want["a2"])
    assert resident(cache) == ["a1", "a2"]


def test_what_the_model_uses_besides_does_not_leave(folder: Path) -> None:
    cache = cache_of(folder, max_adapters=2)
    for name in ("a0", "a1"):
        with cache.using(name):
            pass
    cache.model.set_adapter("a0")
    for name in ("a2", "a3"):
        with cache.using(name):
            assert resident(cache) == ["a0", name]
    cache.model.set_adapter("own")
    cache.model.delete_adapter("a3")
    with cache.using("a3"):
        assert resident(cache) == ["a0", "a3"]


def test_what_cannot_be_is_refused_and_the_cache_goes_on(folder: Path, want: dict, tmp_path: Path) -> None:
    cache = cache_of(folder, max_adapters=2, max_host_bytes=0)
    shutil.copytree(folder / "a0", tmp_path / "gone")
    cache.register("gone", tmp_path / "gone")
    cache.register("never", tmp_path / "never")
    for name in ("gone", "a0", "a1"):
        with cache.using(name):
            pass
    shutil.rmtree(tmp_path / "gone")
    for name in ("gone", "never"):
        with pytest.raises(AdapterFileError), cache.using([name, "a1"]):
            pass
    for wrong in ("x", ["a0", "x"]):
        with pytest.raises(AdapterNameError, match="'x' is registered; there are 10"):
            cache.acquire(wrong)
    with pytest.raises(AdapterNameError, match="'a0' is registered already"):
        cache.register("a0", folder)
    with cache.using(["own", "a0"]):  # what the model has besides is there anyway
        assert cache.info().pinned == 1
    for taken in ("a0", "own", "a.b"):
        with pytest.raises(AdapterNameError):
            cache.register(taken, folder)
    with pytest.raises(AdapterStateError, match="released"):
        cache.release("a0")
    with cache.using("a0"), pytest.raises(AdapterStateError, match="in use"):
        cache.unregister("a0")
    cache.unregister("a0")
    assert "a0" not in cache.model.peft_config
    with pytest.raises(AdapterNameError):
        cache.acquire("a0")
    with cache.using("a1"):
        assert torch.equal(answers(cache.model, ["a1", "a1"]), want["a1"])
    assert cache.info().pinned == 0
    for limits in ({"max_adapters": 0}, {"max_bytes": -1}):
        with pytest.raises(ArgumentError):
            AdapterCache(cache.model, **limits)
    with pytest.raises(ArgumentError, match="LoRAModel"):
        AdapterCache(torch.nn.Linear(2, 2))


STUCK = {
    "selected": lambda cache: nullcontext(cache.model.set_adapter("a0")),
    "a block around": lambda cache: cache.model.adapters_active("a0"),
    "held around": lambda cache: cache.using("a0"),
}


@pytest.mark.parametrize("case", STUCK)
def test_who_would_wait_for_ever_is_told(case: str, folder: Path, want: dict) -> None:
    cache = cache_of(folder, max_adapters=1)

    with cache.using("a0"):
        pass
    with STUCK[case](cache):
        assert torch.equal(answers(cache.model, ["a0", "a0"]), want["a0"])
        with pytest.raises(AdapterStateError, match="1 adapters of .* beside a0, .* max_adapters=1"):
            cache.acquire("a1")


def test_who_waits_for_another_threads_block_goes_on_when_it_ends(folder: Path, want: dict) -> None:
    cache = cache_of(folder, max_adapters=1)
    with cache.using("a0"):
        pass

    def ask() -> torch.Tensor:
        with cache.using("a1"):
            return answers(cache.model, ["a1", "a1"])

    with ThreadPoolExecutor(1) as pool:
        with cache.model.adapters_active("a0"):
            asked = pool.submit(ask)
            with pytest.raises(AdapterStateError, match="block"):
                cache.unregister("a0")
            with pytest.raises(TooLong):
                asked.result(0.05)
        assert torch.equal(asked.result(30), want["a1"])
    with cache.using("a0"):
        assert torch.equal(answers(cache.model, ["a0", "a0"]), want["a0"])


def test_a_pin_ends_whatever_becomes_of_the_names(folder: Path) -> None:
    cache, rows = cache_of(folder), ["a0"]
    with cache.using(rows):
        rows.append("a1")
    with cache.using(name for name in ["a2"]):
        assert cache.info().pinned == 1
    assert cache.info().pinned == 0


REPLACED = {
    "loaded first": lambda model, folder: model.load_adapter(folder / "a1", "a0"),
    "loaded again": lambda model, folder: [
        model.delete_adapter("a0"),
        model.load_adapter(folder / "a1", "a0"),
    ],
    "swapped": lambda model, folder: model.load_adapter(folder / "a1", "a0", hotswap=True),
}


@pytest.mark.parametrize("case", REPLACED)
def test_another_adapter_of_the_same_name_never_answers(case: str, folder: Path, want: dict) -> None:
    cache = cache_of(folder, max_adapters=1)
    for name in ("a0", "a2") if case == "loaded first" else ("a2", "a0"):
        with cache.using(name):
            pass
    REPLACED[case](cache.model, folder)
    cache.model.set_adapter("own")
    for _ in range(2):
        with pytest.raises(AdapterNameError, match="'a0' that this cache did not bring, or that was swapped"):
            cache.acquire("a0")
    with cache.using("a2"):
        assert torch.equal(answers(cache.model, ["a0", "a2"])[0], want["a1"][0])  # it stays, as it is not the cache's
    cache.model.delete_adapter("a0")
    with cache.using("a0"):
        assert torch.equal(answers(cache.model, ["a0", "a0"]), want["a0"])
        assert cache.model.peft_config["a0"].r == 1


def test_what_left_comes_back_to_layers_that_changed_meanwhile(folder: Path, tmp_path: Path) -> None:
    head = LoRAModel.from_model(tiny.tiny("llama", noisy=True), LoRAConfig(r=2, modules_to_save=["lm_head"]), "own")
    move(head, 5)
    head.save_pretrained(tmp_path)
    cache = AdapterCache(
        LoRAModel.from_model(tiny.tiny("llama", noisy=True).eval(), LoRAConfig(r=2), "own"), max_adapters=1
    )
    for name, path in {"head": tmp_path, "a0": folder / "a0"}.items():
        cache.register(name, path, check_base=False)
        with cache.using(name):
            pass
    cache.model.double()
    with cache.using("head"):
        dtypes = {p.dtype for n, p in cache.model.named_parameters() if ".head." in n}
        assert dtypes == {torch.float64}
    with cache.using("a0"):
        pass
    cache.model.resize_token_embeddings(cache.model.config.vocab_size + 8)
    with pytest.raises(AdapterMismatchError, match="lm_head"):  # as load_adapter says now
        cache.acquire("head")
    assert cache.info().pinned == 0


def test_a_model_that_was_unloaded_and_a_name_that_was_unregistered_are_told(folder: Path) -> None:
    cache = cache_of(folder, max_adapters=1)
    with ThreadPoolExecutor(1) as pool, cache.using("a0"):
        asked = pool.submit(cache.acquire, "a1")
        with pytest.raises(TooLong):
            asked.result(0.2)
        cache.unregister("a1")
        with pytest.raises(AdapterNameError, match="'a1'"):
            asked.result(30)
    model = cache.model.unload()
    for name in ("a0", "a2"):
        with pytest.raises(AdapterStateError, match="unloaded"):
            cache.acquire(name)
    assert not any("adapters" in name for name, _ in model.named_modules())
    cache.unregister("a0")


def test_starts_that_keep_their_product_at_birth_are_measured_with_it(tmp_path: Path) -> None:
    config = LoRAConfig(r=2, init_lora_weights="pissa")
    model = LoRAModel.from_model(tiny.tiny("llama", noisy=True).double().eval(), config, "own")
    move(model)
    model.save_pretrained(tmp_path)
    caches = [AdapterCache(llama())]
    caches[0].register("one", tmp_path)
    with caches[0].using("one"):
        size = caches[0].info().bytes
    caches.append(AdapterCache(llama(), max_bytes=size - 1))
    caches[1].register("one", tmp_path)
    with pytest.raises(AdapterStateError, match=f"1 adapters of {size:,} bytes"):  # before it was ever there
        caches[1].acquire("one")


def test_an_adapter_is_registered_as_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a0", tmp_path / "new")
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    (tmp_path / "new" / "adapter_config.json").write_text(json.dumps({**config, "use_new_formula": True}))
    cache = AdapterCache(llama())
    cache.register("strict", tmp_path / "new")
    cache.register("lenient", tmp_path / "new", ignore_unknown=True)
    with pytest.raises(ConfigError, match="use_new_formula"):
        cache.acquire("strict")
    with cache.using("lenient"):
        assert "lenient" in cache.model.peft_config
    for given in ({"is_trainable": True}, {"hotswap": True}, {"adapter_name": "x"}):
        with pytest.raises(ArgumentError, match="register.*unexpected"):
            cache.register("x", folder / "a1", **given)
