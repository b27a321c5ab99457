"""Adapters by name in Transformers' own calls: the auto classes, a model's class, pipelines; with PEFT and without.

Each is another process, without PEFT one in which nothing called peft can be imported; each one is asked several
things, because starting it costs seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2LMHeadModel,
    pipeline,
)

import hf_lora
from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import BaseMismatchError

from .cases import move
from .hub import Hub
from .peek import Source
from .tiny import IDS, edit_config, tiny
from .trainings import tokenizer

pytestmark = pytest.mark.slow

NO_PEFT = """
import sys, importlib.abc, importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "peft" else find_spec(name, *rest)
class NoPeft(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoPeft())
"""
START = """
import torch
torch.set_num_threads(1)
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
def same(model, want):
    assert not model.training
    got = model(IDS)[0]
    assert torch.allclose(got, torch.load(want), atol=1e-6), (got, want)
"""


def _run(has_peft: bool, code: str, *, env: dict[str, str] | None = None, **names: object) -> str:
    given = "".join(f"{name} = {str(value)!r}\n" for name, value in names.items())
    env = {**(env or os.environ), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ("" if has_peft else NO_PEFT) + START + given + code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


with_and_without_peft = pytest.mark.parametrize("has_peft", [True, False], ids=["PEFT", "no PEFT"])


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A classifier's adapter on a BERT, `adapter`, and the logits wanted of it, `want`; the tokenizer is the base's."""
    tiny("bert", "BertModel").save_pretrained(tmp_path / "base")
    tokenizer("good", "bad").save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2, task_type="SEQ_CLS"), num_labels=3)
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.save(model.eval()(IDS).logits, tmp_path / "want")
    return tmp_path


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """The same for a GPT-2 that writes; its adapter's folder holds a tokenizer of its own."""
    tiny("gpt2").save_pretrained(tmp_path / "gpt2_base")
    tokenizer("good", "bad").save_pretrained(tmp_path / "gpt2_base")
    model = LoRAModel.from_pretrained(tmp_path / "gpt2_base", LoRAConfig(r=2))
    move(model)
    model.save_pretrained(tmp_path / "gpt2_adapter")
    tokenizer("good", "bad", "extra").save_pretrained(tmp_path / "gpt2_adapter")
    torch.save(model.eval()(IDS).logits, tmp_path / "gpt2_want")
    return tmp_path


@with_and_without_peft
def test_a_local_adapters_name_is_a_models_name(has_peft: bool, bert: Path, gpt2: Path) -> None:
    """Transformers is imported first: nothing depends on the order.

    A whole model with an adapter beside it is its own base: `whole` differs from the base that the adapter names.
    """
    base = GPT2LMHeadModel.from_pretrained(gpt2 / "gpt2_base")
    with torch.no_grad():
        base.transformer.h[0].mlp.c_fc.weight.mul_(2)
    shutil.copytree(gpt2 / "gpt2_adapter", gpt2 / "whole")
    base.save_pretrained(gpt2 / "whole")
    _run(
        has_peft,
        """
from pathlib import Path
from transformers import AutoModelForSequenceClassification, AutoModelForCausalLM, BertForSequenceClassification, BertModel, GPT2LMHeadModel
from transformers import pipeline
import hf_lora, pytest
root = Path(root)
for cls in (AutoModelForSequenceClassification, BertForSequenceClassification):
    model = cls.from_pretrained(root / "adapter")
    assert isinstance(model, hf_lora.LoRAModel) and isinstance(model, BertForSequenceClassification)
    assert model.config.num_labels == 3 and not any(p.requires_grad for p in model.parameters())
    same(model, root / "want")
model = AutoModelForCausalLM.from_pretrained(str(root / "gpt2_adapter"), dtype=torch.float64, adapter_name="mine")
assert model.dtype == torch.float64 and list(model.peft_config) == ["mine"]
assert type(BertModel.from_pretrained(root / "base")) is BertModel, "a base stays what it is"

for task in (None, "text-classification", "sentiment-analysis"):
    pipe = pipeline(task, model=str(root / "adapter"), device="cpu")
    assert isinstance(pipe.model, hf_lora.LoRAModel) and pipe.task in ("text-classification", "sentiment-analysis")
    assert len(pipe("good bad", top_k=None)) == 3 and len(pipe.tokenizer) == 5, "the base's"
pipe = pipeline(model=root / "gpt2_adapter", device="cpu", dtype=torch.float64)
assert pipe.task == "text-generation" and len(pipe.tokenizer) == 6 and pipe.model.dtype == torch.float64
assert pipe("good bad", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("good bad")
pipe = pipeline("text-generation", model=root / "gpt2_adapter", device="cpu", tokenizer=str(root / "gpt2_base"))
assert len(pipe.tokenizer) == 5, "the one that was named"
with pytest.raises(TypeError, match="'task'"):
    pipeline("text-generation", task="text-generation")

plain = GPT2LMHeadModel.from_pretrained(root / "gpt2_base")
for cls in (AutoModelForCausalLM, GPT2LMHeadModel):
    model = cls.from_pretrained(root / "whole")
    assert isinstance(model, hf_lora.LoRAModel) and list(model.peft_config) == ["default"]
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, 2 * plain.transformer.h[0].mlp.c_fc.weight)

for bad, what in (({"lora_config": hf_lora.LoRAConfig()}, "lora_config"), ({"output_loading_info": True}, "output_loading_info")):
    with pytest.raises(hf_lora.errors.ModelError, match=what):
        BertForSequenceClassification.from_pretrained(root / "adapter", **bad)
""",
        root=bert,
    )


def _on_the_hub(hub: Hub, bert: Path) -> str:
    """Put the adapter and its base on the Hub, the adapter's main damaged and a revision right; return that."""
    hub.add("org/base", bert / "base")
    hub.add("me/adapter", {})  # a sha tells nothing but how many commits were before
    edit_config(bert / "adapter", base_model_name_or_path="org/base")
    right = hub.add("me/adapter", bert / "adapter", private=True)
    hub.add("me/adapter", {"adapter_model.safetensors": b"damaged"}, private=True)
    return right


AT_ONCE = """
import time
import hf_lora
from transformers import AutoModel, BertModel
slept, sleep = [], time.sleep
time.sleep = slept.append
assert type(AutoModel.from_pretrained("org/base")) is BertModel
assert type(BertModel.from_pretrained("org/base")) is BertModel
assert not slept, slept
time.sleep = sleep
"""


@with_and_without_peft
def test_a_hub_adapters_revision_and_token_find_it_and_leave_the_base_alone(
    has_peft: bool, bert: Path, hub: Hub
) -> None:
    """And a cached base loads at once where the Hub cannot be reached: Transformers' own question for an adapter would
    try again for half a minute.
    """
    right = _on_the_hub(hub, bert)
    _run(
        has_peft,
        AT_ONCE
        + """
import os
from pathlib import Path
import hf_lora, pytest
from transformers import AutoModel, AutoModelForSequenceClassification as Auto, BertForSequenceClassification, BertModel, pipeline
token = os.environ.pop("HF_TOKEN")
root = Path(root)
same(Auto.from_pretrained("me/adapter", revision=right, token=token), root / "want")
same(BertForSequenceClassification.from_pretrained("me/adapter", revision=right, token=token), root / "want")
pipe = pipeline(model="me/adapter", revision=right, token=token, device="cpu")
assert pipe.task == "text-classification" and len(pipe("good bad", top_k=None)) == 3 and len(pipe.tokenizer) == 5
same(pipe.model, root / "want")
with pytest.raises(hf_lora.LoRAError):
    Auto.from_pretrained("me/adapter", token=token)
with pytest.raises(OSError):
    Auto.from_pretrained("me/nothing", token=token)
with pytest.raises(hf_lora.errors.ModelError, match="adapter_kwargs.*revision"):
    Auto.from_pretrained("me/adapter", adapter_kwargs={"revision": right}, revision=right, token=token)
from tests.peek import Source
asked, ask = [], Source.find
Source.find = lambda source, file: (asked.append(source.name), ask(source, file))[1]
assert type(AutoModel.from_pretrained("org/base")) is BertModel
pipeline("feature-extraction", model="org/base", device="cpu")
assert asked == ["org/base"] * 2, "each call asks once whether it is an adapter"
""",
        env=hub.environ(),
        root=bert,
        right=right,
    )
    assert not hub.asked(rf"/org/base/.*{right}"), "the adapter's revision is not the base's"
    assert hub.asked(rf"/me/adapter/.*{right}")
    environ = hub.environ()
    hub.close()
    _run(has_peft, AT_ONCE, env=environ)


# A task, the base's name in tiny.py and its class, what the config says, what the model is given.
SEQ, TAGS, TEXT = "text-classification", "token-classification", "text-generation"
MEMBERS = {
    "labels": (SEQ, "bert", "BertModel", {"task_type": "SEQ_CLS"}, {"id2label": {0: "bad", 1: "good"}}),
    "three labels": (SEQ, "bert", "BertModel", {"task_type": "SEQ_CLS"}, {"num_labels": 3}),
    "a tagger's head": (TAGS, "bert", "BertModel", {"task_type": "TOKEN_CLS"}, {"num_labels": 3}),
    "DoRA": (TEXT, "gpt2", "GPT2LMHeadModel", {"use_dora": True}, {}),
    "PiSSA": (TEXT, "gpt2", "GPT2LMHeadModel", {"init_lora_weights": "pissa"}, {}),
    "a tied table": (TEXT, "gpt2", "GPT2LMHeadModel", {"target_modules": ["c_attn", "wte"]}, {}),
    "new tokens": (TEXT, "gpt2", "GPT2LMHeadModel", {}, {}),
}
AUTO = {SEQ: AutoModelForSequenceClassification, TAGS: AutoModelForTokenClassification, TEXT: AutoModelForCausalLM}


@pytest.mark.filterwarnings("ignore:the base.s vocabulary was resized")
@pytest.mark.parametrize("member", MEMBERS)
def test_with_peft_installed_an_adapters_name_gives_the_model_that_was_trained(member: str, tmp_path: Path) -> None:
    task, name, cls, config, kwargs = MEMBERS[member]
    tiny(name, cls).save_pretrained(tmp_path / "base")
    if member == "new tokens":
        base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(base.config.vocab_size + 2)
        model = LoRAModel.from_model(base, LoRAConfig(r=2))
    else:
        model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2, **config), **kwargs)
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer("good", "bad").save_pretrained(tmp_path / "adapter")
    want = model.eval()(IDS).logits
    for loaded in (
        AUTO[task].from_pretrained(tmp_path / "adapter"),
        getattr(transformers, type(model).__name__).from_pretrained(str(tmp_path / "adapter")),
        pipeline(task, model=str(tmp_path / "adapter"), device="cpu").model,
        pipeline(model=tmp_path / "adapter", device="cpu").model,
    ):
        assert isinstance(loaded, LoRAModel)
        assert torch.allclose(loaded(IDS).logits, want, atol=1e-6)
        assert loaded.config.id2label == model.config.id2label


@pytest.fixture
def plain(gpt2: Path) -> Path:
    """An adapter that both load alike."""
    return gpt2 / "gpt2_adapter"


def test_adapters_are_left_to_peft_where_the_user_says_so(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "find", None)  # nothing is even looked for
    hf_lora.leave_adapters_to_peft()
    try:
        for model in (
            AutoModelForCausalLM.from_pretrained(plain),
            GPT2LMHeadModel.from_pretrained(plain),
            pipeline(TEXT, model=str(plain), tokenizer=str(plain), device="cpu").model,
        ):
            assert not isinstance(model, LoRAModel)
            assert any(".lora_A" in name for name, _ in model.named_parameters()), "PEFT's"
    finally:
        hf_lora.leave_adapters_to_peft(False)
    monkeypatch.undo()
    assert isinstance(AutoModelForCausalLM.from_pretrained(plain), LoRAModel)


def test_adapters_that_hf_lora_does_not_build_are_pefts_where_it_is_installed(tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path / "base")
    peft_model = get_peft_model(
        GPT2LMHeadModel.from_pretrained(tmp_path / "base"), IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=True)
    )
    peft_model.save_pretrained(tmp_path / "ia3")
    for cls in (AutoModelForCausalLM, GPT2LMHeadModel):
        model = cls.from_pretrained(tmp_path / "ia3")
        assert not isinstance(model, LoRAModel)
        assert any("ia3_l" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, GPT2LMHeadModel.from_pretrained, "pipeline"])
def test_a_merged_model_in_its_adapters_folder_never_gets_the_adapter_twice(load: Any, plain: Path) -> None:
    if load == "pipeline":

        def load(name: Path) -> Any:
            return pipeline(TEXT, model=str(name), tokenizer=str(name), device="cpu").model

    merged = LoRAModel.from_pretrained(plain).merge_and_unload()
    merged.save_pretrained(plain)
    with pytest.raises(BaseMismatchError, match=r"whole model that is not its base.*remove adapter_config\.json"):
        load(plain)
    alone = torch.load(plain.parent / "gpt2_want")
    assert torch.allclose(LoRAModel.from_pretrained(plain).eval()(IDS).logits, alone, atol=1e-6)
    (plain / "adapter_config.json").unlink()
    assert torch.allclose(load(plain)(IDS).logits, alone, atol=1e-5)


def test_a_whole_model_beside_an_adapter_that_names_another_base_is_said_where_nothing_tells(plain: Path) -> None:
    """PEFT notes no fingerprint of the base."""
    GPT2LMHeadModel.from_pretrained(plain.parent / "gpt2_base").save_pretrained(plain)
    tensors = load_file(plain / "adapter_model.safetensors")
    save_file(tensors, plain / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="now there twice"):
        assert isinstance(AutoModelForCausalLM.from_pretrained(plain), LoRAModel)
    edit_config(plain, base_model_name_or_path=str(plain))
    assert isinstance(AutoModelForCausalLM.from_pretrained(plain), LoRAModel)


def test_an_adapters_base_is_loaded_without_the_adapter_that_lies_beside_it(plain: Path, tmp_path: Path) -> None:
    """With PEFT, Transformers would put that one on it."""
    GPT2LMHeadModel.from_pretrained(plain.parent / "gpt2_base").save_pretrained(plain)
    model = LoRAModel.from_pretrained(plain, auto_class=AutoModelForCausalLM, base_model=str(plain))
    move(model)
    model.save_pretrained(tmp_path / "second")
    edit_config(tmp_path / "second", base_model_name_or_path=str(plain))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    assert list(loaded.peft_config) == ["default"]
    assert torch.allclose(loaded(IDS).logits, model.eval()(IDS).logits, atol=1e-6)
