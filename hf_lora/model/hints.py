"""PEFT's and other libraries' words for what a LoRAModel does, so that who writes one is told the one here."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ..config.keys import Fields
from ..errors import ArgumentError

# Names that others' libraries have -> what to write here.
NAMES = {
    **dict.fromkeys(
        ("AutoPeftModel", "AutoPeftModelForCausalLM"), "LoRAModel.from_pretrained(name) loads adapter and base"
    ),
    **dict.fromkeys(("LoraConfig", "PeftConfig"), "it is LoRAConfig"),
    **dict.fromkeys(("LoraModel", "PeftModel", "PeftModelForCausalLM"), "it is LoRAModel"),
    "FastLanguageModel": "LoRAModel.from_pretrained(name, LoRAConfig()) loads a base and adds an adapter",
    "TaskType": "a task type is a text, LoRAConfig(task_type='CAUSAL_LM')",
    "get_peft_model": "LoRAModel.from_model(model, config) adds an adapter",
    "get_peft_model_state_dict": "model.get_adapter_state_dict() returns an adapter's tensors",
    "hotswap_adapter": "model.load_adapter(path, name, hotswap=True) puts a file's numbers into an adapter",
    "inject_adapter_in_model": "add_lora(model, config) adds an adapter",
    "lora_state_dict": "model.get_adapter_state_dict() returns an adapter's tensors, model.save_pretrained writes them",
    "mark_only_lora_as_trainable": "adding an adapter freezes everything else",
    "prepare_model_for_kbit_training": "a quantised model takes an adapter as it is",
    "prepare_model_for_compiled_hotswap": "model.prepare_hotswap(max_r=64), before model.compile()",
    "set_peft_model_state_dict": "model.load_weights(directory) copies saved tensors into an adapter",
}

# Attributes of others' models (PEFT's, AdapterHub's, unsloth's) -> what to write here. `hasattr` goes on saying that
# they are not there.
METHODS = {
    "active_adapter": "model.active_adapters() returns the names",
    "active_peft_config": "model.peft_config[name] is an adapter's config, and model.active_adapters() the names",
    "add_classification_head": "LoRAConfig(task_type='SEQ_CLS') trains and saves the head that the task has",
    "average_adapter": "model.add_weighted_adapter(names, weights, name) makes one adapter of several",
    "compare": "hf_lora.compare('a', 'b', model) tells how much two adapters have in common",
    "create_or_update_model_card": "save_pretrained and push_to_hub write the card; card_data= adds to it",
    "disable_adapter": "`with model.adapters_disabled():` is the block, model.disable_adapters() holds until further",
    "disable_adapter_layers": "model.disable_adapters()",
    "enable_adapter_layers": "model.enable_adapters()",
    "delete_adapters": "model.delete_adapter(names)",
    "disable_lora": "model.disable_adapters()",
    "enable_lora": "model.enable_adapters()",
    "enable_lora_hotswap": "model.prepare_hotswap(max_r=64), before model.compile()",
    "for_inference": "model.eval()",
    "for_training": "model.train()",
    "get_base_model": (
        "the model is its own base, nothing is wrapped around it; `with model.adapters_disabled():` computes without "
        "adapters, and model.unload() takes them off"
    ),
    "get_active_adapters": "model.active_adapters() returns the names",
    "get_layer_status": "model.targets_report() is a table of what is adapted",
    "get_model_status": "model.targets_report() is a table of what is adapted, model.active_adapters() the names",
    "hotswap_adapter": "model.load_adapter(path, name, hotswap=True) puts a file's numbers into an adapter",
    "list_adapters": "model.peft_config has every adapter's config by its name",
    **dict.fromkeys(("load_lora_adapter", "load_lora_weights"), "model.load_adapter(path, name)"),
    "prepare_model_for_compiled_hotswap": "model.prepare_hotswap(max_r=64), before model.compile()",
    "save_adapter": "model.save_pretrained(directory, adapter_name=name)",
    "save_all_adapters": "model.save_pretrained(directory)",
    "save_pretrained_gguf": "model.merge_and_unload().save_pretrained(directory), which llama.cpp's script converts",
    "save_pretrained_merged": "model.merge_and_unload().save_pretrained(directory)",
    "set_active_adapters": "model.set_adapter(names)",
    "set_adapters": "model.set_adapter(names) sums them, model.add_weighted_adapter(names, weights, name) weighs them",
    "train_adapter": "model.set_adapter(name); adapters train from the start, and the rest is frozen",
    "unload_adapter": "model.delete_adapter(name)",
    "unmerge_and_unload": "model.unload() takes merged adapters out of the weights again, bit for bit",
}

# Arguments of others' functions -> what to write here.
ARGUMENTS = {
    "adapter": "adapter_name=",
    "adapter_config": "lora_config=",
    "adapter_weights": "model.add_weighted_adapter() makes one adapter of several; active ones are summed as they are",
    "adapters": "adapter_names=",
    "autocast_adapter_dtype": "factors are float32 where they train, and as the base otherwise",
    "config": "lora_config=",
    "load_in_4bit": "quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
    "load_in_8bit": "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "low_cpu_mem_usage": "a file's tensors are taken over without a copy anyway",
    "max_cpu_loras": "max_host_bytes= limits the bytes in CPU memory",
    "max_loras": "max_adapters=",
    "max_lora_rank": "adapters of any rank are taken",
    "max_seq_length": "the tokenizer or the Trainer cuts texts",
    "max_shard_size": "an adapter is one file",
    "mixed": "an adapter's config says what it is, and a LoRAModel takes all kinds",
    "path_initial_model_for_weight_conversion": "save_pretrained() takes it",
    "peft_config": "lora_config=",
    "progressbar": "there is no progress bar",
    "random_state": "LoRAConfig(seed=...)",
    "safe_merge": (
        "weights that are not finite are refused anyway; verify= limits what rounding takes, dtype=torch.float32 "
        "avoids it"
    ),
    "safe_serialization": "an adapter is written as safetensors",
    "save_embedding_layers": "new token rows are saved by themselves; modules_to_save= of the config saves a table",
    "selected_adapters": "adapter_name= saves one of several",
    "use_gradient_checkpointing": "gradient_checkpointing=True of the TrainingArguments",
    "target_rank": "max_r=",
    "torch_device": "the adapter lies where its layer does; model.to(device) moves both",
}

# What a base's from_pretrained may take itself.
_OF_A_BASE = {"bias", "config", "low_cpu_mem_usage", "max_shard_size", "other", "revision"}
SETTINGS = frozenset(field.name for field in dataclasses.fields(Fields))

T = TypeVar("T", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ArgumentError where arguments are given that something does not take, with the words for them here."""
    names = [*known]
    if unknown := sorted(set(given) - {*names}):
        raise ArgumentError(
            f"{what} got unexpected keyword arguments: {', '.join(unknown)}{_hints(unknown, names)}. "
            f"It takes {', '.join(names) or 'none'}."
        )


def refuse_misplaced(given: Mapping[str, Any]) -> None:
    """Raise ArgumentError where arguments for loading a base are settings of an adapter, or others' words for ours."""
    wrong = {name for name in given if name in SETTINGS | ARGUMENTS.keys() and name not in _OF_A_BASE}
    if isinstance(given.get("config"), Fields):
        wrong.add("config")
    if wrong:
        names = ["lora_config", "adapter_name"]
        raise ArgumentError(
            f"from_pretrained() got unexpected keyword arguments: {', '.join(sorted(wrong))}{_hints(wrong, names)}."
        )


def checks_arguments(cls: T) -> T:
    """Return a class whose public methods name the arguments here where they are given others."""
    for name, value in vars(cls).copy().items():
        is_class = isinstance(value, classmethod)
        function = value.__func__ if is_class else value
        if not name.startswith("_") and inspect.isfunction(function) and not inspect.getfullargspec(function).varkw:
            method = checked(f"{name}()")(function)
            setattr(cls, name, classmethod(method) if is_class else method)
    return cls


def checked(what: str) -> Callable[[F], F]:
    """Return what wraps a function so that `refuse_unknown` speaks for it; what: its name for its callers."""

    def wrap(function: F) -> F:
        known = [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "model")]

        @functools.wraps(function)
        def method(*args: Any, **kwargs: Any) -> Any:
            if not kwargs.keys() <= {*known, "model"}:
                refuse_unknown(what, kwargs, known)
            return function(*args, **kwargs)

        return method  # type: ignore[return-value]

    return wrap


def _hints(unknown: Iterable[str], known: list[str]) -> str:
    told = []
    for name in sorted(unknown):
        if name in SETTINGS and {"lora_config", "adapter_config"} & {*known}:
            told.append(f"{name}: LoRAConfig({name}=...)")
        elif name in ARGUMENTS and not (ARGUMENTS[name].endswith("=") and ARGUMENTS[name][:-1] not in known):
            told.append(f"{name}: {ARGUMENTS[name]}")
        elif near := difflib.get_close_matches(name, known, 1, 0.6):
            told.append(f"{name}: did you mean {near[0]}=?")
    return f" ({'; '.join(told)})" if told else ""
