"""`pipeline(model="user/adapter")`: an adapter on its base, the task it was trained for, its tokenizer."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ArgumentError, ModelError
from ..model.hooks import Owner, around, decided
from .models import load_adapter, owner_of
from .trained_model import is_lora

# What a pipeline class may ask for -> the class that loads it, and the file that says that a repo holds one.
_COMPONENTS = {
    "tokenizer": ("AutoTokenizer", "tokenizer_config.json"),
    "image_processor": ("AutoImageProcessor", "preprocessor_config.json"),
    "feature_extractor": ("AutoFeatureExtractor", "preprocessor_config.json"),
    "video_processor": ("AutoVideoProcessor", "video_preprocessor_config.json"),
    "processor": ("AutoProcessor", "processor_config.json"),
}
_HUB = ("token", "local_files_only", "cache_dir", "force_download", "trust_remote_code")  # for adapter and base alike


@around
def takes_adapters(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Wrap Transformers' pipeline: where `model` is the name of an adapter, it gets the model and all it needs."""
    signature = inspect.signature(original)
    given = dict(signature.bind(*args, **kwargs).arguments)
    extra = given.pop("kwargs", {})
    options = _options(given, extra)
    owner: Owner = "peft" if given.get("config") is not None else owner_of(given.get("model"), options)
    if owner != "hf_lora":
        with decided(owner):
            return _by_row(original(*args, **kwargs), extra)
    kinds = _COMPONENTS.keys() & signature.parameters.keys()
    given |= _parts(given, os.fspath(given["model"]), options, kinds)
    return _by_row(original(**given, **extra), extra)


def _by_row(pipe: Any, extra: Mapping[str, Any]) -> Any:
    """Return a pipeline. Raises ArgumentError for `adapter_names`, which are for its calls."""
    if "adapter_names" in extra and is_lora(pipe.model):
        raise ArgumentError("pipeline(adapter_names=): name adapters in the call, pipe(inputs, adapter_names=).")
    return pipe


@around
def answers_by_row(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap Pipeline.__call__: where it gets `adapter_names`, the pipeline of a LoRAModel is specialised first."""
    if kwargs.get("adapter_names") is not None and is_lora(self.model):
        from . import pipeline_rows  # not above: it imports torch

        pipeline_rows.specialise(self)
    return original(self, *args, **kwargs)


def _options(given: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model's from_pretrained gets, as pipeline's own code puts it together."""
    direct = {key: given.get(key) for key in ("revision", "token", "trust_remote_code", "device_map")}
    direct["local_files_only"] = extra.get("local_files_only")
    direct["dtype"] = given.get("dtype", extra.get("torch_dtype") or "auto")
    return {k: v for k, v in direct.items() if v is not None} | (given.get("model_kwargs") or {})


def _parts(given: Mapping[str, Any], name: str, options: Mapping[str, Any], kinds: set[str]) -> dict[str, Any]:
    """Return the model, the task and the components that the task's pipeline asks for."""
    from transformers import pipelines

    task = given.get("task")
    classes: Any = pipelines.check_task(task)[1]["pt"] if task else ()
    model = load_adapter(classes[0] if len(classes) == 1 else None, name, options)
    task = task or _task_of(pipelines, model)
    impl = given.get("pipeline_class") or pipelines.check_task(task)[1]["impl"]
    if isinstance(impl, str):
        module, _, cls = impl.rpartition(".")
        impl = getattr(importlib.import_module(module), cls)
    parts = {"task": task, "model": model}
    for kind in kinds:
        wanted = getattr(impl, f"_load_{kind}", False)  # None: the pipeline does without if there is none
        if given.get(kind) is None and wanted is not False:
            try:
                parts[kind] = _component(kind, model, name, options)
            except Exception:
                if wanted:
                    raise
    return parts


def _task_of(pipelines: Any, model: Any) -> str:
    """Return the first task whose models are of this model's class, which its adapter has chosen."""
    from ..layers.specialising import base_of

    cls, config = base_of(type(model)), type(model.config)
    for task, known in pipelines.SUPPORTED_TASKS.items():
        for mapping in (auto._model_mapping for auto in known["pt"] if config in auto._model_mapping):
            found = mapping[config]
            if cls in (found if isinstance(found, (list, tuple)) else (found,)):
                return task
    raise ModelError(
        f"no task of this Transformers runs a {cls.__name__}, so pipeline() cannot tell what to do with this adapter; "
        "pass task=, or call the model itself (LoRAModel.from_pretrained)."
    )


def _component(kind: str, model: Any, name: str, options: Mapping[str, Any]) -> Any:
    """Return a tokenizer or processor from the adapter's repo where it holds one, and from the base's otherwise."""
    import transformers

    from ..files.sources import Source

    auto, file = _COMPONENTS[kind]
    hub = {key: options[key] for key in _HUB if key in options}
    if Source.of(name, options).find(file) is not None:
        place, hub = name, hub | {key: options[key] for key in ("revision", "subfolder") if options.get(key)}
    else:
        place = model.name_or_path
        hub["revision"] = next(iter(model.peft_config.values())).revision if place != name else None
    return getattr(transformers, auto).from_pretrained(place, **hub)
