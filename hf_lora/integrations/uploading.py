"""What a Trainer of a LoRAModel pushes to the Hub: the adapter, its card, the tokenizer, and what resuming needs.

Its saves go one after the other in the background; the newest is never lost, and failures are kept to be told.
"""

import concurrent.futures
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import run_as_future

from ..files.privacy import public_base
from ..hub import uploads
from ..hub.card.metadata import joined
from ..model.publishing import refuse_base_repo
from .cards import facts_of, write_cards

_STAGED = "_push-"  # the beginning of a staged folder's name; what begins with "_" Transformers never uploads


def push(
    trainer: Any, model: Any, message: str, blocking: bool, token: str | None, revision: str | None, **card: Any
) -> Any:
    """Push the adapter in the Trainer's folder, now or in the background; return what Trainer.push_to_hub returns.

    card: what Trainer.create_model_card takes. Raises HubError where `blocking`.
    """
    if tags := joined(card.get("tags"), getattr(trainer.model, "model_tags", None)):
        card["tags"] = tags
    trainer.create_model_card(model_name=card.pop("model_name", None) or trainer.hub_model_id.split("/")[-1], **card)
    settle(trainer)
    folder, upload = _staged(model, trainer, Path(trainer.args.output_dir)), _uploader(trainer, token, revision)

    def push_now() -> Any:
        with folder:
            return upload(Path(folder.name), message)

    return push_now() if blocking else run_as_future(push_now)


def offer(trainer: Any, model: Any, checkpoint: Path) -> None:
    """Push a checkpoint in the background; a save that finds a push in flight waits for it."""
    from transformers.utils.hub import PushInProgress  # not above: only a push needs it

    if "_hf_lora_pushes" not in trainer.__dict__:
        trainer._hf_lora_pushes = Pushes(_uploader(trainer), trainer.args.hub_always_push)
    queue: Pushes = trainer._hf_lora_pushes
    epochs = trainer.args.save_strategy == "epoch"
    when = f"epoch {int(trainer.state.epoch)}" if epochs else f"step {trainer.state.global_step}"
    try:
        folder = _staged(model, trainer, checkpoint, trainer.args.hub_strategy)
    except (OSError, ValueError) as error:  # a full disk, a base renamed to a local one: the training goes on
        queue.miss(when, error)
        return
    queue.offer(Job(folder, f"Training in progress, {when}"))
    futures: Any = queue.futures  # annotated as one future there
    trainer.push_in_progress = PushInProgress(futures)  # where Transformers itself, and others, look


def settle(trainer: Any) -> None:
    """Wait until every push has ended, what was put off included, and warn of those that failed."""
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


def check_bases(model: Any) -> None:
    """Raise ModelError where an adapter's base is known by no public name."""
    for name, config in model.peft_config.items():
        way = f"before making the Trainer, set model.peft_config[{name!r}].base_model_name_or_path = 'org/name'"
        public_base(config.base_model_name_or_path, None, f"the adapter {name!r}", way)


def check_repo(model: Any, repo_id: str) -> None:
    """Raise ModelError where the repo that is pushed to is a base's own."""
    refuse_base_repo(repo_id, [config.base_model_name_or_path for config in model.peft_config.values()])


def _uploader(trainer: Any, token: str | None = None, revision: str | None = None) -> Callable[[Path, str], Any]:
    token, revision, repo = token or trainer.args.hub_token, revision or trainer.args.hub_revision, trainer.hub_model_id
    return lambda folder, message: uploads.commit(folder, repo, uploads.Commit(message, None, None, token, revision))


def _staged(model: Any, trainer: Any, source: Path, strategy: str = "end") -> TemporaryDirectory[str]:
    """Return a new folder with what goes to the Hub, of the adapter saved in `source`; raises LoRAError, OSError."""
    check_bases(model)
    output, names = Path(trainer.args.output_dir), list(model.peft_config)
    private = uploads.private_names(output)
    staged = TemporaryDirectory(prefix=_STAGED, dir=output, ignore_cleanup_errors=True)
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


class Job(NamedTuple):
    """What is to be pushed: a staged folder, which is removed once it has arrived, and the commit's message."""

    folder: TemporaryDirectory[str]
    message: str


class Pushes:
    """The pushes of one Trainer.

    upload: takes a staged folder and a commit message; it is called in another thread, huggingface_hub's own, which
    does one thing after the other. always: every save is pushed on its own; otherwise a save that finds a push in
    flight waits, and a newer one takes its place, along with the checkpoint folders that it brought. What fails waits
    too. failures: (message, error) of what went wrong so far.
    """

    def __init__(self, upload: Callable[[Path, str], Any], always: bool = False) -> None:
        self.failures: list[tuple[str, BaseException]] = []
        self.futures: list[concurrent.futures.Future[Any]] = []
        self._upload, self._always = upload, always
        self._waiting: list[Job] = []  # oldest first
        self._missed = False
        self._lock = threading.Lock()

    def offer(self, job: Job) -> None:
        """Push a staged folder, now or as soon as the Hub has the one before it."""
        self._missed = False
        with self._lock:
            self._waiting = self._kept([*self._waiting, job])
        self.futures = [*(future for future in self.futures if not future.done()), run_as_future(self._push_next)]

    def miss(self, message: str, error: BaseException) -> None:
        """Note a save that could not even be staged; until another is offered, the newest is not on the Hub."""
        self.failures.append((message, error))
        self._missed = True

    def settle(self) -> bool:
        """Wait until everything has arrived; what has failed is pushed once more and then given up.

        Returns whether the newest save is on the Hub.
        """
        concurrent.futures.wait(self.futures)
        if self._waiting:
            self._waiting = [_joined(self._waiting)]
            self._push_next()
        arrived = not self._waiting and not self._missed
        while self._waiting:
            self._waiting.pop().folder.cleanup()
        return arrived

    def _push_next(self) -> None:
        with self._lock:
            if not self._waiting:  # a newer one has brought it
                return
            job = self._waiting.pop(0)
        try:
            self._upload(Path(job.folder.name), job.message)
        except Exception as error:
            self.failures.append((job.message, error))
            with self._lock:
                self._waiting = self._kept([job, *self._waiting])
        else:
            job.folder.cleanup()

    def _kept(self, jobs: list[Job]) -> list[Job]:
        return jobs if self._always else [_joined(jobs)]


def _joined(jobs: list[Job]) -> Job:
    """Return the newest of some jobs, which now brings the checkpoints of the older ones too."""
    *older, newest = jobs
    for job in older:
        for folder in Path(job.folder.name).glob("checkpoint-*"):
            if not (place := Path(newest.folder.name, folder.name)).exists():
                folder.rename(place)
        job.folder.cleanup()
    return newest
