"""Expressions in a stranger's config: those that could take for ever are refused before anything is matched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import ConfigError

from .peek import may_hang
from .tiny import edit_config

HANGS = [
    r"(.*a)+b",
    r"(([a-z_0-9]+\.?)+)+!",
    r"(.*\.)*q",
    r"(\d+)+x",
    r"(a|b+)*c",
    r"(?:(?:x+)*)y",
    r"(a*?)+?b",
    "(" * 9 + "a*" + ")*" * 9,
    "q|" * 5_001,
]
FINE = [
    r".*\.(q|v)_proj", r"(\w+\.)+q_proj", r"([a-z_]+\d\.)*x", r"model\.layers\.(\d+)\.self_attn\.(q|k)_proj",
    r"^(?!.*vision).*(?:attn|mlp).*(?:q_proj|v_proj)$", r"(?:.*?(?:language|text).*?(?:q_proj|k_proj).*?)", r"(a{1,3}b)+", "q_proj",
    r"([^.]+\.)+q", r"((a|b)\.)+c", r"[(]a+[)]+", r"\(a+\)+", "(", "",
]  # fmt: skip


@pytest.mark.parametrize("pattern", HANGS)
def test_a_repeat_in_a_repeat_may_hang(pattern: str) -> None:
    assert may_hang(pattern)


@pytest.mark.parametrize("pattern", FINE)
def test_what_people_write_may_not(pattern: str) -> None:
    assert not may_hang(pattern)


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_such_a_config_is_refused_at_once(key: str, tmp_path: Path) -> None:
    net = nn.ModuleDict({"a" * 12: nn.Linear(4, 4), "fc": nn.Linear(4, 4)})
    add_lora(net, LoRAConfig(r=2, target_modules=["fc"])).save_pretrained(tmp_path)
    edit_config(tmp_path, **{key: {r"((a+)+)+!": 4} if "pattern" in key else r"((a+)+)+!"})
    with pytest.raises(ConfigError, match=re.escape("((a+)+)+!")):
        LoRAModel.from_pretrained(tmp_path, base_model=net.unload())
    assert torch.is_grad_enabled()
