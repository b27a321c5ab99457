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


CASES: dict[str, dict[str, Edit]] = {
    "asked_later": {
        TRAINER: lambda source: no_function("deepspeed_load_checkpoint")(renamed(*ASKED_LATER)(source)),
        "transformers.modeling_utils": inherited("PreTrainedModel"),
        "transformers.models.auto.auto_factory": inherited("_BaseAutoModelClass"),
        "transformers.pipelines": lambda source: re.sub(r"\bdef pipeline\(", "def other_pipeline(", source),
        "transformers.integrations.deepspeed": no_function("deepspeed_load_checkpoint"),
        "accelerate.accelerator": inherited("Accelerator"),
        "peft.tuners.tuners_utils": inherited("BaseTuner"),
        "trl.trainer.dpo_trainer": inherited("DPOTrainer"),
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


class Said:
    """What hf_lora said of what is missing, as ("warning" or "error", text)."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    @contextmanager
    def noted(self) -> Iterator[list[tuple[str, str]]]:
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
        self.all += new


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8))


def trainer(model: Any, cls: Any = None, save: str = "no", **changes: Any) -> Any:
    """Return a Trainer of one step; of `cls` where that is given."""
    from transformers import Trainer, TrainingArguments

    fixed = {"max_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 2}
    args = TrainingArguments(output_dir=tempfile.mkdtemp(), save_strategy=save, save_steps=1, **fixed)
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
    return (cls or Trainer)(model=model, args=args, train_dataset=rows, eval_dataset=rows, **changes)


def trained(run: Any) -> Any:
    """Train by whatever name the stock Trainer has for it."""
    return (run.other_train if hasattr(run, "other_train") else run.train)()


def programs_without_lora() -> None:
    """Import, and train a plain model for a step with a checkpoint; the Trainer is Transformers' own."""
    from transformers import Trainer

    run = trainer(gpt2(), save="steps")
    trained(run)
    assert type(run) is Trainer
    assert run.state.global_step == 1
    assert list(Path(run.args.output_dir).glob("checkpoint-1/model.safetensors"))


def adapters_without_a_trainer(said: Said) -> Any:
    """Add an adapter, compute, save and load it; return the model."""
    import torch

    from hf_lora import LoRAConfig, LoRAModel

    base = gpt2()
    other = gpt2()
    other.load_state_dict(base.state_dict())
    with said.noted():
        model = LoRAModel.from_model(base, LoRAConfig(r=2, init_lora_weights=False))
    with said.noted() as again, tempfile.TemporaryDirectory() as folder:
        ids = torch.tensor([[1, 2, 3]])
        model.save_pretrained(folder)
        loaded = LoRAModel.from_pretrained(folder, base_model=other)
        assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)
    assert not again, "it was said twice"
    return model.train()


def asked_later(said: Said, model: Any) -> None:
    """Train a step, then ask for each thing that is missing."""
    from transformers import Trainer
    from trl.trainer.dpo_trainer import DPOTrainer

    from hf_lora import LoRASearch, metrics

    with said.noted():
        run = trainer(model)
    with said.noted() as again:
        run.train()
    assert run.state.global_step == 1
    assert not again, "it was said twice"
    with said.noted():
        trainer(model, type("Own", (DPOTrainer,), {"__init__": Trainer.__init__}))
    with said.noted():
        trainer(model, compute_metrics=metrics("perplexity"))
    with said.noted():
        trainer(None, model_init=LoRASearch(gpt2).model_init)
    with said.noted():
        run.train(resume_from_checkpoint="nowhere")
    for name in ("load_best_model_at_end", "push_to_hub"):
        setattr(run.args, name, True)
        with said.noted():
            run.train()
        setattr(run.args, name, False)
    run.is_deepspeed_enabled = True
    with said.noted():
        run.train(resume_from_checkpoint="nowhere")
    run.is_deepspeed_enabled, type(run.accelerator).is_fsdp2 = False, True
    with said.noted():
        run.train(resume_from_checkpoint="nowhere")


def asked_always(said: Said, model: Any) -> None:
    """Make a Trainer, which is refused; ask what a push would miss besides."""
    from transformers import Trainer

    from .peek import missing

    made: list[Any] = []

    class Kept(Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(self)
            super().__init__(*args, **kwargs)

    with said.noted():
        trainer(model, Kept)
    made[0].args.push_to_hub = True
    with said.noted():
        missing.tell_of_trainer(made[0])


def constructor(said: Said, model: Any) -> None:
    """Train: the Trainer becomes ours at train(), since it didn't when it was made."""
    from transformers import Trainer

    run = trainer(model)
    assert type(run) is Trainer
    run.train()
    assert type(run) is not Trainer


def main(case: str) -> None:
    edit_sources(CASES[case])
    import hf_lora  # noqa: F401

    said = Said()
    with said.noted() as at_import:
        for name in IMPORTED:
            if not name.startswith(("peft", "trl")) or case == "asked_later":
                importlib.import_module(name)
        programs_without_lora()
    assert not at_import
    model = adapters_without_a_trainer(said)
    globals()[case](said, model)
    print(json.dumps(said.all))


if __name__ == "__main__":
    main(sys.argv[1])
