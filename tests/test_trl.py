"""TRL's SFTTrainer and DPOTrainer with a LoRAModel: adapters only, exact resumes, the base as the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import ModelError, TargetError

from .peek import uploading
from .tiny import tiny
from .trainings import DEFAULTS, StopsAt, ending, same, tokenizer, weights

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # PEFT's, before it asks us
]
WORDS = "red green blue one two three cat dog runs sleeps eats good bad".split()


def text(seed: int) -> str:
    picks = torch.randint(len(WORDS), (6,), generator=torch.Generator().manual_seed(seed)).tolist()
    return " ".join(WORDS[i] for i in picks)


def base(dropout: float = 0.0) -> Any:
    tokens = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 2}
    return tiny("llama", vocab_size=32, attention_dropout=dropout, **tokens)


def llama(seed: int = 0, name: str = "default", dropout: float = 0.0, **changes: Any) -> LoRAModel:
    model = base(dropout)
    torch.manual_seed(seed)
    return LoRAModel.from_model(model, LoRAConfig(**{"r": 2, "lora_dropout": 0.1, **changes}), name)


def sft(model: Any, out: Path, callbacks: Any = None, **changes: Any) -> Any:
    args = trl.SFTConfig(output_dir=str(out), **{**DEFAULTS, "max_length": 16, **changes})
    data = datasets.Dataset.from_dict({"text": [text(i) for i in range(24)]})
    return trl.SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer(*WORDS), callbacks=callbacks)


def dpo(model: Any, out: Path, callbacks: Any = None, ref_model: Any = None, **changes: Any) -> Any:
    args = trl.DPOConfig(output_dir=str(out), **{**DEFAULTS, "max_length": 16, "learning_rate": 0.05, **changes})
    rows = {"prompt": [text(i) for i in range(24)]}
    rows["chosen"] = [f" {text(100 + i)}" for i in range(24)]
    rows["rejected"] = [f" {text(200 + i)}" for i in range(24)]
    data = datasets.Dataset.from_dict(rows)
    return trl.DPOTrainer(
        model, ref_model, args, train_dataset=data, processing_class=tokenizer(*WORDS), callbacks=callbacks
    )


def losses(run: Any) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", ["default", "mine"])
@pytest.mark.parametrize("make", [sft, dpo])
def test_adapters_alone_train_and_are_saved_and_resume_to_the_same_bits(make: Any, name: str, tmp_path: Path) -> None:
    changes = {"max_steps": 8, "save_strategy": "no"}
    straight = make(llama(7, name, 0.1), tmp_path / "straight", **changes)
    before = weights(straight.model)
    straight.train()
    want = ending(straight)
    moved = {k for k, v in weights(straight.model).items() if not torch.equal(v, before[k])}
    assert moved
    assert all(f"adapters.{name}" in k for k in moved)
    make(llama(7, name, 0.1), tmp_path / "parts", [StopsAt(3)], **changes).train()
    saved = {path.name for path in (tmp_path / "parts" / "checkpoint-3").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert not saved & {"model.safetensors", "config.json", "pytorch_model.bin"}
    again = make(llama(8, name, 0.1), tmp_path / "parts", **changes)
    again.train(resume_from_checkpoint=True)
    same(ending(again), want)


@pytest.mark.parametrize("make", [sft, dpo])
def test_losses_are_those_of_a_peft_model_of_the_same_weights(make: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = llama(7, lora_dropout=0.0)
    ours.save_pretrained(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter", is_trainable=True)
    changes = {"max_steps": 4, "learning_rate": 0.5, "optim": "sgd", "bf16": False}  # Adam and bf16 enlarge rounding
    mine, reference = make(ours, tmp_path / "ours", **changes), make(theirs, tmp_path / "theirs", **changes)
    for run in (mine, reference):
        torch.manual_seed(1)
        run.train()
    torch.testing.assert_close(torch.tensor(losses(mine)), torch.tensor(losses(reference)), rtol=1e-5, atol=1e-5)
    assert losses(mine)[0] != losses(mine)[-1]


def test_the_reference_is_the_base_and_no_second_one_is_made(tmp_path: Path) -> None:
    model = llama(7)
    run = dpo(model, tmp_path / "ours", max_steps=4)
    assert not list(run.ref_model.parameters())
    run.train()
    explicit = dpo(llama(7), tmp_path / "explicit", ref_model=base(), max_steps=4)
    explicit.train()
    assert losses(run) == losses(explicit)


@pytest.mark.parametrize("own", [True, False], ids=["loaded as ref", "copied"])
def test_a_trained_adapter_is_compared_with_itself_as_it_was(own: bool, tmp_path: Path) -> None:
    first = llama(7)
    sft(first, tmp_path / "sft", max_steps=4).train()
    first.save_pretrained(tmp_path / "adapter")

    def loaded() -> LoRAModel:
        return LoRAModel.from_pretrained(str(tmp_path / "adapter"), base_model=base(), is_trainable=True)

    model = loaded()
    if own:
        model.load_adapter(str(tmp_path / "adapter"), "ref")
        model.set_adapter("default")
    run = dpo(model, tmp_path / "ours", max_steps=4)
    frozen = {k: v for k, v in weights(model).items() if ".ref." in k}
    explicit = dpo(loaded(), tmp_path / "explicit", ref_model=loaded().eval(), max_steps=4)
    for one in (run, explicit):
        torch.manual_seed(1)
        one.train()
    assert losses(run)[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: nothing has moved yet
    assert losses(run) == pytest.approx(losses(explicit), abs=1e-6)
    assert frozen
    assert all(torch.equal(v, frozen[k]) for k, v in weights(model).items() if k in frozen)


def test_references_computed_beforehand_are_those_of_the_base(tmp_path: Path) -> None:
    live = dpo(llama(7), tmp_path / "live", max_steps=4)
    ahead = dpo(llama(7), tmp_path / "ahead", max_steps=4, precompute_ref_log_probs=True)
    for run in (live, ahead):
        torch.manual_seed(1)
        run.train()
    assert losses(ahead) == pytest.approx(losses(live), abs=1e-5)


def test_disabled_dropout_is_disabled_in_the_adapters_too(tmp_path: Path) -> None:
    model = llama(7, lora_dropout=0.5)
    dpo(model, tmp_path)
    assert {m.dropout for m in model.modules() if type(m).__name__ == "LoRA"} == {0.0}
    kept = llama(7, lora_dropout=0.5)
    dpo(kept, tmp_path, disable_dropout=False)
    assert {m.dropout for m in kept.modules() if type(m).__name__ == "LoRA"} == {0.5}


HEADS = {
    "LoRA": {"target_modules": ["q_proj", "lm_head"]},
    "DoRA": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "saved": {"modules_to_save": ["lm_head"]},
    "rows": {"trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [3, 4]}},
}


@pytest.mark.parametrize("make", [sft, dpo])
@pytest.mark.parametrize("changes", HEADS.values(), ids=HEADS.keys())
def test_an_adapter_on_the_head_that_trl_only_reads_trains(make: Any, changes: Any, tmp_path: Path) -> None:
    model = llama(lora_dropout=0.0, **changes)
    want = model.eval()(torch.tensor([[5, 6, 7, 8]])).logits
    run = make(model, tmp_path, max_steps=2, save_strategy="no")
    torch.testing.assert_close(model.eval()(torch.tensor([[5, 6, 7, 8]])).logits, want)
    before = weights(model)
    run.train()
    moved = {k for k, v in weights(model).items() if not torch.equal(v, before[k])}
    assert [k for k in moved if k.startswith("lm_head.adapters")]


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.1}, {"lora_bias": True}], ids=str)
def test_an_adapter_on_the_head_that_cannot_act_in_its_weight_is_refused(changes: Any, tmp_path: Path) -> None:
    model = llama(target_modules=["lm_head"], **{"lora_dropout": 0.0, **changes})
    with pytest.raises(TargetError, match="head"):
        sft(model, tmp_path)


def test_settings_that_would_mean_nothing_here_are_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    data = datasets.Dataset.from_dict({"text": [text(0)]})
    with pytest.raises(ModelError, match="peft_config"):
        trl.SFTTrainer(
            llama(), trl.SFTConfig(str(tmp_path), **DEFAULTS), train_dataset=data, processing_class=tokenizer(*WORDS),
            peft_config=peft.LoraConfig(),
        )  # fmt: skip
    with pytest.raises(ModelError, match="ref_model"):
        dpo(llama(), tmp_path, sync_ref_model=True)


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_push_takes_adapter_card_and_tokenizer(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, str] = {}

    def upload(folder: Path, message: str) -> None:
        pushed.update({path.name: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()})

    monkeypatch.setattr(uploading, "_uploader", lambda *args: upload)
    model = llama(7)
    model.peft_config["default"].base_model_name_or_path = "org/base"
    run = make(model, tmp_path, max_steps=2)
    run.train()
    run.hub_model_id = "me/tuned"
    run.push_to_hub()
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json"}
    assert pushed.keys() - {"special_tokens_map.json", "chat_template.jinja"} == names
    assert not any(str(tmp_path) in content for content in pushed.values())
    card = pushed["README.md"]
    assert "base_model: org/base" in card
    assert "- trl" in card
    assert "library_name: peft" in card
