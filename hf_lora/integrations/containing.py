"""A Trainer whose model only contains LoRAModels, as sentence-transformers' does: its checkpoints hold their adapters.

Such a Trainer reads a checkpoint as its own class does. What belongs to a LoRAModel inside is read by that one, where
its adapters lie in the checkpoint; the rest of the model goes the Trainer's way.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import AdapterFileError
from ..files.names import CONFIG_NAME
from .trained_model import inner_models


def reading(cls: type) -> dict[str, Any]:
    """Return the methods that read a checkpoint for a Trainer's class, around those that it has."""
    return {
        "_load_from_checkpoint": _reads(cls, "_load_from_checkpoint", lambda trainer, args: args[0]),
        "_load_best_model": _reads(cls, "_load_best_model", lambda trainer, args: trainer.state.best_model_checkpoint),
    }


def _reads(cls: type, name: str, checkpoint: Callable[[Any, tuple[Any, ...]], Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        whole = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        given = checkpoint(self, args or tuple(kwargs.values()))
        with _adapters_read(whole, Path(given)):
            return getattr(super(type(self), self), name)(*args, **kwargs)

    method.__name__ = name
    return method


@contextmanager
def _adapters_read(whole: Any, checkpoint: Path) -> Iterator[None]:
    """Read the adapters of the LoRAModels inside a model, and leave the rest of it to what runs inside the block."""
    places = _places(dict(inner_models(whole)), checkpoint)
    # None where a state dict of the whole holds them, or the model is a LoRAModel itself; one method may call another.
    if not places or "load_state_dict" in whole.__dict__:
        yield
        return
    for model, place in places.values():
        model.load_weights(place)
    original, read = whole.load_state_dict, []

    def load_state_dict(state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        read.append(True)
        own = {key: value for key, value in whole.state_dict().items() if _is_inside(key, places)}
        rest = {key: value for key, value in state_dict.items() if not _is_inside(key, places)}
        return original({**rest, **own}, *args, **kwargs)

    whole.__dict__["load_state_dict"] = load_state_dict
    try:
        yield
    finally:
        del whole.__dict__["load_state_dict"]
    trains = [k for k, p in whole.named_parameters() if p.requires_grad and not _is_inside(k, places)]
    if trains and not read:
        raise AdapterFileError(
            f"{checkpoint}: the adapters are read, but what trains beside them was not: "
            f"{', '.join(trains[:3])}; the log says why."
        )


def _places(models: Mapping[str, Any], checkpoint: Path) -> dict[str, tuple[Any, Path]]:
    """Return the LoRAModels whose adapters lie in a folder of a checkpoint, by name, and that folder."""
    folders = sorted({path.parent for path in checkpoint.rglob(CONFIG_NAME)}) if models else []
    found = {name: [path for path in folders if not model.missing_weights(path)] for name, model in models.items()}
    if unclear := [name for name, each in found.items() if each and (len(each) > 1 or len(models) > 1)]:
        raise AdapterFileError(
            f"{checkpoint} holds adapters in {', '.join(path.name for path in folders)}, and it does not say which are "
            f"those of {', '.join(unclear)}: read each with model.load_weights(folder), and train without "
            "resume_from_checkpoint and load_best_model_at_end."
        )
    return {name: (models[name], each[0]) for name, each in found.items() if each}


def _is_inside(key: str, places: Mapping[str, Any]) -> bool:
    return any(key.startswith(f"{name}.") for name in places)
