"""Saving: the old adapter or the new one whenever the process dies, every bit read back, and nothing unfit is written."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import random
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterFileError, AdapterNameError, AdapterStateError, ModelError

from .cases import move
from .peek import disk, read_json, read_tensors, write_tensors
from .tiny import edit_config, tiny
from .trainings import bert, ran, trainer

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
WEIGHTS, CONFIG, PENDING = "adapter_model.safetensors", "adapter_config.json", ".adapter_config.json.pending"


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))


def model(r: int, alpha: int = 3, seed: int = 3) -> LoRAModel:
    """Return a small adapted network whose config and tensors both follow from its rank."""
    result = add_lora(network(), LoRAConfig(r=r, lora_alpha=alpha * r, target_modules=["0", "2"]))
    move(result, seed)
    return result


def content(folder: Path) -> tuple[int, float, dict[str, list]] | None:
    """Return what a folder loads as; None where it is no adapter. Half of one is neither: loading it fails."""
    if not (folder / CONFIG).exists() and not ((folder / PENDING).exists() and (folder / WEIGHTS).exists()):
        return None
    return of(LoRAModel.from_pretrained(folder, base_model=network()))


def of(loaded: LoRAModel) -> tuple[int, float, dict[str, list]]:
    config = loaded.peft_config["default"]
    return config.r, config.lora_alpha, {k: v.tolist() for k, v in loaded.get_adapter_state_dict().items()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def raw(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- dying ----------------------------------------------------------------------------------------------------------


class Died(BaseException):
    """What a kill looks like from inside: from then on nothing that the process does reaches the disk."""


@contextmanager
def dying_at(step: int) -> Iterator[list[str]]:
    """Let the process die at the step-th call that makes, syncs, moves or deletes a file; yields the steps taken."""
    taken: list[str] = []

    def dying(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and "x" not in args[1]:
                return original(*args, **kwargs)
            if len(taken) >= step:
                if name == "fsync" and len(taken) == step and stat.S_ISREG(os.fstat(args[0]).st_mode):
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                taken.append("died")
                raise Died
            taken.append(name)
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, dying(name, getattr(os, name)))
        patch.setattr(disk, "open", dying("open", open), raising=False)
        yield taken


def save_and_die(saved: LoRAModel, folder: Path, step: int) -> bool:
    """Save with a death at a step and tell whether it came to that."""
    with dying_at(step) as taken:
        try:
            saved.save_pretrained(folder)
        except Died:
            return True
    assert "replace" in taken
    return False


def nothing(folder: Path) -> None:
    pass


def ours(folder: Path) -> None:
    model(2).save_pretrained(folder)


def pefts(folder: Path) -> None:
    ours(folder)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    ours(folder)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def edited(folder: Path) -> None:
    ours(folder)
    edit_config(folder, lora_alpha=5)


def littered(folder: Path) -> None:
    ours(folder)
    for name in (f".{WEIGHTS}.0123abcd.tmp", f".{CONFIG}.0123abcd.tmp", PENDING):
        (folder / name).write_bytes(b"half of someth")


@pytest.mark.parametrize("before", [nothing, ours, pefts, pickled, edited, littered])
def test_a_death_at_any_step_leaves_the_old_adapter_or_the_new_one(before: Callable, tmp_path: Path) -> None:
    new, step, seen = model(3), 0, set()
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        before(folder)
        old = content(folder)
        died = save_and_die(new, folder, step)
        found = content(folder)
        assert found in (old, of(new)), f"step {step}"
        seen.add(found == of(new))
        if not died:
            break
        model(4).save_pretrained(folder)
        assert content(folder) == of(model(4))
        assert names(folder) == FILES
        step += 1
    assert step > 8
    assert seen == {True, False}
    assert found == of(new)
    assert names(folder) == FILES


@pytest.mark.slow
def test_two_deaths_in_a_row_leave_one_of_the_three_adapters(tmp_path: Path) -> None:
    first, second, third = model(2), model(3), model(4)
    for step in range(30):
        for again in range(step % 4, 30, 4):
            folder = tmp_path / f"{step}-{again}"
            first.save_pretrained(folder)
            died = save_and_die(second, folder, step)
            between = content(folder)
            finished = not save_and_die(third, folder, again)
            assert content(folder) in (between, of(third)), (step, again)
            shutil.rmtree(folder)
            if finished:
                break
        if not died:
            return
    raise AssertionError("saving takes more than 30 steps")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killing_the_process_at_thirty_random_moments_leaves_a_whole_adapter(tmp_path: Path) -> None:
    a, b = model(2), model(40, seed=4)
    known = (of(a), of(b))
    folder = tmp_path / "adapter"
    a.save_pretrained(folder)
    start = time.perf_counter()
    for saved in (b, a):
        saved.save_pretrained(folder)
    duration = time.perf_counter() - start
    moments = random.Random(0)
    found, interrupted = [], 0
    while len(found) < 30 or (not interrupted and len(found) < 1000):  # however the moments fall on this machine
        moment = len(found)
        begun, begins = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(begins, b".")
                while True:
                    b.save_pretrained(folder)
                    a.save_pretrained(folder)
            finally:
                os._exit(1)
        os.close(begins)
        assert os.read(begun, 1), "saving failed before it began"
        time.sleep(duration * moments.uniform(0.1, 3))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(begun)
        assert os.WIFSIGNALED(status), "saving failed before it was killed"
        interrupted += names(folder) != FILES
        found.append(content(folder))
        assert found[-1] in known, f"moment {moment}"
    assert interrupted, "no save was cut off, so this test proves nothing"
    a.save_pretrained(folder)
    assert names(folder) == FILES


def test_a_config_that_somebody_edited_counts(tmp_path: Path) -> None:
    edited(tmp_path)
    assert LoRAConfig.from_pretrained(tmp_path).lora_alpha == 5
    assert content(tmp_path)[1] == 5
    shutil.copy(tmp_path / CONFIG, tmp_path / PENDING)  # whatever it says, the weights do not name it
    (tmp_path / CONFIG).write_text((tmp_path / PENDING).read_text().replace("5", "7"))
    assert content(tmp_path)[1] == 7


def test_a_directory_cut_off_before_its_first_weights_holds_no_adapter(tmp_path: Path) -> None:
    (tmp_path / PENDING).write_text(LoRAConfig().to_json())
    for read in (LoRAConfig.from_pretrained, lambda path: model(2).load_adapter(path, "other")):
        with pytest.raises(AdapterFileError, match=r"adapter_config\.json"):
            read(tmp_path)


def test_a_save_during_a_read_gives_the_old_adapter_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from .peek import loading

    written = [model(2, alpha) for alpha in (4, 64)]
    written[0].save_pretrained(tmp_path)
    late = [written[1]]

    def read(path: Path) -> dict:
        values = read_json(path)
        if late:
            late.pop().save_pretrained(tmp_path)  # between the reading of the config and that of the weights
        return values

    monkeypatch.setattr(loading, "read_json", read)
    contents = loading.open_adapter(str(tmp_path), {})
    assert contents.config.lora_alpha == 128
    assert not late


def test_threads_that_save_into_one_directory_take_turns(tmp_path: Path) -> None:
    saved = [model(r) for r in (2, 3, 4)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda one: [one.save_pretrained(tmp_path) for _ in range(8)], saved))
    assert content(tmp_path) in [of(one) for one in saved]
    assert names(tmp_path) == FILES


# --- the disk -------------------------------------------------------------------------------------------------------


def test_what_comes_back_changed_from_the_disk_is_an_error_and_the_old_adapter_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours(tmp_path)
    before = raw(tmp_path)
    original = os.fsync

    def spoiling(handle: int) -> None:
        original(handle)
        size = os.fstat(handle).st_size
        if stat.S_ISREG(os.fstat(handle).st_mode) and size > 9:
            byte = os.stat(handle).st_size - 3
            os.pwrite(handle, b"\x55", byte)

    monkeypatch.setattr(os, "fsync", spoiling)
    with pytest.raises(AdapterFileError, match="driver"):
        model(3).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert raw(tmp_path) == before


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("before", [nothing, ours])
def test_a_disk_that_refuses_is_a_clear_error_without_litter(
    before: Callable, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    if before is ours:
        ours(folder)
    old = raw(folder) if folder.exists() else None
    if call == "open":
        monkeypatch.setattr(disk, "open", lambda p, mode: (full if "x" in mode else open)(p, mode), raising=False)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(AdapterFileError, match="No space left") as caught:
        model(3).save_pretrained(folder)
    monkeypatch.undo()
    assert isinstance(caught.value.__cause__, OSError)
    assert (raw(folder) if folder.exists() else None) == old


def test_places_that_hold_no_adapter_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AdapterFileError, match="save_pretrained"):
        model(2).save_pretrained(tmp_path / "file")
    with pytest.raises(AdapterFileError, match="below"):
        model(2).save_pretrained(tmp_path / "file" / "below")
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).mkdir()
        with pytest.raises(AdapterFileError, match=name):
            model(2).save_pretrained(tmp_path)
        (tmp_path / name).rmdir()
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_that_cannot_be_synced_or_locked_are_saved_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.fsync

    def refuses(handle: int, *_: object) -> None:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        original(handle)

    monkeypatch.setattr(os, "fsync", refuses)
    if sys.platform != "win32":
        monkeypatch.setattr("fcntl.flock", refuses)
    model(2).save_pretrained(tmp_path)
    assert content(tmp_path) == of(model(2))


def test_older_formats_in_the_directory_give_way(tmp_path: Path) -> None:
    shards = [f"adapter_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in (*shards, "adapter_model.safetensors.index.json", "adapter_model.bin", "adapter_model.bin.index.json"):
        (tmp_path / name).write_bytes(b"old")
    for name in ("training_args.bin", "adapter_model_notes.txt", "model.safetensors"):
        (tmp_path / name).write_bytes(b"not ours")
    model(2).save_pretrained(tmp_path)
    assert names(tmp_path) == FILES | {"training_args.bin", "adapter_model_notes.txt", "model.safetensors"}


def test_a_config_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LoRAConfig(r=2).save_pretrained(tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(AdapterFileError, match="No space left"):
        LoRAConfig(r=3).save_pretrained(tmp_path)
    assert LoRAConfig.from_pretrained(tmp_path).r == 2
    assert names(tmp_path) == {CONFIG}


# --- the bytes ------------------------------------------------------------------------------------------------------


def test_tensors_are_written_and_read_as_they_are_whatever_their_memory_looks_like(tmp_path: Path) -> None:
    whole = torch.randn(8, 6)
    tensors = {
        "strided": whole[::2, 1:4], "transposed": whole.T, "shared": whole, "shared again": whole[:4], "number": torch.tensor(2.0),
        "expanded": torch.ones(1).expand(5), "nan": torch.tensor([float("nan")]), "none": torch.empty(0, 3),
        **{str(d): torch.arange(3).to(d) for d in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)},
    }  # fmt: skip
    write_tensors(tmp_path / "a.safetensors", tensors, {"b": "é", "a": "1"})
    write_tensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())), {"a": "1", "b": "é"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    finite = {name: tensor for name, tensor in tensors.items() if name != "nan"}
    write_tensors(tmp_path / "c.safetensors", finite, {"a": "1"})
    for got, given in (
        (load_file(tmp_path / "a.safetensors"), tensors),
        (read_tensors(tmp_path / "c.safetensors"), finite),
    ):
        assert got.keys() == given.keys()
        for name, want in given.items():
            assert got[name].dtype is want.dtype
            assert torch.equal(got[name], want) or name == "nan"


def test_names_that_would_share_a_folder_are_refused_when_they_meet() -> None:
    for first, second in (("a", "A"), ("x", "y/z/a"), ("x", "/etc")):
        both = add_lora(network(), LoRAConfig(r=2, target_modules=["0"]), first)
        with pytest.raises(AdapterNameError, match=second):
            both.add_adapter(LoRAConfig(r=2, target_modules=["0"]), second)


# --- what is not fit to be saved --------------------------------------------------------------------------------------


def _nan(value: nn.Parameter) -> nn.Parameter:
    with torch.no_grad():
        value.view(-1)[1] = float("nan")
    return value


def _param(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[nn.Parameter], nn.Parameter]:
    return lambda value: nn.Parameter(change(value.detach()))


UNFIT = {
    "empty, as FSDP leaves it": (_param(lambda v: torch.empty(0)), r"0 numbers.*state_dict="),
    "a part": (_param(lambda v: v[:1].clone()), r"\(1, .*state_dict="),
    "flat": (_param(lambda v: v.reshape(-1)), r"\(\d+,\).*state_dict="),
    "on the meta device": (_param(lambda v: v.to("meta")), "meta"),
    "not a number": (_nan, "finite"),
    "infinite": (_param(lambda v: v * float("inf")), "finite"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_an_unfit_adapter_is_refused_with_every_tensor_named_and_nothing_written(fault: str, tmp_path: Path) -> None:
    damage, match = UNFIT[fault]
    broken = model(2)
    broken.add_adapter(LoRAConfig(r=3, target_modules=["0"]), "other")
    for layer in ("0", "2"):
        adapter = broken.get_submodule(f"{layer}.adapters.default.weight")
        adapter.lora_A = damage(adapter.lora_A)
    folder = tmp_path / "out"
    with pytest.raises(AdapterStateError, match=match) as caught:
        broken.save_pretrained(folder)
    assert all(f"{layer}.adapters.default.weight.lora_A" in str(caught.value) for layer in ("0", "2"))
    assert "lora_B" not in str(caught.value)
    assert not folder.exists()
    broken.save_pretrained(folder, adapter_name="other")


def test_a_gathered_state_dict_is_looked_at_as_well(tmp_path: Path) -> None:
    whole = model(2)
    shards = {k: torch.empty(0) if "lora_B" in k else v for k, v in whole.state_dict().items()}
    with pytest.raises(AdapterStateError, match=r"0\.adapters\.default\.weight\.lora_B.*2\.adapters"):
        whole.save_pretrained(tmp_path / "out", state_dict=shards)


# --- training that changed nothing ----------------------------------------------------------------------------------


def steps(trained: LoRAModel, count: int, lr: float, **options: object) -> None:
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=lr, **options)
    for _ in range(count):
        trained(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def fresh(**changes: object) -> LoRAModel:
    return add_lora(network(), LoRAConfig(**{"r": 2, "target_modules": ["0"], **changes}))


@pytest.mark.parametrize("made", ["fresh", "copied", "pickled"])
def test_an_adapter_that_training_left_at_zero_is_refused(made: str, tmp_path: Path) -> None:
    for options in ({}, {"foreach": True}, {"weight_decay": 0.1}):
        trained = ZERO[made](tmp_path / "in")
        steps(trained, 5, 0.0, **options)
        with pytest.raises(AdapterStateError, match=r"zero.*0\.adapters\.default\.weight\.lora_B"):
            trained.save_pretrained(tmp_path / "out")
        steps(trained, 1, 0.1, **options)
        trained.save_pretrained(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")


def test_factors_frozen_on_purpose_and_ones_initialised_anew_may_be_saved_at_zero(tmp_path: Path) -> None:
    headed = fresh(modules_to_save=["2"])
    for name, parameter in headed.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "lora_" not in name)
    steps(headed, 5, 0.1)
    headed.save_pretrained(tmp_path)
    own = fresh()
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if "lora_A" in name:
                parameter.normal_().mul_(0.02).clamp_(-1, 1)
    own.save_pretrained(tmp_path)


def test_a_trainer_run_without_a_learning_rate_is_refused(tmp_path: Path) -> None:
    run = ran(bert(), tmp_path, max_steps=5, learning_rate=0.0, save_strategy="no")
    for save in (lambda: run.model.save_pretrained(tmp_path / "by the model"), run.save_model):
        with pytest.raises(AdapterStateError, match="zero"):
            save()


def test_an_adapter_that_was_never_in_the_forward_is_refused(tmp_path: Path) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x)

    trained = add_lora(Partly(), LoRAConfig(r=2, target_modules=["unused"], modules_to_save=["head"]))
    with pytest.warns(UserWarning, match="no gradient in the first step: unused"):
        steps(trained, 5, 0.1)
    with pytest.raises(AdapterStateError, match=r"zero.*unused\.adapters"):
        trained.save_pretrained(tmp_path)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_the_first_step_of_a_warm_up_is_no_training_yet(optim: str, tmp_path: Path) -> None:
    trainer(bert(), tmp_path, max_steps=2, save_steps=1, warmup_steps=1, optim=optim).train()
    first = load_file(tmp_path / "checkpoint-1" / WEIGHTS)
    assert not any(v.any() for k, v in first.items() if "lora_B" in k), "the first step has moved B: nothing is proved"


def zero_loaded(folder: Path) -> LoRAModel:
    fresh().save_pretrained(folder)
    loaded = LoRAModel.from_pretrained(folder, base_model=network(), is_trainable=True)
    for _ in range(5):
        loaded.load_weights(folder)
        loaded.load_state_dict(loaded.state_dict())
    return loaded


def zero_used(_: Path) -> LoRAModel:
    result = fresh()
    for _ in range(5):
        result.double().float().to("cpu").requires_grad_(True).train().eval()
    result.merge_adapter()
    result.unmerge_adapter()
    with result.adapters_disabled():
        result(torch.ones(1, 6))
    return result


def zero_inference(_: Path) -> LoRAModel:
    with torch.inference_mode():
        return fresh()


ZERO: dict[str, Callable[[Path], LoRAModel]] = {
    "fresh": lambda _: fresh(),
    "copied": lambda _: copy.deepcopy(fresh()),
    "pickled": lambda _: pickle.loads(pickle.dumps(fresh())),
    "loaded": zero_loaded,
    "used": zero_used,
    "made in inference mode": zero_inference,
}


@pytest.mark.parametrize("case", ZERO)
def test_an_adapter_that_nothing_trained_may_be_zero(case: str, tmp_path: Path) -> None:
    ZERO[case](tmp_path / "in").save_pretrained(tmp_path / "out")
    assert not any(v.any() for k, v in read_tensors(tmp_path / "out" / WEIGHTS).items() if "lora_B" in k)


def test_arguments_that_saving_does_not_know_are_a_type_error_and_nothing_is_written(tmp_path: Path) -> None:
    net = model(2)
    for unknown in ("selected_adapters", "adaptername"):
        with pytest.raises(TypeError, match=f"{unknown}.*adapter_name="):
            net.save_pretrained(tmp_path / "out", **{unknown: ["default"]})
    assert not (tmp_path / "out").exists()
    net.save_pretrained(tmp_path / "out", safe_serialization=True, max_shard_size="5GB", save_function=None)
    assert names(tmp_path / "out") == FILES


@pytest.mark.parametrize("as_link", [False, True])
def test_the_base_s_own_folder_is_refused_and_left_as_it_is(as_link: bool, tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("the base's")
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2))
    target = tmp_path / "base"
    if as_link:
        target = tmp_path / "link"
        target.symlink_to(tmp_path / "base")
    with pytest.raises(AdapterFileError, match="is the folder of the base"):
        model.save_pretrained(target)
    with pytest.raises(AdapterFileError, match="is the folder of the base"):
        trainer(model, target).train()
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before
    model.save_pretrained(tmp_path / "base" / "adapter")
    model.add_adapter(LoRAConfig(r=2), "b")
    with pytest.raises(AdapterFileError, match="is the folder of the base"):
        model.save_pretrained(target)


def test_an_adapter_that_lies_beside_its_base_already_is_saved_there_again(tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path / "whole")
    LoRAModel.from_pretrained(tmp_path / "whole", LoRAConfig(r=2)).save_pretrained(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        shutil.copy(path, tmp_path / "whole")
    again = LoRAModel.from_pretrained(tmp_path / "whole")
    again.save_pretrained(tmp_path / "whole")
    assert of(LoRAModel.from_pretrained(tmp_path / "whole")) == of(again)


def test_the_base_s_name_can_be_given_to_a_save(tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2))
    model.add_adapter(LoRAConfig(r=2), "b")
    model.save_pretrained(tmp_path / "out", base_model="org/x")
    for folder in (tmp_path / "out", tmp_path / "out" / "b"):
        assert read_json(folder / CONFIG)["base_model_name_or_path"] == "org/x"
        assert "base_model: org/x" in (folder / "README.md").read_text()
        assert str(tmp_path) not in (folder / "README.md").read_text()
    with pytest.raises(ModelError, match="base_model=5"):
        model.save_pretrained(tmp_path / "no", base_model=5)
    assert not (tmp_path / "no").exists()
