"""LoRAModel: a Transformers model with adapters, through the seams that every Transformers model already has.

Each method is one line over a function of this room, of `layers/memory` or of `report.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCardData
from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import ArgumentError
from ..files.sources import place_of
from ..layers.memory import head, mlp
from ..layers.rates import LearningRates
from ..layers.routes import OFF
from ..layers.specialising import Specialised, base_of
from ..layers.state import AdapterState
from . import (
    by_row,
    combining,
    creating,
    first_step,
    hints,
    loading,
    merging,
    overrides,
    publishing,
    replacing,
    report,
    saving,
    selecting,
    swapping,
)
from .merging import MergeReport
from .recipes import Request


@hints.checks_arguments
class LoRAModel(Specialised, nn.Module):
    """A model with LoRA adapters: an instance of this class and of the model's own class at once.

    Made by `from_pretrained` or `from_model`, never by calling it. Only adapters (and what is saved with them)
    require gradients; `save_pretrained`, `Trainer`, `generate` and `pipeline` work as on any model.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> base = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    >>> model = LoRAModel.from_model(base, LoRAConfig(r=2))
    >>> isinstance(model, LoRAModel), isinstance(model, GPT2LMHeadModel), model is base
    (True, True, True)
    >>> model.get_nb_trainable_parameters()[0]
    64
    """

    _lora: AdapterState

    def __new__(cls, *args: Any, **kwargs: Any) -> LoRAModel:
        """Make an object of a specialised class. Raises ArgumentError for LoRAModel(...), which makes no model."""
        if cls is LoRAModel:
            raise ArgumentError(
                "LoRAModel is not called: LoRAModel.from_model(model, LoRAConfig()) adds an adapter to a model in "
                "place, LoRAModel.from_pretrained(name) loads a base or an adapter."
            )
        return super().__new__(cls)

    def __getattr__(self, name: str) -> Any:
        if name in hints.METHODS:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; here {hints.METHODS[name]}.")
        return super().__getattr__(name)

    @classmethod
    def _lora_content(cls, base: type, *key: Any) -> dict[str, Any]:
        """Return what a Transformers model does otherwise, where it rewrites weights or switches adapters by itself."""
        return overrides.overridden(base)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        lora_config: LoRAConfig | None = None,
        *model_args: Any,
        adapter_name: str = "default",
        is_trainable: bool | None = None,
        base_model: nn.Module | str | None = None,
        auto_class: type | str | None = None,
        check_base: bool = True,
        ignore_unknown: bool = False,
        data: Any = None,
        **kwargs: Any,
    ) -> LoRAModel:
        """Load a base with a fresh adapter, or an adapter with the base it names.

        pretrained_model_name_or_path: a Hub id or directory of a base (then `lora_config` says what to add; left
            out it is `LoRAConfig()`) or of an adapter (then its own config is used); or a file of loralib's, which
            has no config of its own (then `lora_config` says its lora_alpha, and `base_model` its base).
        is_trainable: whether a loaded adapter trains on; False unless given. A fresh one trains: False is an error.
        base_model: the module to load the adapter into (in place), or the id of its base.
        auto_class: the class, or its name in transformers, to load the base with. Otherwise `task_type` says, or
            the checkpoint's own architecture.
        check_base: whether an adapter that notes the weights it was trained on is refused on others.
        ignore_unknown: accept keys in an adapter's config that hf_lora does not know, whatever they mean.
        data: batches for a start that learns of data, as `from_model` takes them.
        kwargs: go to the base's `from_pretrained`: dtype, device_map, quantization_config, token, num_labels, ...
            `revision` is the revision of what is named, hence the adapter's where that is an adapter.

        Parameters that the base newly initialises (a classification head) are trained and saved with the adapter.
        Raises ModelError, ConfigError, TargetError, AdapterFileError, AdapterMismatchError, BaseMismatchError.
        """
        name, has_base = place_of(pretrained_model_name_or_path), isinstance(base_model, nn.Module)
        own = None if cls is LoRAModel or has_base else base_of(cls)
        return creating.from_pretrained(
            LoRAModel, name, lora_config, model_args, adapter_name, is_trainable, base_model, auto_class or own,
            check_base, ignore_unknown, data, kwargs,
        )  # fmt: skip

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        lora_config: LoRAConfig | None = None,
        adapter_name: str = "default",
        *,
        data: Any = None,
    ) -> LoRAModel:
        """Add a fresh adapter to a model, in place, and return the same object.

        data: a few batches, for a start that learns of data (init_lora_weights="eva", "lora_ga"): dicts of the
            forward's arguments, as a DataLoader gives them, or functions of the model that run it; or a function of the
            model that returns batches. The base computes them once, without adapters and in evaluation mode.
        Where `task_type` names a task with a head, the head is trained and saved along, as PEFT does. A LoRAModel gets
        a further adapter. Of `torch.compile(model)` the model itself is returned, compiled in place.
        Raises ModelError, TargetError, ConfigError, AdapterNameError with the model unchanged.
        """
        return creating.from_model(LoRAModel, model, lora_config, adapter_name, data)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the model's own class does.

        adapter_names: for each row of the batch the adapters that answer it, as `adapters_active` takes `rows`.
        Raises AdapterNameError, AdapterStateError.
        """
        if not isinstance(self, LoRAModel):  # unloaded since torch.compile took the call
            return type(self).__call__(self, *args, **kwargs)
        state = getattr(self, "_lora", None)
        if state is None:
            return super().__call__(*args, **kwargs)
        by_itself = not any(word in kwargs for word in by_row.WORDS)
        if torch.compiler.is_compiling():  # whether others are in blocks may change while a compiler looks
            return super().__call__(*args, **kwargs) if by_itself else by_row.called(self, args, kwargs, True)
        with state.gate:
            if by_itself and not state.is_routed and self._compiled_call_impl is None:
                return super().__call__(*args, **kwargs)
            return by_row.called(self, args, kwargs)

    # --- adapters -----------------------------------------------------------------------------------------------

    @property
    def peft_config(self) -> dict[str, LoRAConfig]:
        """The adapters' configs by name."""
        return self._lora.configs

    def add_adapter(self, adapter_config: LoRAConfig, adapter_name: str = "default", *, data: Any = None) -> None:
        """Add a fresh adapter and make it the active one. data: as `from_model` takes it.

        Where the vocabulary was resized before, its new rows train and are saved along.
        """
        creating.add_fresh(self, adapter_config, adapter_name, data)

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        lora_config: LoRAConfig | None = None,
        check_base: bool = True,
        ignore_unknown: bool = False,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load an adapter beside the others and make it the active one.

        lora_config: for a file of loralib's, which has no config of its own; its lora_alpha must be said here.
        check_base, ignore_unknown: as for `from_pretrained`.
        hotswap: put the file's numbers into the adapter of that name, which has the same targets; which adapters are
            active and whether they train stays. Every call of the model, and every `generate`, computes with the old
            ones alone or with the new ones alone: those that run are waited for, and others wait meanwhile. (Not calls
            of a module inside of it, or of a `torch.compile(model)` around it.) Of a model that `model.compile()`
            compiled after `prepare_hotswap`, nothing is compiled anew.
        kwargs: revision, subfolder, token, cache_dir, force_download, local_files_only.
        Raises AdapterFileError, AdapterMismatchError, BaseMismatchError, AdapterNameError, with the model unchanged.
        """
        loading.check_options(kwargs)  # before anything is read or fetched
        selecting.check_place(self._lora, adapter_name, hotswap)
        files = loading.opened(peft_model_id, lora_config, ignore_unknown, **kwargs)
        if hotswap:
            swapping.swap(self, files, adapter_name, is_trainable, check_base)
        else:
            creating.add_saved(self, files, adapter_name, is_trainable, check_base)

    def prepare_hotswap(self, max_r: int = 64, adapter_names: str | Sequence[str] | None = None) -> None:
        """Make room in adapters (all unless named) for files of any rank up to max_r, before the model is compiled.

        Their factors are widened with zeros, which change nothing, and a swapped adapter's scaling goes into its B; in
        files they are as they were. Without it another rank or scaling is taken, too, and compiles anew.
        Raises AdapterStateError where an adapter has a larger rank already, and in training mode.
        """
        swapping.prepare(self, max_r, adapter_names)

    def enable_peft_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Do what `prepare_hotswap` does, which is Transformers' name for it; a compiled model is no error."""
        swapping.prepare(self, target_rank, None)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: Literal["total", "frequency"] = "total",
        *,
        seed: int | None = None,
    ) -> None:
        """Add an adapter that is the weighted combination of others, which stay; what is active stays so.

        weights: one for each of `adapters`, negative ones take an update off.
        combination_type: "cat" (exact; the ranks add up), "svd" (the best of rank `svd_rank`, the largest rank of
            theirs unless given), "linear" (sums A and B by themselves: rough), and "ties", "dare_linear", "dare_ties",
            "magnitude_prune", which prune A and B by themselves, and with "_svd" behind the name the update B A.
        density: the share of values that pruning keeps. majority_sign_method: of "ties", what elects an entry's sign.
        seed: of what DARE draws; torch's own random state unless given. svd_clamp, svd_driver: as in PEFT, a quantile
            to which factors are clamped, and the driver of torch.linalg.svd. svd_full_matrices: changes no result.

        The result is plain LoRA, which trains when it is selected if all of them do. Parts in full (a head, biases,
        token rows) are taken over as they are, of one adapter at most.
        Raises ArgumentError, AdapterNameError, AdapterStateError (for formulas that are no sum), ConfigError, with
        the model unchanged.
        """
        asked = Request.of(
            adapters, weights, combination_type, svd_rank, svd_clamp, svd_driver, density, majority_sign_method, seed
        )
        combining.combine(self, self._lora, asked, adapter_name)

    def delete_adapter(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters; if they were active, the rest of the active ones stays."""
        with head.own_head(self):
            selecting.delete(self._lora, adapter_names)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Use these adapters, summed where there are several, and no other."""
        selecting.select(self._lora, adapter_name)
        first_step.wait(self)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Let adapters train, or not, whichever are selected: for batches whose rows have adapters of their own."""
        selecting.set_requires_grad(self._lora, adapter_names, requires_grad)
        first_step.wait(self)

    def active_adapters(self) -> list[str]:
        """Return the names of the adapters in use (while enabled)."""
        return list(self._lora.selected)

    def disable_adapters(self) -> None:
        """Compute as the base alone, bit for bit. Raises AdapterStateError while merged, and inside adapters_active."""
        selecting.disable(self._lora)

    def enable_adapters(self) -> None:
        """Use the active adapters again."""
        selecting.enable(self._lora)

    def adapters_disabled(self) -> AbstractContextManager[None]:
        """Compute as the base alone inside a `with` block, in this thread (or asyncio task) only.

        Threads that are started inside do not take part. Where a backward pass inside the block computes forwards again
        (gradient checkpointing) in a thread of its own, as on GPUs, that is an AdapterStateError: `disable_adapters()`
        is the way there. Raises AdapterStateError while merged.
        """
        return self._lora.routed(OFF, "adapters_disabled", trains=self.training)

    def adapters_active(
        self,
        adapter_names: str | Sequence[str] | None = None,
        *,
        rows: Sequence[str | Sequence[str] | Mapping[str, float]] | None = None,
    ) -> AbstractContextManager[None]:
        """Use these adapters inside a `with` block, in this thread (or asyncio task) only: others never see it.

        rows: in the place of adapter_names, for each row of the batch the adapter that answers it: its name, "__base__"
        for none, a list of names whose updates are summed, or a mapping of names to weights. Every forward inside is of
        such a batch. Each row computes what its adapters alone would, up to rounding.

        For inference; a training step would need the same adapters in its backward pass, which may run in another
        thread: there set_adapter() is the way. Raises AdapterStateError in training mode and while merged.
        """
        return (
            selecting.active(self, self._lora, adapter_names)
            if rows is None
            else by_row.block(self, adapter_names, rows)
        )

    def dequantize(self, *args: Any, **kwargs: Any) -> Any:
        """Turn a quantised base into a plain one, as Transformers does; the adapters stay on its layers.

        Raises AdapterStateError while merged.
        """
        with replacing.moving_over(self):
            return super().dequantize(*args, **kwargs)  # type: ignore[misc]

    # --- merging ------------------------------------------------------------------------------------------------

    def merge_adapter(
        self,
        adapter_names: str | Sequence[str] | None = None,
        *,
        verify: float | None = None,
        requantize: bool = False,
    ) -> None:
        """Put adapters (the active ones unless named) into the weights; `unmerge_adapter` restores every bit.

        Keeps the base's own tensors, so that the adapted weights are held twice while merged. Where others are merged,
        these come on top of them.
        verify: the largest share of the adapters' effect that may be lost to rounding (`merge_report`). Raises
        MergeError above it, with nothing merged.
        requantize: quantised layers get a weight that their library packs; else they are plain ones while merged.
        """
        merging.merge(self, adapter_names, verify, requantize)

    def unmerge_adapter(self) -> None:
        """Take merged adapters out of the weights."""
        merging.unmerge(self._lora)

    def merge_report(
        self,
        adapter_names: str | Sequence[str] | None = None,
        *,
        requantize: bool = False,
        calibration: Iterable[Any] | None = None,
    ) -> MergeReport:
        """Return how much of the adapters' effect (the active ones' unless named) merging would lose to rounding.

        Nothing is changed. Takes about as long as two merges, one weight at a time.
        requantize, calibration: as for `merge_and_unload`; the report then says what is kept of the outputs.
        """
        return merging.merge_report(self, adapter_names, requantize, calibration)

    def merge_and_unload(
        self,
        adapter_names: str | Sequence[str] | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        verify: float | None = None,
        requantize: bool = False,
        calibration: Iterable[Any] | None = None,
    ) -> Any:
        """Put adapters into the weights for good and return the plain model, the same object.

        dtype: torch.float32 (or float64), which the whole model becomes before merging, so that a half-precision one
            loses nothing of the adapter. A quantised base becomes a plain model of any floating dtype, its own unless
            given. verify: as for `merge_adapter`.
        requantize: the weights of a quantised base are packed by its library again, which loses more. calibration: a
            few batches for the model; their rounding is chosen so that the layers' outputs on these are kept.

        Where that parts a weight from one it was tied to, the config's `tie_word_embeddings` is switched off, so
        that a saved and reloaded model is the same. Raises MergeError with the model unchanged.
        """
        return merging.merge_and_unload(self, adapter_names, dtype, verify, requantize, calibration)

    def unload(self) -> Any:
        """Remove every adapter and return the plain model, the same object, as it was before."""
        return merging.unload(self)

    # --- files and the Hub --------------------------------------------------------------------------------------

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return one adapter's tensors (the active one's unless named) under PEFT's names, without their prefix."""
        return saving.adapter_state_dict(self, adapter_name, state_dict)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return all tensors, the adapters' among them; to the save_pretrained of a model around it, merged ones."""
        result = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        if prefix and (whole := saving.whole_that_saves()) is not None:
            saving.merge_into(result, prefix, self, whole)
        return result

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        adapter_name: str | None = None,
        card_data: ModelCardData | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write adapter_config.json, adapter_model.safetensors and README.md, and nothing of the base.

        With several adapters each goes into a folder of its name ("default" to the top), unless one is named.
        card_data: metadata for the card (license, language, datasets, eval_results ...), added to what is known.
        kwargs: what Transformers passes when it saves a model; sharding and formats of base weights do not apply.
        In a distributed run call it in every process, `is_main_process` in one of them: tensors that `fully_shard`
        spread are gathered. Whenever the process dies, the directory holds the old adapter or the new one.
        Raises TypeError for other kwargs; AdapterStateError where there is nothing to save, while adapters are merged,
        and where tensors are empty, partial, not finite, or untouched by their training; AdapterFileError where the
        disk refuses.
        """
        publishing.save_pretrained(
            self, Path(save_directory), is_main_process, state_dict, push_to_hub, adapter_name, card_data, kwargs
        )

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload every adapter (never the base) to the Hub in one commit, and return the commit's URL.

        The repo is made where needed; what its owner wrote into the card stays.
        kwargs: commit_message, commit_description, private, token, revision (a branch, made where needed), create_pr,
        tags, card_data; tokenizer (or processing_class) is uploaded along; adapter_name: only this one; base_model: the
        base's Hub id, where it was loaded from a local path, which is never published.
        Raises ModelError, AdapterStateError, HubError, with everything here unchanged.
        """
        return publishing.push_adapter(self, repo_id, **kwargs)

    def load_weights(self, directory: str | os.PathLike[str]) -> None:
        """Copy saved adapters into the ones of the same names that are here, in place: for resuming.

        A directory written with one adapter holds it at its top, whatever its name; with several, each in a folder.
        Raises AdapterFileError where the directory does not hold every adapter of this model.
        """
        loading.load_weights(self, Path(place_of(directory)))

    def missing_weights(self, directory: str | os.PathLike[str]) -> list[str]:
        """Return the files that `load_weights` would miss in a directory, by their paths in it; nothing is read."""
        return loading.missing_weights(self, Path(directory))

    # --- training -----------------------------------------------------------------------------------------------

    def set_learning_rates(
        self,
        *,
        loraplus_lr_ratio: float | None = None,
        loraplus_lr_embedding: float | None = None,
        head_learning_rate: float | None = None,
    ) -> None:
        """Give parameters learning rates of their own, in optimizers that are built from now on.

        The stock Trainer's own optimizer, whatever `optim=` says, and `hf_lora.parameter_groups` follow them; an
        optimizer that does not is an error when training starts. What is left out goes back to the common rate.
        loraplus_lr_ratio: LoRA+. B's rate divided by A's, which is the optimizer's; 16 is the paper's choice, with a
            smaller rate for A than usual. Lengths of rows and biases outside of `lora_bias` are not B.
        loraplus_lr_embedding: the rate of both factors on embeddings. LoRA+'s argument is about wide inputs, which
            indices are not, so the ratio leaves them alone; left out they train at the common rate (PEFT: 1e-6).
        head_learning_rate: the rate of what trains in full: `modules_to_save`, new heads, parameters of the base whose
            requires_grad was switched on. Biases from `bias=` and token rows keep the common rate.
        Raises ConfigError where one is not a positive, finite number. A ratio below 1, the opposite of LoRA+, warns.

        >>> from hf_lora import LoRAConfig, add_lora, parameter_groups
        >>> model = add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(target_modules=["0"]))
        >>> model.set_learning_rates(loraplus_lr_ratio=16)
        >>> [group["lr"] for group in parameter_groups(model, 0.001)]
        [0.001, 0.016]
        """
        self._lora.rates = LearningRates(loraplus_lr_ratio, loraplus_lr_embedding, head_learning_rate)

    def enable_mlp_recompute(self) -> None:
        """Keep less of every gated MLP for backward: its input, gate and up, not the activation and the product.

        For modules that compute down(act(gate(x)) * up(x)) (the Llama line, Phi-3, GLM, ...); others are left alone.
        Outputs and gradients keep their bits. Raises ModelError where there is no such module.
        """
        mlp.enable_mlp_recompute(self)

    def disable_mlp_recompute(self) -> None:
        """Keep everything for backward again."""
        mlp.disable_mlp_recompute(self)

    def enable_linear_cross_entropy(self) -> None:
        """Compute the loss over the vocabulary a few rows at a time, so that a step never holds all its logits.

        In training, `outputs.logits` is then computed when it is first looked at; a loss that is not
        `F.cross_entropy` of the logits (cast, sliced, scaled or capped) looks at them, and saves nothing. Gradients are
        the same up to rounding. They are taken in forward, so they cannot be differentiated again. Compiled models
        and evaluation compute logits as ever. Raises ModelError where the model has no output layer.
        """
        head.enable_linear_cross_entropy(self)

    def disable_linear_cross_entropy(self) -> None:
        """Compute all logits at once again."""
        head.disable_linear_cross_entropy(self)

    # --- looking ------------------------------------------------------------------------------------------------

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return (trainable, all) parameter counts."""
        return report.trainable_counts(self)

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line: how many parameters train, of how many, and the share in percent."""
        trainable, every = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {every:,d} || trainable%: {100 * trainable / every:.4f}"
        )

    def targets_report(self, adapter_name: str | None = None) -> str:
        """Return a table of what an adapter (the active one unless named) adapts: where, how many of how many."""
        return report.targets_table(self, adapter_name)


def add_lora(
    module: nn.Module, lora_config: LoRAConfig | None = None, adapter_name: str = "default", *, data: Any = None
) -> LoRAModel:
    """Add a fresh adapter to any `nn.Module`, in place; what `LoRAModel.from_model` does for a Transformers model.

    >>> net = add_lora(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), LoRAConfig(target_modules=["0"]))
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['0.adapters.default.weight.lora_A', '0.adapters.default.weight.lora_B']
    """
    return LoRAModel.from_model(module, lora_config, adapter_name, data=data)
