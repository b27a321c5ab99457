"""What reaches into Transformers, accelerate and torch: one test each, which fails when upstream moves."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from hf_lora import hooks


def _run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_hf_lora_imports_no_torch_and_patches_what_comes_later() -> None:
    out = _run(
        "import sys, hf_lora; assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "from transformers import Trainer, PreTrainedModel\n"
        "print(hasattr(Trainer._load_best_model, '_hf_lora_original'), "
        "hasattr(PreTrainedModel.from_pretrained.__func__, '_hf_lora_original'))"
    )
    assert out.split() == ["True", "True"]


def test_importing_hf_lora_patches_what_is_there_already() -> None:
    out = _run(
        "from transformers import Trainer, BertModel; import hf_lora\n"
        "print(hasattr(Trainer._load_from_checkpoint, '_hf_lora_original'), "
        "hasattr(BertModel.from_pretrained.__func__, '_hf_lora_original'))"
    )
    assert out.split() == ["True", "True"]


def test_a_seam_that_transformers_no_longer_has_is_an_error_that_names_it() -> None:
    module = ModuleType("transformers.trainer")
    module.Trainer = type("Trainer", (), {})
    with pytest.raises(ImportError, match=r"transformers\.trainer\.Trainer\._load_from_checkpoint"):
        hooks._patch(module)


def test_the_trainers_seams_take_what_the_hooks_pass_on() -> None:
    from transformers import Trainer

    original = Trainer._load_from_checkpoint._hf_lora_original
    assert list(inspect.signature(original).parameters) == ["self", "resume_from_checkpoint", "model"]
    assert list(inspect.signature(Trainer._load_best_model._hf_lora_original).parameters) == ["self"]


def test_every_adapter_seam_of_a_transformers_model_is_overridden() -> None:
    """What a PreTrainedModel does about adapters, it does through PEFT; a seam left over would ask for PEFT."""
    from transformers.integrations.peft import PeftAdapterMixin

    from hf_lora import LoRAModel

    seams = {n for n, v in vars(PeftAdapterMixin).items() if inspect.isfunction(v) and not n.startswith("_")}
    assert seams - {"enable_peft_hotswap"} <= set(vars(LoRAModel))


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

    before = Trainer._load_best_model
    hooks.install()
    assert Trainer._load_best_model is before
    assert not hasattr(before._hf_lora_original, "_hf_lora_original")
