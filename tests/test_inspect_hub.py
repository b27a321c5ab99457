"""`hf-lora inspect` and the commit of a base, against the Hub's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel, inspect_adapter
from hf_lora.errors import AdapterFileError, BaseMismatchError, HubError

from .hub import Hub, hub  # noqa: F401
from .peek import looking, read_metadata

WEIGHTS = "adapter_model.safetensors"


def _base(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_of_a_file_on_the_hub_only_the_head_is_fetched(
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = _base()
    base.name_or_path = "someone/base"
    LoRAModel.from_model(base, LoRAConfig(r=16)).save_pretrained(tmp_path)
    hub.add("me/adapter", {**_files(tmp_path), "training_args.bin": b"x"})
    monkeypatch.setattr(looking, "_FIRST", 256)
    seen = inspect_adapter("me/adapter")
    assert [finding.code for finding in seen.findings] == ["secret"]
    assert seen.tensors == 4
    asked = [request.headers.get("Range") for request in hub.asked("GET.*safetensors")]
    assert asked[0] == "bytes=0-255"
    assert len(asked) == 2
    assert int(str(asked[1]).rpartition("-")[2]) < (tmp_path / WEIGHTS).stat().st_size / 4
    with pytest.raises((AdapterFileError, HubError)):
        inspect_adapter("me/none")
    hub.add("me/plain", {"config.json": b"{}"})
    with pytest.raises(AdapterFileError, match="me/plain"):
        inspect_adapter("me/plain")


def test_the_commit_of_a_base_on_the_hub_is_noted(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    _base().save_pretrained(tmp_path / "base")
    hub.add("me/base", _files(tmp_path / "base"))
    model = LoRAModel.from_pretrained("me/base", LoRAConfig(r=2))
    model.save_pretrained(tmp_path / "out")
    note = json.loads(read_metadata(tmp_path / "out" / WEIGHTS)["hf_lora"])["base"]
    assert note["id"] == "me/base"
    assert len(note["commit"]) == 40
    with pytest.raises(BaseMismatchError, match=f"me/base.*{note['commit']}"):
        LoRAModel.from_pretrained(tmp_path / "out", base_model=_base(1))
    LoRAModel.from_pretrained(tmp_path / "out")
