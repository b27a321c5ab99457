"""LoRAModel: a Transformers model with adapters, through the seams that every Transformers model already has."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterStateError, ModelError
from ..files.sources import HUB_KWARGS
from ..formats.contents import Contents
from ..formats.opening import open_adapter
from ..layers import front
from ..layers.memory.switches import MemorySwitches
from ..layers.state import AdapterState
from . import adapters, made
from .arguments import as_config, check_plain, uncompiled
from .bases import head_modules, load_base, load_base_of
from .learning import Learning
from .merging import Merging
from .persistence import Persistence
from .provenance import BASE_NOTE, commit_of
from .report import print_trainable, targets_table, trainable_counts
from .switching import Switching
from .vocabulary import keeps_size, make_room, with_new_rows

__all__ = ["LoRAModel", "add_lora"]


class LoRAModel(Switching, Merging, Persistence, Learning, MemorySwitches, nn.Module):
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
        **kwargs: Any,
    ) -> LoRAModel:
        """Load a base with a fresh adapter, or an adapter with the base it names.

        pretrained_model_name_or_path: a Hub id or directory of a base (then `lora_config` says what to add; left
            out it is `LoRAConfig()`) or of an adapter (then its own config is used); or a file of loralib's, which
            has no config of its own (then `lora_config` says its lora_alpha, and `base_model` its base).
        is_trainable: whether a loaded adapter trains on; False unless given. A fresh one always trains.
        base_model: the module to load the adapter into (in place), or the id of its base.
        auto_class: the class, or its name in transformers, to load the base with. Otherwise `task_type` says, or
            the checkpoint's own architecture.
        check_base: whether an adapter that notes the weights it was trained on is refused on others.
        ignore_unknown: accept keys in an adapter's config that hf_lora does not know, whatever they mean.
        kwargs: go to the base's `from_pretrained`: dtype, device_map, quantization_config, token, num_labels, ...
            `revision` is the revision of what is named, hence the adapter's where that is an adapter.

        Parameters that the base newly initialises (a classification head) are trained and saved with the adapter.
        Raises ModelError, ConfigError, TargetError, AdapterFileError, AdapterMismatchError, BaseMismatchError.
        """
        name = os.fspath(pretrained_model_name_or_path)
        auto_class = auto_class or (front.base_of(cls) if cls is not LoRAModel else None)
        found = open_adapter(name, kwargs, lora_config=lora_config, ignore_unknown=ignore_unknown)
        if found is not None:
            return cls._from_adapter(
                found, adapter_name, bool(is_trainable), base_model, auto_class, check_base, kwargs
            )
        if base_model is not None:
            raise ModelError(f"{name} holds no adapter_config.json, so it is no adapter to load into base_model.")
        config = as_config(lora_config)
        model, new = load_base(name, config.task_type, auto_class, model_args, kwargs)
        return cls._from_base(model, config, adapter_name, new, name, kwargs)

    @classmethod
    def _from_base(
        cls,
        model: nn.Module,
        config: LoRAConfig,
        adapter_name: str,
        new: Collection[str],
        name: str,
        kwargs: Mapping[str, Any],
    ) -> LoRAModel:
        revision = kwargs.get("revision") or config.revision
        config = config.copy(modules_to_save=head_modules(model, config, new), revision=revision)
        result = cls.from_model(model, config, adapter_name)
        result._lora.commit = commit_of(name, kwargs)
        return result

    @classmethod
    def _from_adapter(
        cls,
        files: Contents,
        adapter_name: str,
        trainable: bool,
        base_model: nn.Module | str | None,
        auto_class: type | str | None,
        check_base: bool,
        kwargs: dict[str, Any],
    ) -> LoRAModel:
        if isinstance(base_model, nn.Module):
            if idle := kwargs.keys() - set(HUB_KWARGS):
                raise TypeError(f"{', '.join(sorted(idle))}: these load a base, but base_model= is loaded already.")
            model: nn.Module = uncompiled(base_model)
        else:
            model = load_base_of(files, base_model, auto_class, kwargs)
            make_room(model, files.config, files.tensors)
        files = files.onto(model)
        fresh = not isinstance(model, LoRAModel)
        result = _enter(model)
        try:
            with result._own_head():
                noted = files.notes.get(BASE_NOTE)
                adapters.load(
                    model, result._lora, files.config, files.tensors, adapter_name, trainable, noted, check_base
                )
        except BaseException:
            if fresh:
                result.unload()
            raise
        adapters.select(result._lora, [adapter_name])
        return result

    @classmethod
    def from_model(
        cls, model: nn.Module, lora_config: LoRAConfig | None = None, adapter_name: str = "default"
    ) -> LoRAModel:
        """Add a fresh adapter to a model, in place, and return the same object.

        Where `task_type` names a task with a head, the head is trained and saved along, as PEFT does. A LoRAModel gets
        a further adapter. Of `torch.compile(model)` the model itself is returned, compiled in place.
        Raises ModelError, TargetError, ConfigError, AdapterNameError with the model unchanged.
        """
        if not isinstance(model, nn.Module):
            raise ModelError(f"from_model takes an nn.Module, not a {type(model).__name__}.")
        config, model = as_config(lora_config), uncompiled(model)
        config = config.copy(modules_to_save=head_modules(model, config, ()))
        fresh = not isinstance(model, LoRAModel)
        result = _enter(model)
        try:
            result.add_adapter(config, adapter_name)
        except BaseException:
            if fresh:
                result.unload()
            raise
        return result

    # --- adapters -----------------------------------------------------------------------------------------------

    @property
    def peft_config(self) -> dict[str, LoRAConfig]:
        """The adapters' configs by name."""
        return self._lora.configs

    def add_adapter(self, adapter_config: LoRAConfig, adapter_name: str = "default") -> None:
        """Add a fresh adapter and make it the active one.

        Where the vocabulary was resized before, its new rows train and are saved along.
        """
        with self._own_head():
            config = with_new_rows(self, as_config(adapter_config))
            config = adapters.add(self, self._lora, config, adapter_name)
        config.base_model_name_or_path = getattr(self, "name_or_path", None) or config.base_model_name_or_path
        adapters.select(self._lora, [adapter_name])

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        lora_config: LoRAConfig | None = None,
        check_base: bool = True,
        ignore_unknown: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load an adapter beside the others and make it the active one.

        lora_config: for a file of loralib's, which has no config of its own; its lora_alpha must be said here.
        check_base, ignore_unknown: as for `from_pretrained`.
        kwargs: revision, subfolder, token, cache_dir, force_download, local_files_only.
        Raises AdapterFileError, AdapterMismatchError, BaseMismatchError, AdapterNameError, with the model unchanged.
        """
        if unknown := kwargs.keys() - set(HUB_KWARGS):
            raise TypeError(f"load_adapter() got unexpected keyword arguments: {', '.join(sorted(unknown))}.")
        files = open_adapter(os.fspath(peft_model_id), kwargs, True, lora_config, ignore_unknown)
        assert files is not None
        files = files.onto(self)
        with self._own_head():
            noted = files.notes.get(BASE_NOTE)
            adapters.load(self, self._lora, files.config, files.tensors, adapter_name, is_trainable, noted, check_base)
        adapters.select(self._lora, [adapter_name])

    def delete_adapter(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters; if they were active, the rest of the active ones stays."""
        with self._own_head():
            for name in [adapter_names] if isinstance(adapter_names, str) else list(adapter_names):
                adapters.delete(self._lora, name)

    # --- looking ------------------------------------------------------------------------------------------------

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return (trainable, all) parameter counts."""
        return trainable_counts(self)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train."""
        print_trainable(self)

    def targets_report(self, adapter_name: str | None = None) -> str:
        """Return a table of what an adapter (the active one unless named) adapts: where, how many of how many."""
        return targets_table(self, adapter_name)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        rest = super().__reduce_ex__(protocol)[2:]
        return _rebuild, (front.base_of(type(self)),), *rest


class _PretrainedLoRAModel(LoRAModel):
    """What a front does besides where its base is a Transformers model, which rewrites weights by itself."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> Any:
        """Tie the base's own parameters, as the model's class does; adapters stay where they are."""
        with self._lora.set_aside():
            return super().tie_weights(*args, **kwargs)  # type: ignore[misc]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize the vocabulary, as the model's class does; rows that are new train with the trainable adapters.

        Raises AdapterStateError while merged, and where an embedding or the output layer carries an adapter and the
        size would change: it would be lost with the module that is replaced. Resize before adding the adapter.
        """
        self._refuse_while_merged("resize_token_embeddings")
        for table in (self.get_input_embeddings(), self.get_output_embeddings()):  # type: ignore[operator]
            for name, layer in self._lora.layers.items():
                if layer is table and keeps_size(self, *args, **kwargs):
                    return self.get_input_embeddings()  # type: ignore[operator]
                if layer is table:
                    raise AdapterStateError(f"{name} carries an adapter, which resizing would lose; resize first.")
        with self._own_head():
            table = super().resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]
            for name in sorted(self._lora.trainable):
                config = self._lora.configs[name]
                adapters.extend(self, self._lora, with_new_rows(self, config), name)
            adapters.select(self._lora, self._lora.selected)
        return table


def add_lora(module: nn.Module, lora_config: LoRAConfig | None = None, adapter_name: str = "default") -> LoRAModel:
    """Add a fresh adapter to any `nn.Module`, in place; what `LoRAModel.from_model` does for a Transformers model.

    >>> net = add_lora(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), LoRAConfig(target_modules=["0"]))
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['0.adapters.default.weight.lora_A', '0.adapters.default.weight.lora_B']
    """
    return LoRAModel.from_model(module, lora_config, adapter_name)


def _enter(model: nn.Module) -> LoRAModel:
    """Make a model a LoRAModel without adapters yet: its parameters are frozen, and which were not is noted."""
    if isinstance(model, LoRAModel):
        return model
    check_plain(model)
    made.tell()
    thawed = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.__dict__.update(_lora=AdapterState(thawed=thawed), _hf_peft_config_loaded=True)
    front.enter(model, _mixin(type(model)))
    assert isinstance(model, LoRAModel)
    if any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):  # switched on before: now it matters
        model.enable_input_require_grads()  # type: ignore[operator]
    return model


def _mixin(base: type[nn.Module]) -> type[LoRAModel]:
    return _PretrainedLoRAModel if hasattr(base, "tie_weights") else LoRAModel


def _rebuild(base: type[nn.Module]) -> Any:
    return front.rebuild(_mixin(base), base)
