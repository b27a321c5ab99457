"""One run of several: its settings, and the stock Trainer that trains its adapter while others train theirs."""

import copy
import dataclasses
import difflib
import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from ..config.lora_config import LoRAConfig
from ..config.words import OTHER_NAMES
from ..errors import AdapterFileError, ConfigError, some
from ..files.disk import write_atomically
from ..model.arguments import as_config
from ..model.hints import SETTINGS
from ..model.twins import trunks
from .calls import ALONE, Backward, Call
from .turns import Training, World

Row = dict[str, Any]
_RESULT = "run_result.json"  # in a run's folder, written last
_CHOICES = "choices"  # in that file, beside the row
_FIELDS = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
# What a Trainer is given besides: the model, and what is made for it, is not a run's to choose.
_TRAINER = set(inspect.signature(Trainer.__init__).parameters) - {"self", "model", "args", "model_init", "optimizers"}
_MEANT = {
    "batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs", "lr": "learning_rate",
    "optimizers": "optimizer_cls_and_kwargs", "steps": "max_steps", "tokenizer": "processing_class",
}  # fmt: skip
# Arguments that decide where a training ends.
_DECISIVE = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "data_seed", "gradient_accumulation_steps", "label_smoothing_factor",
    "learning_rate", "lr_scheduler_type", "max_grad_norm", "max_steps", "num_train_epochs", "optim",
    "per_device_train_batch_size", "seed", "warmup_steps", "weight_decay",
)  # fmt: skip

_TIMES = ("_runtime", "_per_second", "_preparation_time")  # of metrics, which say nothing of a run
_OF_THE_LOSS = ("num_items_in_batch",)  # which models hand to their trunk as well


# Settings that reach past a run's own adapter, or into the backward pass of all: when they do, and why not.
_REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "fsdp": (lambda args: args.fsdp, "the base is not sharded here"),
    "deepspeed": (lambda args: args.deepspeed, "its engine takes the model over"),
    "several processes": (lambda args: args.world_size > 1, "one process trains all runs"),
    "several GPUs": (lambda args: args.n_gpu > 1, "one trains all runs: let CUDA_VISIBLE_DEVICES name it"),
    "torch_compile": (lambda args: args.torch_compile, "a compiled model cannot tell rows apart"),
    "use_liger_kernel": (lambda args: getattr(args, "use_liger_kernel", False), "it changes classes, not models"),
    "neftune_noise_alpha": (lambda args: args.neftune_noise_alpha, "its noise would not reach the batch of all runs"),
    "auto_find_batch_size": (lambda args: args.auto_find_batch_size, "a run cannot begin anew while others train"),
    "push_to_hub": (lambda args: args.push_to_hub, "push what you choose: model.push_to_hub(repo, adapter_name=)"),
    "enable_jit_checkpoint": (lambda args: getattr(args, "enable_jit_checkpoint", False), "signals reach one thread"),
    "optim": (lambda args: "lomo" in args.optim or "layerwise" in args.optim, "it steps in the backward pass of all"),
    "report_to": (lambda args: {*args.report_to} - {"none", "tensorboard"}, "only TensorBoard has a run a Trainer"),
}


class Run:
    """One of several trainings of `train_together`: an adapter's config, and what its training has of its own.

        Run(LoRAConfig(r=8), train_dataset=ds, learning_rate=1e-4, seed=1)

    settings: any field of TrainingArguments but output_dir, and what a Trainer is given: train_dataset, eval_dataset,
    data_collator, compute_metrics, callbacks, ... They go before what all runs are given.
    Raises ConfigError for names that are neither.
    """

    def __init__(self, lora_config: LoRAConfig | None = None, **settings: Any) -> None:
        self.config, self.settings = as_config(lora_config), settings
        check_settings("Run", settings, _FIELDS | _TRAINER)

    def __repr__(self) -> str:
        return f"Run({', '.join([repr(self.config), *(f'{k}={v!r:.60}' for k, v in self.settings.items())])})"


def check_settings(what: str, given: Collection[str], known: Collection[str] = _TRAINER) -> None:
    """Raise ConfigError for names that are no setting, with the nearest that are; by default of a Trainer."""
    if "output_dir" in given:
        raise ConfigError(
            f"{what}(output_dir=): each run writes into a folder of its name in the arguments' output_dir."
        )
    problems = []
    for name in given:
        if name in known:
            continue
        if name in _FIELDS:
            hint = f"of the arguments, or of one run, Run({name}=...)"
        elif name in SETTINGS | OTHER_NAMES.keys():
            hint = f"of the adapter, LoRAConfig({OTHER_NAMES.get(name, name)}=...)"
        else:
            near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, sorted(known), 3, 0.5)
            hint = f"near: {', '.join(near)}" if near else ""
        problems.append(f"{name!r} ({hint})" if hint else repr(name))
    if problems:
        raise ConfigError(
            f"{what}: {', '.join(problems)} is no setting of a run here. A run takes the fields of TrainingArguments "
            "and what a Trainer is given; all runs together take the latter."
        )


class _Joined:
    """Above a Trainer: it waits after each step's backward for the gradients that all runs' batch brings."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        training: Training = self.training  # type: ignore[attr-defined]
        training.check()
        if not training.is_alone:
            training.wait_for(Backward())
        return loss


@functools.cache
def _joined(cls: type) -> type:
    return type(cls.__name__, (_Joined, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


class _Tells(TrainerCallback):
    """Prints what a run logs, with its name: several progress bars in one terminal are none."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print a log."""
        print(f"{self.name}: {logs}", flush=True)


def _arguments(name: str, run: Run, args: TrainingArguments) -> TrainingArguments:
    settings = {key: value for key, value in run.settings.items() if key in _FIELDS}
    return dataclasses.replace(args, output_dir=str(Path(str(args.output_dir), name)), **settings)


def choices(name: str, run: Run, args: TrainingArguments) -> Row:
    """Return what decides where a run ends, as JSON has it, but for its data. args: what all runs are given."""
    own = _arguments(name, run, args)
    chosen = {each: getattr(own, each) for each in _DECISIVE}
    chosen |= {f.name: getattr(run.config, f.name) for f in dataclasses.fields(run.config)}
    return {key: json.loads(json.dumps(value, default=str)) for key, value in chosen.items()}


def prepared(
    name: str, run: Run, twin: Any, args: TrainingArguments, trainer: Mapping[str, Any], cls: type[Trainer]
) -> Trainer:
    """Return the Trainer of a run. args, trainer: what all runs are given; cls: the Trainer's class."""
    chosen, own = {**trainer, **run.settings}, _arguments(name, run, args)
    given = {key: value for key, value in chosen.items() if key not in _FIELDS}
    tokenizers = [given.get("processing_class"), getattr(given.get("data_collator"), "tokenizer", None)]
    memo = {id(each): each for each in tokenizers if each is not None}
    for key in ("callbacks", "compute_metrics", "data_collator"):  # each run's own, since they may keep what they saw
        if given.get(key) is not None:
            given[key] = copy.deepcopy(given[key], memo)
    if given.get("train_dataset") is None:
        raise ConfigError(f"the run {name!r} has no train_dataset: give it to the run, or to all of them.")
    if why := [f"{setting}: {reason}" for setting, (is_so, reason) in _REFUSED.items() if is_so(own)]:
        raise ConfigError(f"the run {name!r} cannot train together with others: {'; '.join(why)}.")
    result: Trainer = _joined(cls)(  # type: ignore[arg-type]
        model=twin, args=own, **given
    )
    for callback in (PrinterCallback, ProgressCallback):
        result.remove_callback(callback)
    result.add_callback(_Tells(name))
    return result


def finished(folder: Path, chosen: Row) -> Row | None:
    """Return the row of a run that is over, None of one that is not; chosen: what `choices` returned for it.

    Raises AdapterFileError where it was trained with other settings.
    """
    path = folder / _RESULT
    if not path.exists():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    then = row.pop(_CHOICES)
    if others := [f"{key}={then[key]!r}, not {now!r}" for key, now in chosen.items() if then.get(key, now) != now]:
        raise AdapterFileError(
            f"{folder}: the run is over, and had {some(others, 6)}. A run that is over is not trained again: give it "
            "another name, or remove the folder."
        )
    return {**row, "path": str(folder)}


def training_of(name: str, trainer: Trainer, resumes: bool, rows: dict[str, Row], chosen: Row) -> Training:
    """Return a run's training: its trunk waits for the others' wherever it computes; `rows` gets its row at the end.

    chosen: what `choices` returned for it.
    """

    def work() -> None:
        trainer.train(resume_from_checkpoint=resumes)
        rows[name] = _ended(name, trainer, chosen)

    training = Training(name, World(trainer.args.device), work)
    trainer.training = training  # type: ignore[attr-defined]
    twin: Any = trainer.model
    for trunk in trunks(twin):
        _intercept(training, trunk, twin.get_submodule(trunk))
    return training


def _intercept(training: Training, trunk: str, module: Any) -> None:
    """Have a module of a twin be computed with those of the others."""
    compute, signature = module.forward, inspect.signature(module.forward)
    kwargs = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    takes = frozenset(signature.parameters)

    @functools.wraps(compute)
    def forward(*given: Any, **named: Any) -> Any:
        training.check()
        if training.is_alone:
            return compute(*given, **named)
        arguments = signature.bind(*given, **named).arguments
        arguments |= arguments.pop(kwargs, {})
        arguments = {key: value for key, value in arguments.items() if key not in _OF_THE_LOSS}
        answer = training.wait_for(Call(training, trunk, module, compute, arguments, takes))
        return compute(*given, **named) if answer is ALONE else answer

    module.__dict__["forward"] = forward


def _ended(name: str, trainer: Trainer, chosen: Row) -> Row:
    """Save a run's adapter, its card and its state, and return its row, which is written last."""
    args, state = trainer.args, trainer.state
    best = state.best_global_step if args.load_best_model_at_end else None
    kept = best or state.global_step
    logged = [
        each for each in state.log_history if each["step"] == kept and any(key.startswith("eval_") for key in each)
    ]
    measured = logged[-1] if logged else trainer.evaluate() if trainer.eval_dataset is not None else {}
    trained = next((each["train_loss"] for each in reversed(state.log_history) if "train_loss" in each), None)
    metrics = {k: v for k, v in measured.items() if k.startswith("eval_") and not k.endswith(_TIMES)}
    row: Row = {"name": name, "steps": state.global_step, "train_loss": trained, **metrics, "best_step": best or None}
    folder = Path(str(args.output_dir))
    trainer.save_model()
    trainer.create_model_card()
    trainer.save_state()
    write_atomically(folder / _RESULT, json.dumps({**row, _CHOICES: chosen}).encode())
    return {**row, "path": str(folder)}
