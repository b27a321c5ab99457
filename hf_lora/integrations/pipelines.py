"""`pipeline(model="user/adapter")` without PEFT: the adapter on its base, the task it was trained for, its tokenizer.

`pipeline` may have been imported before hf_lora was, so that its code is exchanged rather than its name.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError
from ..model.hooks import plainly
from .loading import is_adapter, load_adapter
from .patches import MARK

__all__ = ["call_pipeline", "stand_in"]

# What a pipeline class may ask for -> the class that loads it, and the file that says that a repo holds one.
_COMPONENTS = {
    "tokenizer": ("AutoTokenizer", "tokenizer_config.json"),
    "image_processor": ("AutoImageProcessor", "preprocessor_config.json"),
    "feature_extractor": ("AutoFeatureExtractor", "preprocessor_config.json"),
    "video_processor": ("AutoVideoProcessor", "video_preprocessor_config.json"),
    "processor": ("AutoProcessor", "processor_config.json"),
}
_HUB = ("token", "local_files_only", "cache_dir", "force_download", "trust_remote_code")  # for adapter and base alike


def stand_in(*args: Any, **kwargs: Any) -> Any:
    """Do what `transformers.pipeline` does now; runs with the globals of `transformers.pipelines`."""
    from hf_lora.integrations.pipelines import call_pipeline

    return call_pipeline(*args, **kwargs)


def call_pipeline(*args: Any, **kwargs: Any) -> Any:
    """Call Transformers' own pipeline; with the model and all it needs where `model` is the name of an adapter."""
    original = getattr(call_pipeline, MARK)
    try:
        given = dict(inspect.signature(original).bind(*args, **kwargs).arguments)
    except TypeError:
        return original(*args, **kwargs)  # which raises the same, in its own name
    extra = given.pop("kwargs", {})
    options = _options(given, extra)
    name = given.get("model")
    if name is None or given.get("config") is not None:
        return original(*args, **kwargs)
    if not is_adapter(name, options):
        with plainly():
            return original(*args, **kwargs)
    return original(**{**given, **_parts(original, given, os.fspath(name), options)}, **extra)


def _options(given: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model's from_pretrained gets, as pipeline's own code puts it together."""
    direct = {key: given.get(key) for key in ("revision", "token", "trust_remote_code", "device_map")}
    direct |= {"local_files_only": extra.get("local_files_only"), "dtype": extra.get("torch_dtype")}
    direct["dtype"] = given.get("dtype", direct["dtype"] or "auto")
    return {k: v for k, v in direct.items() if v is not None} | (given.get("model_kwargs") or {})


def _parts(original: Any, given: dict[str, Any], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the model, the task and the components that the task's pipeline asks for."""
    from transformers import pipelines

    task = given.get("task")
    model = load_adapter(None if task is None else _class_of(pipelines, task, name, options), name, options)
    task = task or _task_of(pipelines, model)
    impl = given.get("pipeline_class") or pipelines.check_task(task)[1]["impl"]
    if isinstance(impl, str):
        module, _, cls = impl.rpartition(".")
        impl = getattr(__import__(module, fromlist=[cls]), cls)
    parts = {"task": task, "model": model}
    for kind in _COMPONENTS.keys() & inspect.signature(original).parameters.keys():
        wanted = getattr(impl, f"_load_{kind}", False)
        if given.get(kind) is None and wanted is not False:
            parts[kind] = _component(kind, wanted, model, name, options, given)
    return parts


def _class_of(pipelines: Any, task: str, name: str, options: Mapping[str, Any]) -> type | None:
    """Return the first of a task's auto classes that knows the base; None where none does."""
    from transformers import AutoConfig

    from ..config.lora_config import LoRAConfig
    from ..files.names import CONFIG_NAME
    from ..files.sources import Source

    classes = pipelines.check_task(task)[1]["pt"]
    if len(classes) == 1:
        return classes[0]
    path = Source.of(name, {**options, **(options.get("adapter_kwargs") or {})}).find(CONFIG_NAME)
    config = LoRAConfig.from_pretrained(path) if path else LoRAConfig()
    whole = os.path.isfile(os.path.join(name, "config.json"))
    base = name if whole else config.base_model_name_or_path
    if not base:
        return None
    hub = {key: options[key] for key in _HUB if key in options}
    found = AutoConfig.from_pretrained(base, revision=None if whole else config.revision, **hub)
    return next((cls for cls in classes if type(found) in cls._model_mapping), None)


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


def _component(
    kind: str, wanted: bool | None, model: Any, name: str, options: Mapping[str, Any], given: Mapping[str, Any]
) -> Any:
    """Return a tokenizer or processor from the adapter's repo where it holds one, and from the base's otherwise.

    wanted: None where the pipeline does without if there is none; then any failure gives None.
    """
    import transformers

    from ..files.sources import Source

    auto, file = _COMPONENTS[kind]
    hub = {key: options[key] for key in _HUB if key in options}
    own = {**options, **(options.get("adapter_kwargs") or {})}
    try:
        if Source.of(name, own).find(file) is not None:
            place, hub = name, hub | {key: own[key] for key in ("revision", "subfolder") if own.get(key)}
        else:
            place = model.name_or_path
            hub["revision"] = next(iter(model.peft_config.values())).revision if place != name else None
        more = {"use_fast": given.get("use_fast", True)} if kind == "tokenizer" else {}
        return getattr(transformers, auto).from_pretrained(place, _from_pipeline=given.get("task"), **hub, **more)
    except Exception:
        if wanted:
            raise
        return None
