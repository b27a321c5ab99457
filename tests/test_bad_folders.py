"""What is no adapter, or a damaged one, or has no base: an error that says what is there and what to do, on every way.

Nothing of Transformers, huggingface_hub, safetensors or the operating system comes out as it is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, pipeline

from hf_lora import LoRAConfig, LoRAModel, inspect_adapter
from hf_lora.errors import (
    AdapterFileError,
    ArgumentError,
    BaseLoadError,
    ConfigError,
    HubError,
    LoRAError,
    ModelError,
)

from .tiny import edit_config, tiny

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 12345\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base, and an adapter that names it."""
    folder = tmp_path_factory.mktemp("saved")
    tiny("gpt2").save_pretrained(folder / "base")
    LoRAModel.from_pretrained(folder / "base", LoRAConfig(r=2)).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def model() -> LoRAModel:
    return LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))


def holding(*files: str) -> Callable[[Path], Path]:
    """Return what makes a folder of these files, and returns the folder."""

    def make(folder: Path) -> Path:
        for file in files:
            if file.endswith(".safetensors"):
                save_file({"unet.to_q.lora_A.weight": torch.zeros(2, 2)}, folder / file)
            else:
                (folder / file).write_text("{}")
        return folder

    return make


def theirs(folder: Path) -> Path:
    (folder / CONFIG).write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}))
    return folder


def beside(name: str) -> Callable[[Path], Path]:
    return lambda folder: folder / name


# What a name stands for: made in an empty folder; what the error says. None of it is an adapter.
NONE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty folder": (lambda f: f, "holds no adapter: there is no adapter_config.json"),
    "diffusers'": (holding("pytorch_lora_weights.safetensors"), "diffusers' adapter"),
    "kohya's": (holding("style.safetensors"), "style.safetensors is tensors in a layout of their own"),
    "a whole model's": (holding("model.safetensors"), "model.safetensors is a whole model's weights"),
    "weights without their config": (holding(WEIGHTS), "PEFT's weights; adapter_config.json"),
    "an old PEFT's without their config": (holding("adapter_model.bin"), "PEFT's weights; adapter_config.json"),
    "llama.cpp's": (holding("adapter.gguf"), r"adapter.gguf is llama\.cpp's"),
    "llama.cpp's file": (lambda f: holding("a.gguf")(f) / "a.gguf", r"no adapter in one file; a.gguf is llama\.cpp's"),
    "mlx-lm's without their config": (holding("adapters.safetensors"), "mlx-lm's adapter"),
    "sentence-transformers'": (holding("modules.json"), "sentence-transformers"),
    "the config's own path": (lambda f: holding(CONFIG)(f) / CONFIG, "PEFT's config; name the folder"),
    "a Trainer's folder": (
        lambda f: (shutil.copytree(f.parent / "adapter", f / "checkpoint-3"), f)[1], "adapters in checkpoint-3; pass subf",
    ),
    "no folder": (beside("gone"), "is neither a directory or file of this machine nor"),
    "no folder, from here": (lambda f: "./gone", "is neither a directory or file of this machine nor"),
    "a link to nowhere": (lambda f: ((f / "l").symlink_to("gone"), f / "l")[1], "is neither a directory"),
    "a link to itself": (lambda f: ((f / "l").symlink_to("l"), f / "l")[1], "is neither a directory"),
    "an address": (lambda f: "https://huggingface.co/user/x", r"did you mean 'user/x'\?"),
    "an id with a slash": (lambda f: "user/x/", r"did you mean 'user/x'\?"),
    "a home that is not": (lambda f: "~nobody/gone", "is neither a directory"),
    "a name of no file": (lambda f: "a\0b", "is neither a directory"),
    "no name": (lambda f: "", "is neither a directory"),
}  # fmt: skip


def edited(change: Callable[[Path], object], of: str = "adapter") -> Callable[[Path], Path]:
    """Return what copies the adapter (or the base), changes the copy and returns it."""

    def make(folder: Path) -> Path:
        shutil.copytree(folder.parent / of, folder, dirs_exist_ok=True)
        change(folder)
        return folder

    return make


def instead(file: str, content: str | bytes | None) -> Callable[[Path], Path]:
    """Return what puts some content, or a folder, in a file's place."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        if content is None:
            (folder / file).mkdir()
        else:
            (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return edited(change)


def linked(file: str, to: str) -> Callable[[Path], Path]:
    return edited(lambda f: ((f / file).unlink(), (f / file).symlink_to(to)))


# An adapter that is damaged: a copy changed; the error; what it says.
DAMAGED: dict[str, tuple[Callable[[Path], Path], type[LoRAError], str]] = {
    "no weights": (edited(lambda f: (f / WEIGHTS).unlink()), AdapterFileError, "but neither adapter_model"),
    "truncated": (
        edited(lambda f: os.truncate(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 9)), AdapterFileError, "truncated",
    ),
    "a truncated head": (edited(lambda f: os.truncate(f / WEIGHTS, 20)), AdapterFileError, "truncated"),
    "empty weights": (instead(WEIGHTS, ""), AdapterFileError, "truncated"),
    "a page for weights": (instead(WEIGHTS, "<html>404</html>" * 9), AdapterFileError, "no safetensors file"),
    "a pointer for weights": (instead(WEIGHTS, POINTER), AdapterFileError, "pointer of Git LFS.*git lfs pull"),
    "a pointer for a config": (instead(CONFIG, POINTER), AdapterFileError, "pointer of Git LFS.*git lfs pull"),
    "a pickle that is a pointer": (
        edited(lambda f: ((f / WEIGHTS).unlink(), (f / "adapter_model.bin").write_text(POINTER))),
        AdapterFileError, "pointer of Git LFS",
    ),
    "a pickle of something": (
        edited(lambda f: ((f / WEIGHTS).unlink(), torch.save({"x": pytest}, f / "adapter_model.bin", pickle_module=Names))),
        AdapterFileError, "its pickle asks for",
    ),
    "weights in a circle": (linked(WEIGHTS, WEIGHTS), AdapterFileError, "symbolic links"),
    "weights nowhere": (linked(WEIGHTS, "gone"), AdapterFileError, "link that leads nowhere"),
    "a config in a circle": (linked(CONFIG, CONFIG), AdapterFileError, "symbolic links"),
    "a folder for weights": (instead(WEIGHTS, None), AdapterFileError, "no regular file"),
    "a folder for a config": (instead(CONFIG, None), AdapterFileError, "no regular file"),
    "a page for a config": (instead(CONFIG, "<html>404</html>"), AdapterFileError, "cannot be read as JSON"),
    "an empty config": (instead(CONFIG, ""), AdapterFileError, "cannot be read as JSON"),
    "a list for a config": (instead(CONFIG, "[]"), AdapterFileError, "list, not an object"),
    "a config without keys": (instead(CONFIG, "{}"), ConfigError, "no peft_type"),
    "mlx-lm's": (lambda f: theirs(holding("adapters.safetensors")(f)), ConfigError, "no peft_type.*fine_tune_type"),
}  # fmt: skip


class Names:
    """A pickle module that writes a call of a function by its name."""

    class Pickler:
        def __init__(self, file: Any, protocol: int) -> None:
            self.file = file

        def dump(self, _: object) -> None:
            self.file.write(b"\x80\x02cos\nsystem\nq\x00.")


def loads(path: Any, model: LoRAModel) -> dict[str, Callable[[], object]]:
    """Return the ways to load an adapter by its name."""
    return {
        "from_pretrained": lambda: LoRAModel.from_pretrained(path),
        "from_pretrained(base_model=)": lambda: LoRAModel.from_pretrained(path, base_model=tiny("gpt2")),
        "load_adapter": lambda: model.load_adapter(path, "other"),
        "load_weights": lambda: model.load_weights(path),
    }


@pytest.fixture
def folder(saved: Path) -> Any:
    """Return an empty folder beside the adapter."""
    (made := saved / "made").mkdir()
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("what", NONE)
def test_what_is_no_adapter_is_refused_and_what_it_is_is_said(what: str, folder: Path, model: LoRAModel) -> None:
    make, told = NONE[what]
    path = make(folder)
    is_there = os.path.exists(path) if "\0" not in os.fspath(path) else False
    for way, load in loads(path, model).items():
        with pytest.raises(
            AdapterFileError, match=told if way != "load_weights" or is_there else "does not exist|holds no|is neither"
        ) as raised:
            load()
        assert isinstance(raised.value, ValueError), "PEFT's: Can't find 'adapter_config.json'"
    if what not in ("kohya's", "weights without their config", "llama.cpp's file", "the config's own path"):
        with pytest.raises(AdapterFileError, match=told):
            inspect_adapter(path)
    with pytest.raises(LoRAError):
        LoRAModel.from_pretrained(path, LoRAConfig(r=2))
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_adapter_is_refused_and_the_damage_is_said(what: str, folder: Path, model: LoRAModel) -> None:
    make, error, told = DAMAGED[what]
    path = make(folder)
    autos = {
        "auto": lambda: AutoModelForCausalLM.from_pretrained(path),
        "class": lambda: GPT2LMHeadModel.from_pretrained(path),
        "pipeline": lambda: pipeline("text-generation", model=os.fspath(path), tokenizer=None),
    }
    for load in (loads(path, model) | autos).values():
        with pytest.raises(error, match=told):
            load()
    if "config" in what:
        with pytest.raises(error, match=told):
            LoRAConfig.from_pretrained(path)
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("what", ["a Trainer's folder", "weights without their config"])
def test_where_only_something_is_missing_transformers_own_calls_say_so(what: str, folder: Path) -> None:
    make, told = NONE[what]
    path = make(folder)
    for load in (AutoModelForCausalLM.from_pretrained, GPT2LMHeadModel.from_pretrained):
        with pytest.raises(AdapterFileError, match=told):
            load(path)


on_base = partial(edited, of="base")
# A base that cannot be loaded; what the error says.
BASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not there": (beside("gone"), "neither a directory|not on this machine"),
    "empty": (lambda f: f, "holds no config.json"),
    "an address": (lambda f: "https://huggingface.co/user/x", "did you mean 'user/x'|a path|not on this machine"),
    "without weights": (on_base(lambda f: (f / "model.safetensors").unlink()), "no file named model.safetensors"),
    "truncated": (on_base(lambda f: os.truncate(f / "model.safetensors", 999)), "SafetensorError"),
    "a pointer": (on_base(lambda f: (f / "model.safetensors").write_text(POINTER)), "pointer of Git LFS"),
    "a config that is none": (on_base(lambda f: (f / "config.json").write_text("{")), "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("what", BASES)
def test_a_base_that_cannot_be_loaded_is_said_for_a_fresh_adapter_and_for_a_saved_one(
    what: str, folder: Path, saved: Path, tmp_path: Path
) -> None:
    make, told = BASES[what]
    path = make(folder)
    shutil.copytree(saved / "adapter", tmp_path / "on")
    edit_config(tmp_path / "on", base_model_name_or_path=os.fspath(path))
    for load in (
        lambda: LoRAModel.from_pretrained(path, LoRAConfig(r=2)),
        lambda: AutoModelForCausalLM.from_pretrained(path, lora_config=LoRAConfig(r=2)),
        lambda: LoRAModel.from_pretrained(saved / "adapter", base_model=path, auto_class="AutoModelForCausalLM"),
        lambda: LoRAModel.from_pretrained(tmp_path / "on"),
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "on"),
    ):
        with pytest.raises(ModelError, match=told) as raised:
            load()
        assert isinstance(raised.value, BaseLoadError) == isinstance(raised.value, OSError)


@pytest.mark.parametrize(("config", "told"), [('{"model_type": "xyz"}', "type `xyz`"), ("{}", "model_type")])
def test_a_base_of_no_known_model_is_refused(config: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    for lora_config in (None, LoRAConfig(r=2)):
        with pytest.raises(BaseLoadError, match=told):
            LoRAModel.from_pretrained(tmp_path, lora_config)


def test_a_folder_a_base_and_a_repo_that_are_missing_are_three_errors(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "adapter", tmp_path / "on")
    edit_config(tmp_path / "on", base_model_name_or_path="/nowhere")
    for name, error in (("/nowhere", AdapterFileError), (tmp_path / "on", ModelError), ("user/nothing", HubError)):
        with pytest.raises(error) as raised:
            LoRAModel.from_pretrained(name)
        kinds = [kind for kind in (AdapterFileError, ModelError, HubError) if isinstance(raised.value, kind)]
        assert kinds == [error]


def test_weights_are_taken_from_this_machine_only(model: LoRAModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    for name in ("user/x", "./x", "gpt2"):
        with pytest.raises(AdapterFileError, match="does not exist"):
            model.load_weights(name)


@pytest.mark.parametrize("given", [None, 5, b"x", ["a"]], ids=repr)
def test_what_is_no_name_is_refused(given: Any, model: LoRAModel) -> None:
    ways = {**loads(given, model), "inspect": lambda: inspect_adapter(given)}
    ways["config"] = lambda: LoRAConfig.from_pretrained(given)
    for load in ways.values():
        with pytest.raises(ArgumentError, match="where a name is wanted") as raised:
            load()
        assert isinstance(raised.value, TypeError)


def test_pefts_order_of_arguments_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"from_model\(model, config\).*from_pretrained\(name, base_model=model\)"):
        LoRAModel.from_pretrained(tiny("gpt2"), "adapter")


def test_a_folder_that_may_not_be_looked_into_is_said_so(
    saved: Path, model: LoRAModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *args: False)  # whoever runs the tests may be allowed everything
    path = saved / "adapter"
    ways = {**loads(path, model), "inspect": lambda: inspect_adapter(path)}
    ways["config"] = lambda: LoRAConfig.from_pretrained(path)
    for load in ways.values():
        with pytest.raises(AdapterFileError, match="permissions"):
            load()


@pytest.mark.parametrize("write", [os.fspath, Path, lambda p: f"{p}/", lambda p: f"{p}//", lambda p: f"{p}/."])
def test_a_folder_is_found_however_it_is_written(write: Any, saved: Path, model: LoRAModel) -> None:
    path = write(saved / "adapter")
    assert LoRAConfig.from_pretrained(path).r == 2
    assert inspect_adapter(path).r == 2
    model.load_weights(path)
    for load in (LoRAModel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        assert load(path).peft_config["default"].r == 2
