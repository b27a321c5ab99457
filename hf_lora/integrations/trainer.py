"""The Trainer of a LoRAModel: a class with the methods below, right above the stock Trainer's.

A Trainer's class is refined in place: it inherits from its own class first and from `LoRATrainer` second. So a method
that a user's subclass overrides runs first, and its `super()` finds ours. The stock Trainer stays as it is, and so do
the Trainers of other models.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer

from ..files.hub_calls import Request, call
from ..files.privacy import hub_id
from ..layers.specialising import is_a
from ..model.saving import refuse_base_folder
from ..training.trackers import lora_scalars
from . import budgets, checkpoints, missing, optimizer, resuming, sharded, uploading
from .cards import facts_of, write_cards
from .missing import Seam
from .trained_model import lora_model, measures

METHODS: list[Seam] = []
_Stock: Any = Trainer  # whose methods need not have these very signatures


def _method(
    purpose: str,
    needed: Callable[[Any, bool], bool] = lambda trainer, resumes: True,
    *,
    required: bool = False,
    everywhere: bool = False,
) -> Callable[[Any], Any]:
    """Note what a method of the Trainer is for, as a Seam does.

    Unless `everywhere`, it is the stock Trainer's where what is trained has a LoRAModel inside, or none, and is none.
    """

    def decorate(ours: Any) -> Any:
        name = ours.__name__
        seam = Seam("transformers.trainer", f"Trainer.{name}", purpose, required=required, needed=needed)
        seam.is_missing = not callable(getattr(Trainer, name, None))
        METHODS.append(seam)

        @functools.wraps(ours)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if lora_model(self) is None:
                return getattr(super(LoRATrainer, self), name)(*args, **kwargs)
            return ours(self, *args, **kwargs)

        return ours if everywhere else method

    return decorate


def _resumes(trainer: Any, resumes: bool) -> bool:
    return resumes


def _shards(trainer: Any, resumes: bool) -> bool:
    return sharded.is_sharded(trainer)


def _pushes(trainer: Any, resumes: bool) -> bool:
    return bool(trainer.args.push_to_hub)


class LoRATrainer(_Stock):
    """What the Trainer of a LoRAModel does otherwise. Each method takes what the stock Trainer's does."""

    preprocess_logits_for_metrics: Any
    _saves_checkpoint = False
    _resumed: str | None = None

    @_method("to resume from whole checkpoints, and to finish the pushes of a training", required=True, everywhere=True)
    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        missing.tell(self, resumes=bool(resume_from_checkpoint))
        model = lora_model(self)
        self._resumed = None if model is None else resuming.choose(self, model, resume_from_checkpoint)
        result = super().train(self._resumed or resume_from_checkpoint, trial, *args, **kwargs)
        if (trained := lora_model(self)) is not None:
            optimizer.note_steps(self, trained)  # a save by the model itself knows them then
            budgets.finish(self)
        uploading.settle(self)
        return result

    @_method("to check what a trial of a LoRASearch drew", lambda it, resumes: bool(_search_of(it)), everywhere=True)
    def _hp_search_setup(self, trial: Any) -> None:
        """Check after the Trainer has cast a trial's values without a word."""
        super()._hp_search_setup(trial)
        if search := _search_of(self):
            search.check_arguments(trial if self.hp_search_backend else None, self.args)

    @_method("to refuse an adapter that cannot train before it is trained")
    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> Any:
        """Check what trains, among the first that a training asks once its model is made."""
        model = lora_model(self)
        optimizer.check_start(self, model)
        if model is not None:
            refuse_base_folder(model, Path(self.args.output_dir))
        epochs, steps_per_epoch, *others = super().set_initial_training_values(*args, **kwargs)
        done = resuming.step_of(self._resumed)
        if done >= others[-1]:  # Transformers would train one step more, where that is in the middle of an epoch
            epochs = done // steps_per_epoch
        return epochs, steps_per_epoch, *others

    @_method("to give adapters their learning rates, and to see that all train", required=True, everywhere=True)
    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        fresh, decays = self.optimizer is None, optimizer.decays_by_name(self)
        result = super().create_optimizer(*args, **kwargs)
        optimizer.settle(self, fresh, decays)
        return result

    @_method("to measure with hf_lora's metrics", lambda it, resumes: measures(it), required=True, everywhere=True)
    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """Tell hf_lora's metrics of the model, and keep no logits over a vocabulary.

        In `evaluate()` what they need of the logits takes their place, unless the user has a function for that;
        `predict()` gives its predictions to the user and keeps them whole.
        """
        metrics, reduces = self.compute_metrics, False
        if measures(self):
            generates = bool(getattr(self.args, "predict_with_generate", False))
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            metrics.begin(model, generates, getattr(dataloader, "dataset", None))
            reduces = description == "Evaluation" and self.preprocess_logits_for_metrics is None
        if reduces:
            self.preprocess_logits_for_metrics = metrics.preprocess_logits_for_metrics
        try:
            return super().evaluation_loop(dataloader, description, *args, **kwargs)
        finally:
            if reduces:
                self.preprocess_logits_for_metrics = None

    @_method("to report the adapters' norms to the trackers")
    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Give the trackers the adapters' scalars in the row of a training loss, in the first process.

        Nobody else gets them: the console, `log_history` and `trainer_state.json` stay as they are.
        """
        handler, callbacks = self.callback_handler, self.callback_handler.callbacks
        trackers = _trackers(callbacks) if "loss" in logs and self.is_world_process_zero() else []
        if not trackers:
            super().log(logs, *args, **kwargs)
            return
        try:
            handler.callbacks = [callback for callback in callbacks if callback not in trackers]
            super().log(logs, *args, **kwargs)
            handler.callbacks = trackers
            handler.on_log(self.args, self.state, self.control, {**logs, **lora_scalars(lora_model(self))})
        finally:
            handler.callbacks = callbacks

    @_method("to read a checkpoint's adapters", _resumes, required=True)
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target = lora_model(self)
        optimizer.widen(self, target)  # before: what is read would be rounded to the half precision that is there
        target.load_weights(resume_from_checkpoint)

    @_method("to find the best checkpoint of a run that was moved", _resumes)
    def _load_callback_state(self) -> None:
        if self._resumed:
            resuming.find_best(self, Path(self._resumed))
        super()._load_callback_state()

    @_method("load_best_model_at_end=True", lambda trainer, resumes: trainer.args.load_best_model_at_end, required=True)
    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:  # its engine alone knows where the pieces are
            super()._load_best_model()
        else:
            lora_model(self).load_weights(self.state.best_model_checkpoint)

    @_method("to have each checkpoint whole, or not at all, also after a kill")
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        place = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        limit, saves = self.args.save_total_limit, self.args.should_save
        self._saves_checkpoint = True
        try:
            with checkpoints.whole(place, saves, self.accelerator.wait_for_everyone):
                super()._save_checkpoint(model, trial)
                if saves:
                    budgets.save(self, place)
        finally:
            self._saves_checkpoint, self.args.save_total_limit = False, limit
        if saves:
            checkpoints.rotate(place, limit, self.state.best_model_checkpoint)

    @_method("to save adapters under FSDP2 and DeepSpeed", _shards, required=True)
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        target = lora_model(self)
        optimizer.note_steps(self, target)
        if sharded.is_sharded(self):
            tensors = sharded.gathered(target)
            if self.args.should_save:  # older versions of Trainer._save leave that to their caller
                self._save(output_dir, state_dict=tensors)
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        else:
            super().save_model(output_dir, _internal_call=_internal_call)
        if self._saves_checkpoint:
            self.args.save_total_limit = None  # training_args.bin has it; the Trainer is to remove no checkpoint

    @_method("checkpoints under FSDP2 and DeepSpeed", _shards, required=True)
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if sharded.is_fsdp2(self):
            sharded.save_whole(self, Path(output_dir))
        elif self.is_deepspeed_enabled:
            with sharded.unfrozen(self.model_wrapped):
                super()._save_optimizer_and_scheduler(output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    @_method("to resume under FSDP2", lambda trainer, resumes: resumes and sharded.is_fsdp2(trainer), required=True)
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and sharded.is_fsdp2(self):
            sharded.load_whole(self, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    @_method("to refuse a base nobody else can load before training", _pushes)
    def init_hf_repo(self, token: str | None = None, **kwargs: Any) -> None:
        uploading.check_bases(lora_model(self))
        repo = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        subject = Request(repo, token=token or self.args.hub_token, doing="make")
        call(lambda: super(LoRATrainer, self).init_hf_repo(token=token, **kwargs), subject)
        if not self.args.hub_revision:
            uploading.check_repo(lora_model(self), self.hub_model_id)

    @_method("to write the adapter's card")
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write ours: it knows the adapter, keeps what its owner wrote, and names no local path."""
        facts = inspect.signature(super().create_model_card).bind(*args, **kwargs).arguments
        if base := facts.pop("finetuned_from", None):  # where no adapter's config says it
            bases = [hub_id(config.base_model_name_or_path) for config in lora_model(self).peft_config.values()]
            facts |= {} if any(bases) else {"base_model": base}
        if self.is_world_process_zero():
            write_cards(lora_model(self), Path(self.args.output_dir), facts_of(self, **facts), self.hub_model_id)

    @_method("to push the adapter and nothing private beside it", _pushes, required=True)
    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Push the adapter, its card and the tokenizer, and nothing else that lies around. Raises HubError."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        private = {"private": kwargs.pop("private")} if "private" in kwargs else {}
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, **private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return uploading.push(self, lora_model(self), commit_message, blocking, token, revision, **kwargs)

    @_method("to push no more of a checkpoint than that", _pushes, required=True)
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != "end":
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            uploading.offer(self, lora_model(self), Path(checkpoint_folder))


def _search_of(trainer: Any) -> Any:
    """Return the LoRASearch whose models a Trainer trains, or None."""
    owner = getattr(trainer.model_init, "__self__", None)
    return owner if is_a(owner, "hf_lora.training.search", "LoRASearch") else None


def _trackers(callbacks: list[Any]) -> list[Any]:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return [callback for callback in callbacks if isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values()))]
