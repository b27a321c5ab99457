"""The stock Trainer with a LoRAModel: resuming, the best model at the end, and what it pushes to the Hub."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cards import facts_of, write_cards
from .pushing import Job, Pushes
from .resuming import tell_missing_best
from .starting import widen
from .trained_model import for_lora, lora_model

__all__ = [
    "checks_base",
    "create_model_card",
    "finishes_pushes",
    "loads_best",
    "pushes",
    "pushes_checkpoint",
    "resumes",
    "writes_card",
]

_STAGED = "_push-"  # the beginning of a staged folder's name; what begins with "_" Transformers never uploads


def resumes(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._load_from_checkpoint: a LoRAModel's adapters are read back in place."""

    @functools.wraps(original)
    def load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        target = lora_model(self, model)
        if target is None:
            original(self, resume_from_checkpoint, model)
        else:
            widen(self, target)  # before: what is read would be rounded to the half precision that is there
            target.load_weights(resume_from_checkpoint)
            tell_missing_best(self.args, Path(resume_from_checkpoint))

    return load_from_checkpoint


def loads_best(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap Trainer._load_best_model: a LoRAModel's adapters are read back in place, whatever their names."""

    @for_lora(original)
    def load_best_model(target: Any, self: Any) -> None:
        if self.is_deepspeed_enabled:  # its engine alone knows where the pieces are
            original(self)
        else:
            target.load_weights(self.state.best_model_checkpoint)

    return load_best_model


def checks_base(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer.init_hf_repo: a base that nobody else can load is refused before anything is trained."""

    @for_lora(original)
    def init_hf_repo(target: Any, self: Any, token: str | None = None, **kwargs: Any) -> None:
        from ..files.hub_calls import Request, call

        _check_bases(target)
        repo = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        subject = Request(repo, token=token or self.args.hub_token, doing="make")
        call(lambda: original(self, token=token, **kwargs), subject)

    return init_hf_repo


def writes_card(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer.create_model_card: ours knows the adapter, keeps what its owner wrote, and names no local path."""

    return for_lora(original)(create_model_card)


def create_model_card(
    target: Any,
    trainer: Any,
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,  # the adapter's config says it
    tasks: str | list[str] | None = None,
    dataset_tags: str | list[str] | None = None,
    dataset: str | list[str] | None = None,
    dataset_args: str | list[str] | None = None,
) -> None:
    """Write the cards of a LoRAModel's adapters into the Trainer's folder, in the first process.

    target: the LoRAModel. The rest is what Trainer.create_model_card takes.
    """
    if trainer.is_world_process_zero():
        facts = facts_of(
            trainer, language=language, license=license, tags=tags, model_name=model_name, tasks=tasks, dataset=dataset,
            dataset_tags=dataset_tags, dataset_args=dataset_args,
        )  # fmt: skip
        write_cards(target, Path(trainer.args.output_dir), facts, trainer.hub_model_id)


def pushes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.push_to_hub: the adapter, its card and the tokenizer go, and nothing else that lies around.

    Raises HubError where `blocking`.
    """

    @for_lora(original)
    def push_to_hub(
        target: Any,
        self: Any,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        from huggingface_hub import run_as_future  # not above: `import hf_lora` leaves it alone

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        private = kwargs.pop("private", None)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, **({} if private is None else {"private": private}))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        tags = [kwargs["tags"]] if isinstance(kwargs.get("tags"), str) else list(kwargs.get("tags") or ())
        if tags := list(dict.fromkeys([*tags, *(getattr(self.model, "model_tags", None) or ())])):
            kwargs["tags"] = tags
        self.create_model_card(model_name=kwargs.pop("model_name", None) or self.hub_model_id.split("/")[-1], **kwargs)
        _settle(self)
        folder, upload = _staged(target, self, Path(self.args.output_dir)), _uploader(self, token, revision)

        def push() -> Any:
            with folder:
                return upload(Path(folder.name), commit_message)

        return push() if blocking else run_as_future(push)

    return push_to_hub


def pushes_checkpoint(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._push_from_checkpoint: in the background; a save that finds a push in flight waits for it."""

    @for_lora(original)
    def push_from_checkpoint(target: Any, self: Any, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == "end":
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        queue = _queue(self)
        epochs = self.args.save_strategy == "epoch"
        when = f"epoch {int(self.state.epoch)}" if epochs else f"step {self.state.global_step}"
        try:
            folder = _staged(target, self, Path(checkpoint_folder), self.args.hub_strategy)
        except (OSError, ValueError) as error:  # a full disk, a base renamed to a local one: the training goes on
            queue.miss(when, error)
            return
        queue.offer(Job(folder, f"Training in progress, {when}"))
        self.push_in_progress = _in_progress(queue)

    return push_from_checkpoint


def finishes_pushes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.train: what was put off is pushed at its end, and what failed is told."""

    @functools.wraps(original)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _settle(self)
        return result

    return train


def _settle(trainer: Any) -> None:
    """Wait until every push has ended, and warn of those that failed."""
    queue = trainer.__dict__.get("_hf_lora_pushes")
    if queue is None:
        return
    arrived = queue.settle()
    trainer.push_in_progress = None
    failures, queue.failures = queue.failures, []
    if failures:
        lost = "later ones arrived" if arrived else "the newest save is not on the Hub; call trainer.push_to_hub()"
        warnings.warn(
            f"{len(failures)} of the pushes to {trainer.hub_model_id} failed, {lost}. The last failure "
            f"({failures[-1][0]}): {failures[-1][1]}",
            stacklevel=4,
        )


def _queue(trainer: Any) -> Pushes:
    if "_hf_lora_pushes" not in trainer.__dict__:
        trainer._hf_lora_pushes = Pushes(_uploader(trainer), trainer.args.hub_always_push)
    return trainer._hf_lora_pushes


def _uploader(trainer: Any, token: str | None = None, revision: str | None = None) -> Callable[[Path, str], Any]:
    from ..hub import commits

    token, revision, repo = token or trainer.args.hub_token, revision or trainer.args.hub_revision, trainer.hub_model_id
    return lambda folder, message: commits.commit(folder, repo, message=message, token=token, revision=revision)


def _staged(model: Any, trainer: Any, source: Path, strategy: str = "end") -> tempfile.TemporaryDirectory[str]:
    """Return a new folder with what goes to the Hub, of the adapter saved in `source`; raises LoRAError, OSError."""
    from ..hub import uploads

    _check_bases(model)
    output, names = Path(trainer.args.output_dir), list(model.peft_config)
    private = uploads.private_names(output)
    staged = tempfile.TemporaryDirectory(prefix=_STAGED, dir=output, ignore_cleanup_errors=True)
    folder = Path(staged.name)
    try:
        processing = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
        if processing is not None:
            processing.save_pretrained(folder)
        uploads.stage_adapters(source, folder, names, cards=(output, source))
        if source != output:  # a checkpoint, which has results of its own
            write_cards(model, folder, facts_of(trainer), trainer.hub_model_id)
        uploads.scrub_configs(folder, private)
        uploads.stage_logs(output / "runs", folder / "runs", private, trainer.args.hub_token)
        if strategy in ("checkpoint", "all_checkpoints"):
            name = "last-checkpoint" if strategy == "checkpoint" else source.name
            uploads.stage_checkpoint(source, folder / name, names, private)
    except BaseException:
        staged.cleanup()
        raise
    return staged


def _check_bases(model: Any) -> None:
    """Raise ModelError where an adapter's base is known by no public name."""
    from ..files.privacy import public_base

    for name, config in model.peft_config.items():
        way = f"before making the Trainer, set model.peft_config[{name!r}].base_model_name_or_path = 'org/name'"
        public_base(config.base_model_name_or_path, None, f"the adapter {name!r}", way)


def _in_progress(queue: Pushes) -> Any:
    """Return what Transformers itself, and others, look at to know whether a push is in flight."""
    from transformers.utils.hub import PushInProgress

    futures: Any = queue.futures  # annotated as one future there
    return PushInProgress(futures)
