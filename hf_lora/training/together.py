"""Many adapters trained in one pass over their base, each as the stock Trainer would train it alone.

Every run has a Trainer, a twin of the model (`model/twins.py`) and a thread of its own; only the forward and backward
of what lies below the heads are computed for all of them at once (`joint.py`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments, set_seed

from ..errors import AdapterFileError, ArgumentError, some
from ..model import twins
from ..model.creating import leave
from ..model.lora_model import LoRAModel
from ..model.report import aligned
from ..model.selecting import check_name, delete, set_requires_grad
from .joint import Joint
from .runs import Row, Run, check_settings, choices, finished, prepared, training_of
from .turns import Training, in_turns


class Results(list[Row]):
    """A row a run: name, steps, train_loss, its metrics, best_step (None unless one was chosen) and path.

    Printed as a table; `pandas.DataFrame(results)` takes it as it is.
    """

    def __str__(self) -> str:
        names = list(dict.fromkeys(key for row in self for key in row))
        return aligned([tuple(names), *(tuple(_cell(row.get(name)) for name in names) for row in self)])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def train_together(
    model: Any,
    runs: Mapping[str, Run],
    args: TrainingArguments,
    *,
    resume_from_checkpoint: bool = False,
    trainer_class: type[Trainer] = Trainer,
    **trainer: Any,
) -> Results:
    """Train an adapter for each run on one base, all in one batch, and return a table of the runs.

        runs = {"small": Run(LoRAConfig(r=8), learning_rate=1e-4), "wide": Run(LoRAConfig(r=32), seed=1, max_steps=500)}
        results = train_together(model, runs, args, train_dataset=ds, eval_dataset=held_out, compute_metrics=metrics)

    Each ends where `set_seed(seed); Trainer(LoRAModel.from_model(model, config), ...).train()` would have ended, up to
    the rounding of other batch shapes; dropout draws for each run what it would draw alone.
    model: a Transformers model, or a LoRAModel, whose own adapters are left alone; at the end it has an adapter for
    each run besides, none of them selected. args: what the runs do not set themselves; the run "a" writes into the
    folder "a" of its output_dir: checkpoints, and at the end the adapter. trainer: what all Trainers are given.
    resume_from_checkpoint: go on from each run's own last checkpoint; a run that was over is not trained again, and
        refused where its settings changed since.
    Raises ConfigError, AdapterNameError, AdapterFileError and what adding the adapters raises, before anything trains;
    later what a run raises. The model is as it was then.
    """
    folders = _checked(runs, args, trainer, resume_from_checkpoint)
    chosen = {name: choices(name, run, args) for name, run in runs.items()}
    rows = {name: row for name, folder in folders.items() if (row := finished(folder, chosen[name])) is not None}
    with _carrier(model, list(runs)) as carrier:
        if any(p.device != args.device for p in carrier.parameters()):  # a quantised one refuses to be moved
            carrier.to(args.device)
        twin_of: dict[str, Any] = {}
        trainings: list[Training] = []
        for name, run in runs.items():
            set_seed(run.settings.get("seed", args.seed))
            twin = twin_of[name] = twins.twin(carrier, run.config, name)
            if name in rows:
                twin.load_weights(folders[name])
                continue
            made = prepared(name, run, twin, args, trainer, trainer_class)
            resumes = resume_from_checkpoint and any(folders[name].glob("checkpoint-*"))
            trainings.append(training_of(name, made, resumes, rows, chosen[name]))
        for name, twin in twin_of.items():
            twins.share(carrier, twin, name)
        in_turns(trainings, Joint(carrier).serve)
    return Results(rows[name] for name in runs)


@contextmanager
def _carrier(model: Any, names: list[str]) -> Iterator[Any]:
    """Have a model carry the adapters of runs after a `with` block, selected as before; where it raises, none."""
    was_plain = not isinstance(model, LoRAModel)
    carrier = twins.carrier_of(model)
    config: Any = getattr(carrier, "config", None)
    cached = getattr(config, "use_cache", None)
    try:
        if cached is not None:
            config.use_cache = False  # a Trainer's own choice for its model
        yield carrier
        set_requires_grad(carrier._lora, names, False)
    except BaseException:
        delete(carrier._lora, [name for name in names if name in carrier._lora.records])
        if was_plain:
            leave(carrier)
        raise
    finally:
        if cached is not None:
            config.use_cache = cached


def _checked(runs: Any, args: Any, trainer: Mapping[str, Any], resumes: bool) -> dict[str, Path]:
    """Return the folder of each run. Raises ConfigError, AdapterNameError, AdapterFileError."""
    if not isinstance(runs, Mapping) or not runs or not all(isinstance(run, Run) for run in runs.values()):
        raise ArgumentError(
            f"the runs: {runs!r:.200}; what is wanted is a mapping of names to runs, {{'small': Run(LoRAConfig(r=8))}}."
        )
    if not isinstance(args, TrainingArguments):
        raise ArgumentError(f"args: a {type(args).__name__}; what is wanted is a TrainingArguments.")
    taken: set[str] = set()
    for name in runs:
        check_name(name, taken)
        taken.add(name)
    check_settings("train_together", trainer)
    folders = {name: Path(str(args.output_dir), name) for name in runs}
    used = [folder for folder in folders.values() if folder.exists() and any(folder.iterdir())]
    if used and not resumes:
        raise AdapterFileError(
            f"{some(used)}: a run has written there. Pass resume_from_checkpoint=True to go on with it, or give "
            "another output_dir."
        )
    if resumes and not any(folder.exists() for folder in folders.values()):
        raise AdapterFileError(f"no run has begun in {args.output_dir}, so there is nothing to resume.")
    return folders
