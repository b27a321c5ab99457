"""hf_lora: LoRA as a property of a Transformers model, not a wrapper around it.

>>> from transformers import BertConfig, BertModel
>>> from hf_lora import LoRAConfig, LoRAModel
>>> base = BertModel(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8))
>>> print(LoRAModel.from_model(base, LoRAConfig(r=2)).targets_report())
target                                kind         shape  layers  parameters
encoder.layer.*.attention.self.query  linear, r=2  8 x 8  1 of 1          32
encoder.layer.*.attention.self.value  linear, r=2  8 x 8  1 of 1          32
total                                                                     64
"""

from __future__ import annotations

import importlib
import opcode
import sys
from typing import TYPE_CHECKING, Any

from . import errors
from ._version import __version__  # noqa: F401
from .errors import LoRAError
from .integrations.seams import install

if TYPE_CHECKING:
    from .config.lora_config import LoRAConfig
    from .formats.engines import check_for
    from .formats.inspection import inspect_adapter
    from .model.cache import AdapterCache
    from .model.comparing import compare
    from .model.compressing import compress, compression_error, load_compressed
    from .model.explaining import suggest_rank
    from .model.exports.for_engines import convert_for
    from .model.exports.onnx import export_onnx
    from .model.extracting import extract
    from .model.hooks import leave_adapters_to_peft
    from .model.lora_model import LoRAModel, add_lora
    from .model.truncating import truncate
    from .targets.names import resolve_targets
    from .training.groups import check_optimizer, parameter_groups
    from .training.metrics import metrics
    from .training.ready import check_ready
    from .training.runs import Run
    from .training.search import LoRASearch
    from .training.suggesting import suggested_learning_rate
    from .training.together import train_together

__all__ = [
    "AdapterCache",
    "LoRAConfig",
    "LoRAError",
    "LoRAModel",
    "LoRASearch",
    "Run",
    "add_lora",
    "check_for",
    "check_optimizer",
    "check_ready",
    "compare",
    "compress",
    "compression_error",
    "convert_for",
    "errors",
    "export_onnx",
    "extract",
    "inspect_adapter",
    "leave_adapters_to_peft",
    "load_compressed",
    "metrics",
    "parameter_groups",
    "resolve_targets",
    "suggest_rank",
    "suggested_learning_rate",
    "train_together",
    "truncate",
]

# Read on first use: they import torch, which `import transformers` leaves alone as well.
_LAZY = {
    "AdapterCache": "model.cache",
    "LoRAConfig": "config.lora_config",
    "LoRAModel": "model.lora_model",
    "LoRASearch": "training.search",
    "Run": "training.runs",
    "add_lora": "model.lora_model",
    "check_for": "formats.engines",
    "check_optimizer": "training.groups",
    "check_ready": "training.ready",
    "compare": "model.comparing",
    "compress": "model.compressing",
    "compression_error": "model.compressing",
    "convert_for": "model.exports.for_engines",
    "export_onnx": "model.exports.onnx",
    "extract": "model.extracting",
    "inspect_adapter": "formats.inspection",
    "leave_adapters_to_peft": "model.hooks",
    "load_compressed": "model.compressing",
    "metrics": "training.metrics",
    "parameter_groups": "training.groups",
    "resolve_targets": "targets.names",
    "suggest_rank": "model.explaining",
    "suggested_learning_rate": "training.suggesting",
    "train_together": "training.together",
    "truncate": "model.truncating",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        others = {} if name.startswith("_") else importlib.import_module(".model.hints", __name__).NAMES
        if name not in others:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        words, asking = f"hf_lora has no {name!r}; here {others[name]}.", sys._getframe(1)
        if asking.f_code.co_code[asking.f_lasti] == opcode.opmap["IMPORT_FROM"]:
            raise ImportError(words)  # of an AttributeError the words would be lost there
        raise AttributeError(words)
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


install()
