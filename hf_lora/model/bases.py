"""Loading a base model: which class, which labels, and what of it was newly initialised."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging

from ..config.tasks import TASK_TYPES
from ..errors import AdapterFileError, BaseLoadError, ConfigError, LoRAError, MissingExtraError, ModelError, some
from ..files.disk import read_regular
from ..files.privacy import is_repo_id
from ..files.sources import Source
from ..formats.contents import Contents
from ..formats.keys import PREFIX, plain_keys
from ..formats.notes import BASE_NOTE
from .base_config import BaseConfig
from .hollow import hollow
from .hooks import note_new, plainly, quietly
from .kept_whole import with_whole_heads
from .low_rank_layers import class_as_saved
from .settings import SETTINGS_NOTE, apply_to_generation, settings_for

logger = logging.get_logger(__name__)

_HUB_ID = re.compile(r"(?!\.\.?(?:/|$))(?:[\w.-]+/)?[\w.-]+", re.ASCII)  # ./x and ../x are paths
MOST_LABELS = 100_000
# What Transformers raises where a base is not, or is damaged.
_LOADING = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, UnpicklingError)

WITHOUT_LABELS = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForPreTraining", "Model")


def load_base(
    name: str,
    task_type: str | None,
    auto_class: type | str | None,
    model_args: Iterable[Any],
    kwargs: Mapping[str, Any],
) -> nn.Module:
    """Load a base model and return it; which parameters its checkpoint did not hold is noted on it.

    kwargs: go to the class's `from_pretrained`. Raises ModelError where no class can be told, BaseLoadError (with the
    cause chained) where the base is not there or cannot be loaded, MissingExtraError where a package for it is missing.
    """
    try:
        config = BaseConfig(name, kwargs)
        return _loaded(model_class(config, task_type, auto_class, kwargs), config, model_args, kwargs)
    except LoRAError:
        raise
    except _LOADING as error:
        _raise_from(error, f"the base {name!r}", _way_to(name))


def may_be_base(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a name may be that of a base: a repo of the Hub, a directory with a config, or a config is given.

    kwargs: those of from_pretrained.
    """
    if kwargs.get("config") is not None or kwargs.get("gguf_file") is not None:
        return True
    return os.path.isfile(os.path.join(name, kwargs.get("subfolder") or "", "config.json")) or (
        not os.path.exists(name) and is_repo_id(name)
    )


def _way_to(name: str) -> str:
    """Say what is wrong with the name of a base itself, or with its files; empty where nothing is seen."""
    if not may_be_base(name, {}):
        return "It holds no config.json." if os.path.exists(name) else f"{Source.of(name, {}).missing}."
    try:
        for path in sorted(Path(name).glob("*.safetensors")):
            read_regular(path, 0)
    except AdapterFileError as error:
        return str(error)
    return ""


def _loaded(cls: Any, config: BaseConfig, model_args: Iterable[Any], kwargs: Mapping[str, Any]) -> nn.Module:
    own, kept = class_as_saved(cls, config), with_whole_heads(kwargs)
    with plainly():
        model, info = own.from_pretrained(config.name, *model_args, output_loading_info=True, **kept)
    if own is not cls:
        model.__class__ = type(model).__mro__[1]
    note_new(model, info)
    return model


def _raise_from(error: Exception, what: str, way: str) -> NoReturn:
    """Raise what stands for an error of Transformers in loading a base; memory that ran out stays what it is."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    ours = MissingExtraError if isinstance(error, ImportError) else BaseLoadError
    told = str(error).rstrip(".! \n")
    raise ours(f"{what} cannot be loaded: {type(error).__name__}: {told}. {way}".rstrip()) from error


def load_base_of(
    adapter: Contents,
    base_model: str | None,
    auto_class: type | str | None,
    kwargs: dict[str, Any],
    weights: bool = True,
) -> nn.Module:
    """Load the base that an adapter belongs to, at the revision and with the labels that it was trained for.

    Transformers would report a head that the adapter holds as new and untrained; that report is kept back. Nothing in
    an adapter lets code run: only the caller's kwargs can hold trust_remote_code. weights: False for a `hollow` base.
    Raises ModelError where the base is not named, and what `load_base` raises.
    """
    base = base_model or _named_base(adapter)
    if base_model is None and adapter.config.revision:
        kwargs = {**kwargs, "revision": _revision(adapter)}
    kwargs = {"trust_remote_code": False, **kwargs}  # left open, Transformers would ask in a terminal
    settings: dict[str, Any] = {}
    try:
        with quietly():
            config = BaseConfig(base, kwargs)
            cls, settings = _as_trained(adapter, config, auto_class, kwargs)
            # What has another size than in the checkpoint is in the adapter: CTC's head, a table of positions.
            has_parts = bool(settings and adapter.config.modules_to_save)
            resized = {"ignore_mismatched_sizes": True} if has_parts or "vocab_size" in settings else {}
            kwargs = {**resized, **settings, **_with_labels(adapter, kwargs)}
            found = model_class(config, adapter.config.task_type, cls, kwargs)
            model = _loaded(found, config, (), kwargs) if weights else hollow(found, config.whole, kwargs)
    except LoRAError:
        raise
    except Exception as error:
        if not settings and not isinstance(error, _LOADING):
            raise
        _raise_from(error, f"the base {base!r} of the adapter {adapter.source.name}", _way_out(adapter, base, settings))
    _tell(adapter, settings | (apply_to_generation(adapter.notes, model) if "generation_config" not in kwargs else {}))
    return model


def _way_out(adapter: Contents, base: str, settings: Mapping[str, Any]) -> str:
    way = "Pass base_model= with another base's id, or with the loaded module."
    if settings:
        way = f"As the adapter was trained, it would have {_listed(settings)}; pass values of your own. {way}"
    noted = adapter.notes.get(SETTINGS_NOTE)
    if isinstance(noted, Mapping) and "quantization_config" in noted:
        way = f"quantization_config=None loads it in float. {way}"
    return f"{_way_to(base)} {way}".lstrip()


def _tell(adapter: Contents, settings: Mapping[str, Any]) -> None:
    if settings:
        logger.warning(
            "The base of %s is loaded with %s, as the adapter was trained.", adapter.source.name, _listed(settings)
        )


def _as_trained(
    adapter: Contents, base: BaseConfig, auto_class: type | str | None, kwargs: Mapping[str, Any]
) -> tuple[type | str | None, dict[str, Any]]:
    """Return the class and the arguments that make a checkpoint the base that an adapter was trained on."""
    # The class is the caller's, or the one that the adapter names and the checkpoint is of: a task type says less,
    # since people write CAUSAL_LM for Whisper. None where nothing but the task type and the checkpoint tells.
    mapping, note = adapter.config.auto_mapping, adapter.notes.get(BASE_NOTE)
    note = note if isinstance(note, Mapping) else {}
    cls = auto_class or _model_named(mapping.get("base_model_class") if isinstance(mapping, Mapping) else None)
    noted = None if cls else _model_named(note.get("class"))
    told = bool(adapter.notes.get(SETTINGS_NOTE)) and "config" not in kwargs
    if noted is None and not told:
        return cls, {}
    config = base.whole
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))]
    if noted is not None and any(type(part) is noted.config_class for part in parts):
        cls = noted
    return cls, settings_for(adapter.notes, config, note.get("model_type"), kwargs.keys()) if told else {}


def _model_named(name: object) -> Any:
    """Return the model class of Transformers with that name, None where there is none."""
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _listed(settings: Mapping[str, Any]) -> str:
    shown = {k: v if len(repr(v)) < 80 else f"{type(v).__name__}(...)" for k, v in settings.items()}
    return some((f"{key}={value!r}" for key, value in shown.items()), 6)


def _revision(adapter: Contents) -> str:
    """Return the base's revision that an adapter names. Raises ConfigError where it can be none."""
    revision = adapter.config.revision
    if not isinstance(revision, str) or not re.fullmatch(r"\w[\w./+-]*", revision) or ".." in revision:
        raise ConfigError(f"the adapter {adapter.source.name}: revision={revision!r} is no branch, tag or commit.")
    return revision


def _named_base(adapter: Contents) -> str:
    """Return the base that an adapter names. Raises ModelError where that is nothing, or a path that is not its own."""
    # An adapter from the Hub never leads to a path of this machine; a local one may, where the path is there.
    base, name = adapter.config.base_model_name_or_path, adapter.source.name
    way_out = "pass base_model= with the base's id or the loaded module."
    if not isinstance(base, str) or not base.strip():
        raise ModelError(
            f"the adapter {name} does not say which base it belongs to (base_model_name_or_path is {base!r}); {way_out}"
        )
    there = os.path.exists(base)
    is_path = there or not _HUB_ID.fullmatch(base)
    if is_path and not adapter.source.is_local:
        raise ModelError(
            f"the adapter {name} comes from the Hub and names the base {base!r}, which is "
            f"a path on {'this machine' if there else 'the machine of its author'}; it is not opened: {way_out}"
        )
    if is_path and not there:
        raise ModelError(f"the adapter {name} names the base {base!r}, which is not on this machine; {way_out}")
    return base


def model_class(
    base: BaseConfig, task_type: str | None, auto_class: type | str | None, kwargs: Mapping[str, Any]
) -> Any:
    """Return the class to load a base as, or the auto class that finds it. Raises ModelError where none can be told."""
    if isinstance(auto_class, type):
        return auto_class
    if auto_class is not None:
        if not hasattr(transformers, auto_class):
            raise ModelError(f"auto_class={auto_class!r} is no class of transformers {transformers.__version__}.")
        return getattr(transformers, auto_class)
    name, config = base.name, base.whole
    architectures = config.architectures or []
    maps = getattr(config, "auto_map", None) or {}
    remote = [n for n in maps if n.startswith("AutoModel") and hasattr(transformers, n)]
    auto = getattr(transformers, TASK_TYPES[task_type].auto_class) if task_type else None
    if auto is not None:
        if type(config) in auto._model_mapping or auto.__name__ in remote or not architectures:
            return auto
        if task_type != "CAUSAL_LM":  # which people write for vision-language models as well
            raise ModelError(
                f"task_type={task_type!r} means {auto.__name__}, which knows no {type(config).__name__} ({name}); pass "
                f"auto_class= with the class to load it as, for example its own {architectures[0]!r}."
            )
    for architecture in architectures:
        if hasattr(transformers, architecture):
            if kwargs.get("num_labels") is not None and architecture.endswith(WITHOUT_LABELS):
                raise ModelError(
                    f"num_labels={kwargs['num_labels']} has no meaning for {architecture}, which {name} is loaded as: "
                    "say the task, LoRAConfig(task_type='SEQ_CLS') or another, or pass auto_class=."
                )
            return getattr(transformers, architecture)
    if remote:
        return getattr(transformers, remote[-1])
    raise ModelError(
        f"the config of {name} names {architectures or 'no architecture'}, which is not in transformers "
        f"{transformers.__version__}; pass task_type in the LoRAConfig, or auto_class='AutoModelFor...'."
    )


def _with_labels(adapter: Contents, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the base's kwargs with the labels that the adapter was trained for, where the caller gave none."""
    # They come from the adapter's own notes, or from the size of the head it holds. The base's checkpoint may hold a
    # head for other labels, which the adapter's replaces.
    if {"num_labels", "id2label", "config"} & kwargs.keys():
        return kwargs
    plain = plain_keys(adapter.tensors)
    heads = [PREFIX + name for name in ("classifier.weight", "score.weight", "classifier.out_proj.weight")]
    if PREFIX + "objective.weight" in plain.values():  # of x-vectors, whose classifier makes a vector
        heads = []
    sizes = {
        tensor.shape[0]
        for key, name in plain.items()
        if name in heads and (tensor := adapter.tensors[key]).ndim == 2 and 0 < tensor.shape[0] <= MOST_LABELS
    }
    labels = _labels(adapter.notes.get("id2label"))
    if labels and (not sizes or sizes == {len(labels)}):
        named = _numbers(adapter.notes.get("label2id"), labels) or {v: k for k, v in labels.items()}
        given: dict[str, Any] = {"id2label": labels, "label2id": named}
    elif len(sizes) == 1:
        given = {"num_labels": sizes.pop()}
    else:
        return kwargs
    return {"ignore_mismatched_sizes": True, **kwargs, **given}


def _labels(found: object) -> dict[int, str]:
    """Return the labels that notes hold, by number; empty where they are anything else."""
    if not isinstance(found, dict) or len(found) > MOST_LABELS:
        return {}
    numbered = all(isinstance(k, str) and re.fullmatch("[0-9]{1,6}", k) for k in found)
    named = all(isinstance(v, str) for v in found.values())
    return {int(k): v for k, v in found.items()} if numbered and named else {}


def _numbers(found: object, labels: Mapping[int, str]) -> dict[str, int]:
    """Return the numbers that notes give to names of labels; empty where they are no numbers of these labels."""
    if not isinstance(found, dict) or len(found) > MOST_LABELS:
        return {}
    return dict(found) if all(type(number) is int and number in labels for number in found.values()) else {}
