"""Files that hf_lora 0.1.0 wrote before its rooms were moved (data/before) are read, and written again, to the same bytes.

What is written to the same bytes, the version of before reads as well.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel

BEFORE = Path(__file__).parent / "data" / "before"
CASES = sorted(path.name for path in BEFORE.iterdir())
pytestmark = pytest.mark.filterwarnings("ignore:.*token_id must be.*")


def base(case: str) -> nn.Module:
    torch.manual_seed(0)
    if case == "head":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        return BertForSequenceClassification(
            BertConfig(**sizes, vocab_size=16, max_position_embeddings=8, num_labels=3)
        )
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=16, bos_token_id=0, eos_token_id=0))


def test_every_kind_of_file_is_there() -> None:
    assert CASES == ["dora", "head", "lora", "pissa", "rows"]


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_before_is_read_and_written_again_to_the_same_bits(case: str, tmp_path: Path) -> None:
    model = LoRAModel.from_pretrained(BEFORE / case, base_model=base(case), check_base=False)
    theirs = load_file(BEFORE / case / "adapter_model.safetensors")
    ours = model.get_adapter_state_dict()
    assert {f"base_model.model.{key}": True for key in ours} == dict.fromkeys(theirs, True)
    assert all(torch.equal(tensor, theirs[f"base_model.model.{key}"]) for key, tensor in ours.items())
    assert sum(p.abs().sum() for n, p in model.named_parameters() if "lora_B" in n) > 0
    model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=base(case), check_base=False).get_adapter_state_dict()
    assert again.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in again.items())
    before, now = (json.loads((at / "adapter_config.json").read_text()) for at in (BEFORE / case, tmp_path))
    assert now.items() <= before.items()  # what is at its default is left out
    assert LoRAConfig.from_pretrained(tmp_path) == LoRAConfig.from_pretrained(BEFORE / case)
