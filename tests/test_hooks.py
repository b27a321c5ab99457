"""What reaches into Transformers, accelerate and torch: one test each, which fails when upstream moves."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import nn

from .peek import MARK, hooks


def _run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_hf_lora_imports_no_torch_and_patches_what_comes_later() -> None:
    out = _run(
        "import sys, hf_lora; assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "from transformers import Trainer, PreTrainedModel\n"
        "print(hasattr(Trainer.__init__, '_hf_lora_original'), "
        "hasattr(PreTrainedModel.from_pretrained.__func__, '_hf_lora_original'))"
    )
    assert out.split() == ["True", "True"]


def test_importing_hf_lora_patches_what_is_there_already() -> None:
    out = _run(
        "from transformers import Trainer, BertModel; import hf_lora\n"
        "print(hasattr(Trainer.__init__, '_hf_lora_original'), "
        "hasattr(BertModel.from_pretrained.__func__, '_hf_lora_original'))"
    )
    assert out.split() == ["True", "True"]


def _parameters(method: Callable[..., object]) -> list[str]:
    return list(inspect.signature(inspect.unwrap(method)).parameters)


def test_the_trainers_seams_take_what_the_hooks_pass_on() -> None:
    from transformers import Trainer

    assert _parameters(Trainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    assert _parameters(Trainer._load_best_model) == ["self"]
    assert _parameters(Trainer._push_from_checkpoint) == ["self", "checkpoint_folder"]
    assert set(_parameters(Trainer.init_hf_repo)) - {"private"} == {"self", "token"}
    wanted = {"self", "commit_message", "blocking", "token", "revision", "kwargs"}
    assert set(_parameters(Trainer.push_to_hub)) - {"private"} == wanted


def test_the_models_card_is_asked_for_with_what_the_hook_knows() -> None:
    from transformers import Trainer

    from .peek import facts_of

    given = {"language", "license", "tags", "model_name", "tasks", "dataset_tags", "dataset", "dataset_args"}
    assert set(_parameters(Trainer.create_model_card)) == {"self", "finetuned_from", *given}
    assert given - {"language", "license", "tags"} <= set(_parameters(facts_of))


def test_the_trainer_calls_its_seams_where_the_hooks_expect_it() -> None:
    """Made by hand: the repo before training, a push after each save."""
    from transformers import Trainer

    def body(name: str) -> str:
        return inspect.getsource(inspect.unwrap(getattr(Trainer, name)))

    assert "self.init_hf_repo()" in body("__init__")
    assert "self.save_model(output_dir, _internal_call=True)" in body("_save_checkpoint")
    assert "self._push_from_checkpoint(output_dir)" in body("_save_checkpoint")
    assert "self.push_to_hub(" in body("save_model")
    assert "create_repo" in body("init_hf_repo")
    assert "self.hub_model_id = " in body("init_hf_repo")


def test_what_the_hooks_read_of_a_trainer_is_where_they_read_it() -> None:
    from transformers import TrainerState, TrainingArguments
    from transformers.modelcard import extract_hyperparameters_from_trainer
    from transformers.utils.hub import PushInProgress

    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {"hub_token", "hub_strategy", "hub_revision", "hub_always_push", "save_strategy", "output_dir"} <= fields
    fields = {field.name for field in dataclasses.fields(TrainerState)}
    assert {"best_model_checkpoint", "best_global_step", "best_metric", "log_history", "global_step"} <= fields
    assert list(inspect.signature(extract_hyperparameters_from_trainer).parameters) == ["trainer"]
    assert PushInProgress([]).is_done()


def test_every_auto_class_finds_adapters_and_is_itself_again_when_uninstalled() -> None:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto import modeling_auto

    def classes(cls: type) -> list[type]:
        return [cls, *(found for sub in cls.__subclasses__() for found in classes(sub))]

    auto = [c for c in classes(modeling_auto._BaseAutoModelClass) if "from_pretrained" in vars(c)]
    assert AutoModelForCausalLM in auto
    assert all(hasattr(c.from_pretrained.__func__, MARK) for c in auto)
    documents = [c.from_pretrained.__doc__ for c in auto]
    method = modeling_auto._BaseAutoModelClass.from_pretrained.__func__
    assert _parameters(method) == ["cls", "pretrained_model_name_or_path", "model_args", "kwargs"]
    hooks.uninstall()
    try:
        assert not any(hasattr(c.from_pretrained.__func__, MARK) for c in auto)
        assert [c.from_pretrained.__doc__ for c in auto] == documents
    finally:
        hooks.install()
    assert all(hasattr(c.from_pretrained.__func__, MARK) for c in auto)


def test_peft_s_presence_is_asked_of_transformers() -> None:
    from transformers.utils import is_peft_available

    assert is_peft_available() is True


def test_the_pipeline_that_was_imported_before_is_patched_and_itself_again_when_uninstalled() -> None:
    from transformers import pipeline, pipelines

    assert pipeline is pipelines.pipeline
    parameters, original = inspect.signature(pipeline), getattr(pipeline, MARK)
    assert parameters == inspect.signature(original)
    assert pipeline.__code__ is not original.__code__
    hooks.uninstall()
    try:
        assert pipeline.__code__ is original.__code__
        assert inspect.signature(pipeline) == parameters
        assert pipeline.__defaults__ == original.__defaults__
        assert not hasattr(pipeline, MARK)
    finally:
        hooks.install()
    assert pipeline.__code__ is not original.__code__


def test_the_pipeline_has_what_its_hook_reads() -> None:
    from transformers import Pipeline, pipeline, pipelines

    from .peek import _COMPONENTS

    parameters = set(inspect.signature(pipeline).parameters)
    assert {"task", "model", "config", "revision", "token", "trust_remote_code", "device_map", "dtype"} <= parameters
    assert {"model_kwargs", "pipeline_class", "use_fast", "kwargs"} <= parameters
    assert _COMPONENTS.keys() - parameters <= {"video_processor"}, "which Transformers 5.0 does not take"
    assert all(hasattr(Pipeline, f"_load_{kind}") for kind in _COMPONENTS.keys() & parameters)
    known = pipelines.check_task("text-classification")[1]
    assert known is pipelines.SUPPORTED_TASKS["text-classification"]
    assert [cls.__name__ for cls in known["pt"]] == ["AutoModelForSequenceClassification"]


def test_every_adapter_seam_of_a_transformers_model_is_overridden() -> None:
    """What a PreTrainedModel does about adapters, it does through PEFT; a seam left over would ask for PEFT."""
    from transformers import BertModel
    from transformers.integrations.peft import PeftAdapterMixin

    from hf_lora import LoRAModel

    from .peek import refined

    seams = {n for n, v in vars(PeftAdapterMixin).items() if inspect.isfunction(v) and not n.startswith("_")}
    front = refined(LoRAModel, BertModel)
    left = [n for n in seams - {"enable_peft_hotswap"} if not getattr(front, n).__module__.startswith("hf_lora.")]
    assert not left


def test_accelerates_hook_keeps_its_forward_where_it_is_rebound() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    layer = add_hook_to_module(nn.Linear(2, 2), ModelHook())
    assert layer._old_forward.__func__ is nn.Linear.forward
    assert layer._hf_hook is not None


def test_torchs_convolutions_compute_with_any_weight_they_are_given() -> None:
    conv, x = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), torch.randn(1, 2, 5, 5)
    assert torch.equal(conv._conv_forward(x, conv.weight, conv.bias), conv(x))


def test_loading_says_what_it_newly_initialised(tmp_path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=8)
    BertModel(config).save_pretrained(tmp_path)
    _, info = BertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}


def test_experts_say_which_way_round_they_lie() -> None:
    from transformers import GptOssConfig, MixtralConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    sizes = {"hidden_size": 6, "intermediate_size": 10, "num_local_experts": 3}
    with torch.device("meta"):
        straight, turned = MixtralExperts(MixtralConfig(**sizes)), GptOssExperts(GptOssConfig(**sizes))
    assert not getattr(straight, "is_transposed", False)
    assert straight.down_proj.shape == (3, 6, 10)
    assert getattr(turned, "is_transposed", False)
    assert turned.down_proj.shape == (3, 10, 6)


def test_patches_apply_once() -> None:
    from transformers import Trainer

    before = Trainer.train
    hooks.install()
    assert Trainer.train is before
    assert not hasattr(getattr(before, MARK), MARK)


def test_uninstalling_takes_every_patch_back_and_installing_applies_them_again() -> None:
    from transformers import PreTrainedModel, Trainer

    def patched() -> list[bool]:
        methods = [Trainer.__init__, Trainer.train, Trainer.push_to_hub]
        return [hasattr(method, MARK) for method in [*methods, PreTrainedModel.from_pretrained.__func__]]

    assert all(patched())
    hooks.uninstall()
    try:
        assert not any(patched())
    finally:
        hooks.install()
    assert all(patched())
