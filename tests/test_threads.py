"""Two threads, or two asyncio tasks, that use one model with an adapter each never see each other's."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest
import torch

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterNameError, AdapterStateError

from .cases import move
from .test_front import gpt2

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def _three() -> tuple[LoRAModel, dict[str, torch.Tensor]]:
    """A model with adapters a, b, c (c is selected), and each one's logits."""
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2), "a")
    for name in "bc":
        model.add_adapter(LoRAConfig(r=2, target_modules=["c_attn", "c_fc"]), name)
    for name in "abc":
        model.set_adapter(name)
        move(model)
    model.eval()
    logits = {}
    for name in "abc":
        model.set_adapter(name)
        logits[name] = model(IDS).logits.detach()
    return model, logits


@torch.no_grad()
def test_threads_with_adapters_of_their_own_never_cross() -> None:
    model, logits = _three()
    wrong: list[str] = []
    barrier = threading.Barrier(3)

    def serve(name: str | None) -> None:
        barrier.wait()
        for _ in range(40):
            if name is None:
                out = model(IDS).logits
            else:
                with model.adapters_active(name):
                    out = model(IDS).logits
            if not torch.equal(out, logits[name or "c"]):
                wrong.append(str(name))

    threads = [threading.Thread(target=serve, args=(name,)) for name in ("a", "b", None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_tasks_that_wait_inside_their_block_never_cross() -> None:
    model, logits = _three()

    async def serve(name: str) -> bool:
        with model.adapters_active(name):
            await asyncio.sleep(0)
            return torch.equal(model(IDS).logits, logits[name])

    async def both() -> list[bool]:
        return await asyncio.gather(*(serve(name) for name in "abab"))

    assert all(asyncio.run(both()))


@torch.no_grad()
def test_a_block_nests_and_leaves_what_is_selected() -> None:
    model, logits = _three()
    with model.adapters_active("a"):
        with model.adapters_active("b"):
            assert torch.equal(model(IDS).logits, logits["b"])
        assert torch.equal(model(IDS).logits, logits["a"])
        model.set_adapter("b")
        assert torch.equal(model(IDS).logits, logits["a"]), "the block's own choice stands"
        with model.adapters_disabled():
            assert torch.equal(model(IDS).logits, gpt2()(IDS).logits)
        assert torch.equal(model(IDS).logits, logits["a"])
        again = copy.deepcopy(model)
    assert torch.equal(model(IDS).logits, logits["b"])
    assert torch.equal(again(IDS).logits, logits["b"])
    with pytest.raises(ZeroDivisionError), model.adapters_active("a"):
        raise ZeroDivisionError
    assert torch.equal(model(IDS).logits, logits["b"])
    model.disable_adapters()
    with model.adapters_active("a"):
        assert torch.equal(model(IDS).logits, logits["a"])


def test_what_cannot_be_routed_is_refused() -> None:
    model, _ = _three()
    with pytest.raises(AdapterNameError), model.adapters_active("missing"):
        pass
    with pytest.raises(AdapterStateError, match=r"eval\(\)"), model.train().adapters_active("a"):
        pass
    model.merge_adapter()
    with pytest.raises(AdapterStateError, match="unmerge_adapter"), model.eval().adapters_active("a"):
        pass


@torch.no_grad()
def test_inside_a_block_nothing_is_merged_taken_away_or_switched_off_without_a_word() -> None:
    model, logits = _three()
    refused: list[str] = []

    def elsewhere() -> None:
        for call in (model.merge_adapter, model.merge_and_unload, lambda: model.delete_adapter("a")):
            try:
                call()
            except AdapterStateError as error:
                refused.append(str(error))

    with model.adapters_active("a"):
        with pytest.raises(AdapterStateError, match="adapters_disabled"):
            model.disable_adapters()
        elsewhere()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert torch.equal(model(IDS).logits, logits["a"])
    assert len(refused) == 6
    model.delete_adapter("a")
    model.merge_adapter()
