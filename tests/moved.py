"""Other packages as a later version may be: what hf_lora reaches into has another name there, or lies elsewhere.

`python -m tests.moved CASE` edits their sources while they are imported, does what programs with and without LoRA do,
and prints as JSON what was said, and what was not as it should be.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

TRAINER = "transformers.trainer"
# Renamed one by one they would do the same: a Trainer's training does without, or asks for each where it needs it.
ASKED_LATER = {
    "set_initial_training_values", "_load_callback_state", "evaluation_loop", "log", "_load_from_checkpoint",
    "_load_best_model", "_save_checkpoint", "save_model", "_save_optimizer_and_scheduler",
    "_load_optimizer_and_scheduler", "_hp_search_setup", "init_hf_repo", "create_model_card", "push_to_hub",
    "_push_from_checkpoint",
}  # fmt: skip

IMPORTED = (
    TRAINER, "transformers.pipelines", "peft.tuners.tuners_utils", "trl.trainer.dpo_trainer"
)  # fmt: skip
Edit = Callable[[str], str]


def renamed(*names: str) -> Edit:
    """Give methods another name, where they are defined and called."""
    return lambda source: re.sub(rf"(\bdef |\bself\.|\bsuper\(\)\.)({'|'.join(names)})\b", r"\1other_\2", source)


def inherited(cls: str, *kept: str) -> Edit:
    """Have a class inherit all it had from a new one above it; its own are only the methods that are kept."""

    def edit(source: str) -> str:
        found = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == cls)
        lines = source.splitlines()
        head, above = found.lineno - 1, f"_Above{cls}"
        body = [f"    {name} = {above}.__dict__[{name!r}]" for name in kept] or ["    pass"]
        lines[found.end_lineno : found.end_lineno] = ["", f"class {cls}({above}):", *body, ""]
        lines[head] = lines[head].replace(f"class {cls}", f"class {above}", 1)
        return "\n".join(lines)

    return edit


def no_function(name: str) -> Edit:
    """Give a function another name, where it is defined, imported and called."""
    return lambda source: re.sub(rf"\b{name}\b", f"other_{name}", source)


FIND = no_function("find_adapter_config_file")
CASES: dict[str, dict[str, Edit]] = {
    "asked_later": {
        TRAINER: lambda source: no_function("deepspeed_load_checkpoint")(renamed(*ASKED_LATER)(source)),
        "transformers.modeling_utils": inherited("PreTrainedModel"),
        "transformers.models.auto.auto_factory": lambda source: FIND(inherited("_BaseAutoModelClass")(source)),
        "transformers.pipelines": lambda source: FIND(re.sub(r"\bdef pipeline\(", "def other_pipeline(", source)),
        "transformers.pipelines.base": inherited("Pipeline"),
        "transformers.utils": FIND,
        "transformers.utils.peft_utils": FIND,
        "transformers.integrations.peft": lambda source: FIND(re.sub(r"\bdef add_a", "def other_add_a", source)),
        "transformers.integrations.deepspeed": no_function("deepspeed_load_checkpoint"),
        "accelerate.accelerator": inherited("Accelerator"),
        "peft.tuners.tuners_utils": inherited("BaseTuner"),
        "trl.trainer.base_trainer": no_function("_BaseTrainer"),
        "trl.trainer.dpo_trainer": no_function("_BaseTrainer"),
    },
    "asked_always": {TRAINER: renamed("train", "create_optimizer")},
    "constructor": {TRAINER: inherited("Trainer", "train")},
}


def edit_sources(edits: dict[str, Edit]) -> None:
    """Edit the sources of modules that are imported from now on."""
    sys.dont_write_bytecode = True
    get_code = SourceFileLoader.get_code

    def edited(self: SourceFileLoader, fullname: str) -> Any:
        if fullname not in edits:
            return get_code(self, fullname)
        before = self.get_source(fullname)
        after = edits[fullname](before)
        assert after != before
        return compile(after, self.get_filename(fullname), "exec", dont_inherit=True)

    SourceFileLoader.get_code = edited


SAID: list[tuple[str, str]] = []  # what hf_lora said of what is missing: "warning" or "error", and the text


@contextmanager
def noted() -> Iterator[list[tuple[str, str]]]:
    """Note what is said inside a `with` block, and go on after an error of this kind."""
    from hf_lora.errors import MissingExtraError

    new: list[tuple[str, str]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield new
        except MissingExtraError as error:
            new.append(("error", str(error)))
    new += [("warning", str(w.message)) for w in caught if "hf_lora needs it" in str(w.message)]
    SAID.extend(new)


def trainer(model: Any, **changes: Any) -> Any:
    """Return a Trainer of one step."""
    from . import trainings

    return trainings.trainer(model, Path(tempfile.mkdtemp()), **{"max_steps": 1, "save_strategy": "no", **changes})


def programs_without_lora() -> None:
    """Import, and train a plain model for a step with a checkpoint; the Trainer is Transformers' own."""
    from transformers import Trainer

    from .tiny import tiny

    run = trainer(tiny("gpt2"), save_strategy="steps", save_steps=1)
    (run.other_train if hasattr(run, "other_train") else run.train)()
    assert type(run) is Trainer
    assert run.state.global_step == 1
    assert list(Path(run.args.output_dir).glob("checkpoint-1/model.safetensors"))


def adapters_without_a_trainer() -> Any:
    """Add an adapter, compute, save and load it; return the model."""
    import torch

    from hf_lora import LoRAConfig, LoRAModel

    from .tiny import IDS, tiny

    with noted():
        model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, init_lora_weights=False))
    with noted() as again, tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = LoRAModel.from_pretrained(folder, base_model=tiny("gpt2"))
        assert torch.equal(loaded.eval()(IDS).logits, model.eval()(IDS).logits)
    assert not again, "it was said twice"
    return model.train()


def asked_later(model: Any) -> None:
    """Train a step, then ask for each thing that is missing."""
    from transformers import Trainer
    from trl.trainer.dpo_trainer import DPOTrainer

    from hf_lora import LoRASearch, metrics

    from .tiny import tiny

    with noted():
        run = trainer(model)
    with noted() as again:
        run.train()
    assert run.state.global_step == 1
    assert not again, "it was said twice"
    for cls, given in (
        (type("Own", (DPOTrainer,), {"__init__": Trainer.__init__}), {"model": model}),
        (Trainer, {"model": model, "compute_metrics": metrics("perplexity")}),
        (Trainer, {"model_init": LoRASearch(lambda: tiny("gpt2")).model_init}),
    ):
        with noted():
            cls(args=run.args, eval_dataset=run.eval_dataset, **given)
    for name in ("load_best_model_at_end", "push_to_hub"):
        setattr(run.args, name, True)
        with noted():
            run.train()
        setattr(run.args, name, False)
    for deepspeed, fsdp2 in ((False, False), (True, False), (False, True)):
        run.is_deepspeed_enabled, type(run.accelerator).is_fsdp2 = deepspeed, fsdp2
        with noted():
            run.train(resume_from_checkpoint="nowhere")


def asked_always(model: Any) -> None:
    """Make a Trainer, which is refused."""
    with noted():
        trainer(model)


def constructor(model: Any) -> None:
    """Train: the Trainer becomes ours at train(), since it didn't when it was made."""
    from transformers import Trainer

    run = trainer(model)
    assert type(run) is Trainer
    run.train()
    assert type(run) is not Trainer


def main(case: str) -> None:
    edit_sources(CASES[case])
    import hf_lora  # noqa: F401

    with noted() as at_import:
        for name in IMPORTED:
            if not name.startswith(("peft", "trl")) or case == "asked_later":
                importlib.import_module(name)
        programs_without_lora()
    assert not at_import
    globals()[case](adapters_without_a_trainer())
    print(json.dumps(SAID))


if __name__ == "__main__":
    main(sys.argv[1])
