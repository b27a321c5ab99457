"""Every Trainer of the installed TRL with a LoRAModel: a row each, and what is compared with is the model as it was."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import ModelError

from .test_trl import WORDS, base, datasets, text, trl
from .tiny import tiny
from .trainings import DEFAULTS, tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
GENERATES = {"num_generations": 4, "max_completion_length": 4, "beta": 0.1}
SHORT = {"max_completion_length": 4}
REWARDS = {"reward_funcs": lambda completions, **_: [float(len(each)) for each in completions]}
PROMPT, ANSWER = [text(i) for i in range(8)], [f" {text(i + 50)}" for i in range(8)]
TEXTS = {"text": PROMPT}
PROMPTS = {"prompt": PROMPT}
LABELLED = {"prompt": PROMPT, "completion": ANSWER, "label": [True, False] * 4}
PAIRS = {"prompt": PROMPT, "chosen": ANSWER, "rejected": [f" {text(i + 90)}" for i in range(8)]}
CHATS = {
    "messages": [
        [{"role": "user", "content": p}, {"role": "assistant", "content": a}]
        for p, a in zip(PROMPT, ANSWER, strict=True)
    ]
}
TOLD = {"prompt": PROMPT, "privileged_context": ANSWER}


@dataclass(frozen=True)
class Row:
    """A Trainer: the columns of its data, its settings, what else it is given.

    reference: the attribute of what it compares with, "" where it compares with nothing. teacher: how its teacher is
    given. refused: words of our error. cannot: why it does not run here.
    """

    data: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    teacher: str = ""
    refused: str = ""
    cannot: str = ""


ROWS: dict[str, Row] = {
    "trainer.sft_trainer.SFTTrainer": Row(TEXTS),
    "trainer.dpo_trainer.DPOTrainer": Row(PAIRS, reference="ref_model"),
    "trainer.grpo_trainer.GRPOTrainer": Row(PROMPTS, GENERATES, REWARDS, reference="ref_model"),
    "trainer.rloo_trainer.RLOOTrainer": Row(PROMPTS, GENERATES, REWARDS, reference="ref_model"),
    "trainer.kto_trainer.KTOTrainer": Row(LABELLED, reference="ref_model"),
    "trainer.reward_trainer.RewardTrainer": Row(PAIRS),
    "trainer.distillation_trainer.DistillationTrainer": Row(PROMPTS, SHORT, teacher="model"),
    "experimental.a2po.a2po_trainer.A2POTrainer": Row(PROMPTS, SHORT, REWARDS, reference="ref_model"),
    "experimental.bema_for_ref_model.dpo_trainer.DPOTrainer": Row(PAIRS, reference="ref_model"),
    "experimental.cpo.cpo_trainer.CPOTrainer": Row(PAIRS),
    "experimental.orpo.orpo_trainer.ORPOTrainer": Row(PAIRS),
    "experimental.tpo.tpo_trainer.TPOTrainer": Row({**PAIRS, "reference": ANSWER}),
    "experimental.distillation.DistillationTrainer": Row(PROMPTS, SHORT, teacher="model"),
    "experimental.gkd.gkd_trainer.GKDTrainer": Row(CHATS, {"max_new_tokens": 4}, teacher="model"),
    "experimental.gmpo.gmpo_trainer.GMPOTrainer": Row(PROMPTS, GENERATES, REWARDS, reference="ref_model"),
    "experimental.iw_opd.iw_opd_trainer.IWOPDTrainer": Row(CHATS, SHORT, teacher="name"),
    "experimental.kto.KTOTrainer": Row(LABELLED, reference="ref_model"),
    "experimental.online_dpo.online_dpo_trainer.OnlineDPOTrainer": Row(
        PROMPTS, {"max_new_tokens": 4}, REWARDS, reference="ref_model"
    ),
    "experimental.sdft.sdft_trainer.SDFTTrainer": Row(
        TOLD, {**GENERATES, "distillation_topk": 4, "teacher_model_kind": "base"}, reference="teacher_model"
    ),
    "experimental.sdpo.sdpo_trainer.SDPOTrainer": Row(
        TOLD, {**GENERATES, "teacher_model_kind": "base"}, REWARDS, reference="teacher_model"
    ),
    "experimental.async_grpo.async_grpo_trainer.AsyncGRPOTrainer": Row(PROMPTS, {}, REWARDS, refused="vLLM"),
    "experimental.async_distillation.async_distillation_trainer.AsyncDistillationTrainer": Row(PROMPTS, refused="vLLM"),
    "experimental.gold.gold_trainer.GOLDTrainer": Row(CHATS, cannot="wants a ByteLevel tokenizer; else as SFTTrainer"),
    "experimental.server_distillation.server_distillation_trainer.ServerDistillationTrainer": Row(
        PROMPTS, cannot="asks a server for its teacher; else as DistillationTrainer"
    ),
}
TRAINS = [name for name, row in ROWS.items() if not row.cannot and not row.refused]


def _trainers() -> dict[str, type]:
    """Return every Trainer that TRL defines, by its dotted name there."""
    found = {}
    for info in pkgutil.walk_packages(trl.__path__, "trl."):
        if not info.name.startswith(("trl.scripts", "trl.cli", "trl.kernels")):
            try:
                module = importlib.import_module(info.name)
            except ImportError:  # what it needs is not installed; it defines no Trainer that could be made
                continue
            for name, value in vars(module).items():
                if isinstance(value, type) and issubclass(value, Trainer) and value.__module__ == info.name:
                    found[f"{info.name}.{name}".removeprefix("trl.")] = value
    return found


def test_every_trainer_of_trl_has_a_row() -> None:
    """A new one is loud: add its row, and say what its reference is, in which words it is refused or why it can't run."""
    found = {name for name in _trainers() if not name.endswith("._BaseTrainer")}
    assert found == set(ROWS)


@cache
def _words() -> Any:
    words = tokenizer(*WORDS)
    words.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return words


def _named(name: str, suffix: str) -> Any:
    path, _, cls = name.rpartition(".")
    for module in (f"trl.{path}", f"trl.{path.removesuffix('_trainer')}_config", "trl"):
        try:
            return getattr(importlib.import_module(module), cls.removesuffix("Trainer") + suffix)
        except (ImportError, AttributeError):
            continue
    raise LookupError(name)


def _made(name: str, model: Any, folder: Path, **changes: Any) -> Any:
    """Return a Trainer of a row with a model, or the name of one. changes: its `peft_config` or its arguments."""
    row, arguments = ROWS[name], _named(name, "Config")
    known = {each.name for each in fields(arguments)}
    peft = {"peft_config": changes.pop("peft_config")} if "peft_config" in changes else {}
    settings = {**DEFAULTS, "max_steps": 1, "save_strategy": "no", "bf16": False, "logging_steps": 1, **row.settings}
    args = arguments(
        str(folder / "run"), **{key: value for key, value in {**settings, **changes}.items() if key in known}
    )
    given = {**row.given, **peft}
    if row.teacher:
        teacher = base()
        teacher.save_pretrained(folder / "teacher")
        _words().save_pretrained(folder / "teacher")
        given["teacher_model"] = teacher if row.teacher == "model" else str(folder / "teacher")
    data = datasets.Dataset.from_dict(row.data)
    return _named(name, "Trainer")(model=model, args=args, train_dataset=data, processing_class=_words(), **given)


def _model(name: str, **settings: Any) -> Any:
    if "Reward" not in name:
        return LoRAModel.from_model(base(), LoRAConfig(r=2, **settings))
    rated = tiny("llama", "LlamaForSequenceClassification", vocab_size=32, num_labels=1, pad_token_id=1)
    return LoRAModel.from_model(rated, LoRAConfig(r=2, task_type="SEQ_CLS", **settings))


def _check_reference(name: str, run: Any, trained: bool) -> None:
    """Assert that what a Trainer compares with is its model as it was, and holds no weight of its own."""
    attribute = ROWS[name].reference
    if attribute:
        assert not list(getattr(run, attribute).parameters())
        assert ("ref" in run.model.peft_config) == trained
    else:
        assert set(run.model.peft_config) == {"default"}
    second = [vars(run).get(each) for each in ("ref_model", "teacher_model") if each not in (attribute, "")]
    assert all(each is None or ROWS[name].teacher for each in second)


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained before"])
@pytest.mark.parametrize("name", TRAINS)
def test_an_adapter_alone_trains_and_the_reference_is_the_model_as_it_was(
    name: str, trained: bool, tmp_path: Path
) -> None:
    if not trained and not ROWS[name].reference:
        pytest.skip("compares with nothing, so that an adapter that was trained before says as much")
    run = _made(name, _model(name, init_lora_weights=not trained), tmp_path)
    _check_reference(name, run, trained)
    before = {key: p.detach().clone() for key, p in run.model.named_parameters()}
    run.train()
    moved = [key for key, p in run.model.named_parameters() if not torch.equal(p, before[key])]
    assert moved
    assert all(".adapters.default." in key for key in moved)
    told = [entry[key] for entry in run.state.log_history for key in ("kl", "objective/kl") if key in entry]
    assert not [each for each in told if abs(each) > 1e-5]


@pytest.mark.parametrize("way", ["peft_config", "model_init_kwargs"])
@pytest.mark.parametrize("name", TRAINS)
def test_a_model_that_is_named_gets_its_adapter_by_either_argument(name: str, way: str, tmp_path: Path) -> None:
    takes = {*inspect.signature(_named(name, "Trainer").__init__).parameters}
    if way == "peft_config" and takes.isdisjoint({"peft_config", "kwargs"}):
        pytest.skip("takes none")
    base().save_pretrained(tmp_path / "base")
    config = LoRAConfig(r=2, init_lora_weights=False, task_type="SEQ_CLS" if "Reward" in name else None)
    given = {way: config if way == "peft_config" else {"lora_config": config}}
    run = _made(name, str(tmp_path / "base"), tmp_path, **given)
    assert isinstance(run.model, LoRAModel)
    assert run.model.peft_config["default"].r == 2
    _check_reference(name, run, True)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.refused])
def test_what_cannot_work_is_refused_with_the_way_out(name: str) -> None:
    for given in ({"model": _model(name)}, {"model": "some/base", "peft_config": LoRAConfig()}):
        with pytest.raises(ModelError, match=ROWS[name].refused):
            _named(name, "Trainer")(train_dataset=None, **given, **ROWS[name].given)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.reference == "teacher_model"])
def test_a_teacher_that_moves_with_the_student_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ema"):
        _made(name, _model(name), tmp_path, teacher_model_kind="ema")
