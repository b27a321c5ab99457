"""The places in other packages that hf_lora reaches into: few, listed, and nothing breaks where one of them is gone."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from hf_lora import LoRAConfig, LoRAModel, metrics
from hf_lora.errors import AdapterStateError

from . import forks
from .peek import MARK, METHODS, SEAMS, facts_of, hooks, refined
from .tiny import tiny
from .trainings import Rows, gpt2, ran, trainer

pytest.importorskip("trl", reason="one of the places is TRL's")
GONE = ("asked_later", "asked_always", "constructor")


@cache
def moved(case: str) -> Any:
    """Return what `python -m tests.moved` prints of a case."""
    done = subprocess.run([sys.executable, "-m", "tests.moved", case], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("row", [*SEAMS, *METHODS], ids=lambda row: f"{row.place}-{row.purpose[:40]}")
def test_a_place_that_is_gone_is_told_where_it_is_needed_and_nowhere_else(row: Any) -> None:
    """Imports, plain Trainers and adapters without a Trainer work, as `tests/moved.py` asserts."""
    package = row.module.partition(".")[0]
    want = f"{row.place} is missing from {package} {importlib.metadata.version(package)}, and hf_lora needs it for this: {row.purpose}. "
    kinds = [[kind for kind, text in moved(case) if want in text] for case in GONE]
    assert any(kinds)
    assert {kind for each in kinds for kind in each} == {"error" if row.required else "warning"}
    assert row.required or all(len(each) <= 1 for each in kinds), "a warning comes once"


@pytest.mark.slow
def test_what_is_gone_is_told_with_the_versions_that_hf_lora_supports() -> None:
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    said = " ".join(text for case in GONE for _, text in moved(case))
    for bounds in ("transformers>=5.0,<6", "accelerate>=1.7", "peft>=0.18"):
        assert f'"{bounds}"' in pyproject
        assert f"hf_lora supports {bounds}; install that." in said
    assert "An older one may have it; install that." in said, "TRL's"


def function(method: Any) -> Any:
    return getattr(method, "__func__", method)


def test_the_installed_versions_have_every_place_and_no_other_is_patched() -> None:
    for seam in SEAMS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(seam.module)
    assert 10 <= len(SEAMS) == len({seam.place for seam in SEAMS}) <= 14
    assert not [row.place for row in METHODS if not callable(getattr(Trainer, row.path.partition(".")[2], None))]
    found = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in ("transformers", "accelerate", "peft", "trl"):
            continue
        for key, value in list(vars(module).items()):
            if MARK in getattr(value, "__dict__", {}) and value.__module__ == name:
                found.add(f"{name}.{key}")
            for inner, method in list(vars(value).items()) if isinstance(value, type) else ():
                if inner != MARK and MARK in getattr(function(method), "__dict__", {}):
                    code = function(method).__code__
                    same = [c for c in value.__mro__ if code is getattr(function(vars(c).get(inner)), "__code__", None)]
                    found.add(f"{same[-1].__module__}.{same[-1].__name__}.{inner}")  # copies below it are one place
    # The auto classes' base is written in another module than the one that is patched, after all of them.
    assert found == {seam.place.replace("auto.modeling_auto", "auto.auto_factory") for seam in SEAMS}


IMPORTS = f"""
import hf_lora
from transformers import AutoModel, BertModel, Trainer, pipeline
for place in (AutoModel.from_pretrained.__func__, BertModel.from_pretrained.__func__, Trainer.__init__, pipeline):
    assert hasattr(place, "{MARK}"), place
"""
NO_TORCH = """
import sys
import hf_lora
assert not {"torch", "transformers", "huggingface_hub"} & sys.modules.keys()
"""


@pytest.mark.slow
def test_importing_hf_lora_patches_what_comes_later_and_imports_no_torch() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", NO_TORCH + IMPORTS], check=True)


@pytest.mark.slow
def test_importing_hf_lora_patches_what_is_there(tmp_path: Path) -> None:
    first = "import warnings; warnings.simplefilter('error'); from transformers import AutoModel, BertModel, Trainer, pipeline; import sys; assert not 'hf_lora' in sys.modules"
    done = forks.run(first + IMPORTS, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_lora_model_of_a_plain_network_imports_no_models_of_transformers() -> None:
    code = """
import sys
import torch
from hf_lora import LoRAConfig, LoRAModel, add_lora
add_lora(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoRAConfig(target_modules=["0"]))
late = {"transformers.modeling_utils", "transformers.quantizers", "transformers.trainer"}  # seconds to import
assert not late & sys.modules.keys(), late & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_patches_apply_once_to_all_auto_classes_and_keep_signatures_and_documents() -> None:
    from transformers import AutoModelForCausalLM, pipelines
    from transformers.models.auto import modeling_auto

    def classes(cls: type) -> list[type]:
        return [cls, *(found for sub in cls.__subclasses__() for found in classes(sub))]

    before = Trainer.train
    hooks.install()
    assert Trainer.train is before
    assert not hasattr(getattr(before, MARK), MARK)
    auto = [c for c in classes(modeling_auto._BaseAutoModelClass) if "from_pretrained" in vars(c)]
    copies = [c.from_pretrained.__func__ for c in auto if hasattr(c.from_pretrained.__func__, MARK)]
    assert len(copies) > 20
    assert all(copy.__doc__ == function(getattr(copy, MARK)).__doc__ for copy in copies)
    assert "from_pretrained" not in vars(AutoModelForCausalLM) or AutoModelForCausalLM in auto
    assert inspect.signature(pipelines.pipeline) == inspect.signature(getattr(pipelines.pipeline, MARK))


@pytest.mark.parametrize(
    ("method", "takes"),
    {
        "_load_from_checkpoint": "self resume_from_checkpoint model",
        "_load_best_model": "self",
        "_save_checkpoint": "self model trial",
        "_push_from_checkpoint": "self checkpoint_folder",
        "init_hf_repo": "self token",
        "push_to_hub": "self commit_message blocking token revision kwargs",
        "save_model": "self output_dir _internal_call",
    }.items(),
)
def test_the_trainer_s_methods_take_what_ours_hand_on(method: str, takes: str) -> None:
    found = inspect.signature(inspect.unwrap(getattr(Trainer, method))).parameters
    assert " ".join(name for name in found if name != "private") == takes


def test_a_card_can_be_told_all_that_the_trainer_s_method_takes() -> None:
    given = set(inspect.signature(Trainer.create_model_card).parameters)
    known = {"self", "finetuned_from", "language", "license", "tags"}
    assert given == known | set(inspect.signature(facts_of).parameters) - {"trainer", "given"}


def test_every_adapter_method_of_a_transformers_model_is_overridden() -> None:
    """What a PreTrainedModel does about adapters, it does through PEFT; a method left over would ask for PEFT."""
    from transformers import BertModel
    from transformers.integrations.peft import PeftAdapterMixin

    methods = {n for n, v in vars(PeftAdapterMixin).items() if inspect.isfunction(v) and not n.startswith("_")}
    front = refined(LoRAModel, BertModel)
    assert not [n for n in methods - {"enable_peft_hotswap"} if not getattr(front, n).__module__.startswith("hf_lora.")]


def test_a_plain_model_s_trainer_keeps_its_class_and_its_methods(tmp_path: Path) -> None:
    run = ran(tiny("gpt2"), tmp_path, max_steps=1)
    assert type(run) is Trainer
    ours = [
        row.place for row in METHODS if "hf_lora" in getattr(Trainer, row.path.partition(".")[2]).__code__.co_filename
    ]
    assert set(ours) == {"transformers.trainer.Trainer.train", "transformers.trainer.Trainer.push_to_hub"}
    assert type(trainer(gpt2().unload(), tmp_path)) is Trainer


class Calls(Trainer):
    """Overrides what ours overrides, and asks the Trainer above it."""

    trained = 0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.trained += 1
        return super().train(*args, **kwargs)

    def create_optimizer(self, *args: Any) -> Any:  # Transformers 5.0 gives none
        self.before = self.optimizer
        optimizer = super().create_optimizer(*args)
        self.groups = len(optimizer.param_groups)
        return optimizer


@pytest.mark.parametrize("late", [False, True])
def test_a_user_s_override_stands_around_ours_and_finds_it_as_super(late: bool, tmp_path: Path) -> None:
    stock = trainer(tiny("gpt2"), tmp_path, max_steps=1)
    model = stock.model if late else LoRAModel.from_model(stock.model, LoRAConfig(r=2))
    run = Calls(model=model, args=stock.args, train_dataset=stock.train_dataset)
    assert (type(run) is Calls) == late
    if late:
        LoRAModel.from_model(model, LoRAConfig(r=2))
    model.set_learning_rates(loraplus_lr_ratio=4)
    run.train()
    cls = type(run)
    assert isinstance(run, Calls)
    assert (cls.__name__, cls.__qualname__, cls.__module__) == ("Calls", "Calls", __name__)
    assert type(Calls(model=model, args=stock.args)) is cls is not Calls
    assert [c for c in cls.__mro__ if "create_optimizer" in vars(c)][::2] == [Calls, Trainer]
    assert run.trained == 1
    assert run.before is None
    assert run.groups > 2, "ours did not regroup what Transformers built"


def test_a_model_that_gets_adapters_after_its_trainer_was_made_is_trained_as_one(tmp_path: Path) -> None:
    run = trainer(tiny("gpt2"), tmp_path, max_steps=2)
    assert type(run) is Trainer
    model = LoRAModel.from_model(run.model, LoRAConfig(r=2))
    model.merge_adapter()
    with pytest.raises(AdapterStateError, match="merged"):
        run.train()
    assert type(run) is not Trainer
    model.unmerge_adapter()
    run.train()
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names


def test_a_model_init_that_makes_a_loramodel_is_seen(tmp_path: Path) -> None:
    stock = trainer(tiny("gpt2"), tmp_path, max_steps=2)
    run = Trainer(model_init=lambda: gpt2(), args=stock.args, train_dataset=Rows(labels="tokens"))
    assert type(run) is not Trainer
    run.train()
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_hf_loras_metrics_alone_make_a_trainer_ours(tmp_path: Path) -> None:
    stock = trainer(tiny("gpt2"), tmp_path)
    run = Trainer(
        model=stock.model, args=stock.args, eval_dataset=stock.eval_dataset, compute_metrics=metrics("perplexity")
    )
    assert type(run) is not Trainer
    assert "eval_perplexity" in run.evaluate()
