"""Training curves: fifty steps from one start are the same here and in PEFT, and do not drift apart."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from hf_lora import LoRAConfig, LoRAModel

from .tiny import tiny

STEPS, BATCH, LENGTH, WORDS = 50, 4, 12, 40
BASES = {
    "bert": {"hidden_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"n_embd": 32, "vocab_size": WORDS, **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)},
    "llama": {"hidden_size": 32, "intermediate_size": 48, "vocab_size": WORDS, "head_dim": 16},
}
VARIANTS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BASES)
def test_fifty_steps_have_the_losses_that_peft_has_from_the_same_start(name: str, variant: str, tmp_path: Path) -> None:
    base = tiny(name, **BASES[name])
    torch.manual_seed(0)
    task = {"task_type": "SEQ_CLS"} if name == "bert" else {}
    config = LoRAConfig(r=4, lora_alpha=8, target_modules="all-linear", **task, **VARIANTS[variant])
    LoRAModel.from_model(copy.deepcopy(base), config).save_pretrained(tmp_path)
    here = LoRAModel.from_pretrained(str(tmp_path), base_model=copy.deepcopy(base), is_trainable=True)
    there = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path), is_trainable=True)
    ours, theirs = curve(here, name), curve(there, name)
    assert sum(ours[-5:]) < 0.95 * sum(ours[:5]), "it does not learn, so this test proves little"
    assert ours == pytest.approx(theirs, rel=1e-4)


def curve(model: nn.Module, name: str) -> list[float]:
    """Return the loss of every step of AdamW, on a few batches over and over."""
    data = torch.Generator().manual_seed(1)
    batches = [torch.randint(WORDS, (BATCH, LENGTH), generator=data) for _ in range(2)]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, eps=1e-5)  # its own 1e-8 takes long steps along rounding errors
    losses = []
    for step in range(STEPS):
        words = batches[step % len(batches)]
        loss = model.train()(input_ids=words, labels=words[:, 0] % 3 if name == "bert" else words).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
