"""A run before it trains: settings, data and rows checked, then the model loaded; every setting is decided."""

from __future__ import annotations

import copy
import importlib
import itertools
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ...errors import ConfigError
from ...files.privacy import is_repo_id, public_base
from ...model.heads import label_layers
from ...model.lora_model import LoRAModel
from ...variants.initial import INITS
from ..suggesting import scaled_rate
from ..tasks.lengths import Lengths
from ..tasks.preparation import Preparation
from . import arguments
from .folder import check_output
from .rows import choose_task, known_task, model_task, part_rows, prepare, read_files
from .settings import RunSettings

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_BATCHES = 16  # that a start from data looks at, at most
_POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe")  # BERT, XLM, BART and OPT, GPT-2


@dataclass
class Plan:
    """A run that could start: `settings` are all decided, `rows` are by split ("train", "eval", "test")."""

    settings: RunSettings
    preparation: Preparation
    processor: Any
    rows: dict[str, Dataset]
    model: Any = None
    lengths: Lengths | None = None

    def __post_init__(self) -> None:
        """Make the Trainer's arguments and metrics, which need no model. Raises ConfigError."""
        names = arguments.measured_names(self.settings)
        self.arguments = arguments.training_arguments(self.settings, self.preparation)
        self.compute_metrics = self.preparation.compute_metrics(names, self.processor) if names else None

    def trainer(self, callbacks: Sequence[Any] = ()) -> Any:
        """Return the Trainer of the task. Its eval_dataset is a dict of the other splits."""
        module, _, name = self.preparation.trainer_class.rpartition(".")
        ways = {"train": self.preparation.training_dataset}
        rows = {s: ways.get(s, self.preparation.dataset)(found, self.processor) for s, found in self.rows.items()}
        reduces = getattr(self.compute_metrics, "preprocess_logits_for_metrics", None)
        with tempfile.TemporaryDirectory() as place:  # a Trainer makes its folder at once; training makes it again
            args = copy.copy(self.arguments)
            args.output_dir = place
            made = getattr(importlib.import_module(module), name)(
                model=self.model,
                args=args,
                train_dataset=rows.pop("train", None),
                eval_dataset=rows,
                data_collator=self.preparation.collator(self.processor, self.model),
                processing_class=self.processor,
                compute_metrics=self.compute_metrics,
                callbacks=list(callbacks),
                **({"preprocess_logits_for_metrics": reduces} if reduces else {}),
            )
        made.args.output_dir = self.arguments.output_dir
        return made


def plan_run(settings: RunSettings, scratch: Path, *, overwrite: bool = False, resume: bool = False) -> Plan:
    """Return the run that the settings ask for, checked as far as it goes without training. Nothing is written.

    scratch: a folder for the rows, which stays as long as the plan is used. overwrite: it may take another run's
    place. resume: it goes on with the run in its folder. Raises ConfigError, MissingExtraError, AdapterFileError for
    settings, DataError for rows, and then what loading a base raises.
    """
    settings = _checked(settings, overwrite, resume)
    rows = read_files(settings, scratch)
    task, columns, _ = choose_task(settings, rows["train"])
    preparation, processor = prepare(settings, task, columns, rows["train"])
    lengths = part_rows(rows, settings, preparation, processor)
    plan = Plan(_decided(settings, preparation), preparation, processor, rows, lengths=lengths)
    plan.model = _model(plan, settings.max_length)
    _fit(plan, plan.model, settings.max_length)
    return plan


def _fit(plan: Plan, model: Any, given: int | None) -> None:
    """Fit a loaded model and the rows to each other. given: the user's max_length."""
    plan.preparation.fit_model(model, plan.processor)
    _fit_positions(plan, model, given)


def _checked(settings: RunSettings, overwrite: bool, resume: bool) -> RunSettings:
    """Return the settings with a folder. Raises where they cannot be right, whatever the data."""
    for name in ("model", "train"):
        if not getattr(settings, name):
            raise ConfigError(f"--{name} is missing: there is nothing to train{' on' if name == 'train' else ''}.")
    if settings.task is not None:
        known_task(settings.task)
    arguments.lora_config(settings)
    arguments.base_arguments(settings)
    if settings.push:
        if not is_repo_id(settings.push):
            raise ConfigError(f"push={settings.push!r}: it has to be the name of a repo, as me/reviews-lora.")
        public_base(
            settings.model, settings.base_id, "the adapter to push", "name it on the Hub with --base-id org/name"
        )
    name = f"outputs/{Path(str(settings.train)).stem}-{Path(str(settings.model)).name}"
    settings = replace(settings, output=settings.output or name)
    if not resume:
        reads = (settings.model, settings.train, settings.eval, settings.test)
        check_output(Path(str(settings.output)), overwrite, [name for name in reads if name])
    return settings


def _model(plan: Plan, length: int | None) -> Any:
    """Return the base with a fresh adapter, which the seed and the number of threads decide.

    Where its start learns of data it learns of the run's own first batches. length: the user's max_length.
    """
    settings, preparation = plan.settings, plan.preparation
    if settings.threads:
        torch.set_num_threads(settings.threads)
    transformers.set_seed(settings.seed)
    name, made = str(settings.model), preparation.model_arguments()
    kind = model_task(name, preparation.task)
    config = arguments.lora_config(settings, kind.task_type)
    if preparation.trains_labels:  # it may know as many other labels
        base = transformers.AutoConfig.from_pretrained(name)
        layers = label_layers(getattr(transformers, kind.auto_class), base)
        config = config.copy(modules_to_save=[*(config.modules_to_save or ()), *layers])
    given = arguments.base_arguments(settings) | ({} if kind.task_type else {"auto_class": kind.auto_class})
    given |= {"ignore_mismatched_sizes": True} if made else {}  # a head for other labels gives way to a new one
    start = INITS[config.init_lora_weights].data
    if start is not None and start.reads != "weights":  # which no rows show
        given["data"] = partial(_first_batches, plan, length)
    model = LoRAModel.from_pretrained(name, config, **{**given, **made})
    _tell_useless_ranks(model)
    return model


def _tell_useless_ranks(model: Any) -> None:
    """Warn where every layer's rank is above its smaller side: B A has no more directions than that."""
    tensors = {name: each.shape for name, each in model.named_parameters() if each.requires_grad and each.dim() == 2}
    pairs = [(shape, tensors.get(name.replace("lora_A", "lora_B"))) for name, shape in tensors.items()
             if name.endswith("lora_A")]  # fmt: skip
    sides = [(a[0], min(a[1], b[0])) for a, b in pairs if b is not None]
    if sides and all(rank > side for rank, side in sides):
        most = max(side for _, side in sides)
        logger.warning(
            "--r %s is above the smaller side of every layer: their updates have %s directions at most, so --r %s does "
            "the same with fewer parameters.", max(rank for rank, _ in sides), most, most,
        )  # fmt: skip


def _first_batches(plan: Plan, length: int | None, model: Any) -> list[Any]:
    """Return the first batches that a run would train a base on."""
    _fit(plan, model, length)
    plan.model = model
    return list(itertools.islice(plan.trainer().get_train_dataloader(), _BATCHES))


def _fit_positions(plan: Plan, model: Any, given: int | None) -> None:
    """Cut rows to the positions that a base has learnt. given: the user's max_length, which is refused where it is
    more. Raises ConfigError."""
    most, options = positions_of(model), plan.preparation.options
    if most is None or (options.get("max_length") or 0) <= most:
        return
    if given is not None:
        raise ConfigError(
            f"--max-length {given}: the base {plan.settings.model} has learnt positions for {most} tokens; "
            f"take --max-length {most} or less."
        )
    options["max_length"] = most
    plan.settings = replace(plan.settings, max_length=most)


def positions_of(model: Any) -> int | None:
    """Return for how many tokens a model has positions in a table; None where it computes them."""
    tables = [
        module.num_embeddings - getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in _POSITIONS
    ]
    return min(tables, default=None)


def _decided(settings: RunSettings, preparation: Preparation) -> RunSettings:
    """Return the settings with what the task and the machine decide. The threads are timed once there is a Trainer."""
    task = preparation.task
    return replace(
        settings,
        task=task.name,
        column=preparation.columns,
        max_length=preparation.options.get("max_length"),
        learning_rate=settings.learning_rate or scaled_rate(arguments.lora_config(settings), task.learning_rate),
        epochs=settings.epochs or task.epochs,
        batch_size=settings.batch_size or task.batch_size,
        metric=settings.metric or list(preparation.metrics()),
        precision=settings.precision or arguments.precision(),
    )
