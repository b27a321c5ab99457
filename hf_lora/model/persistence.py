"""What a LoRAModel writes and reads back: its adapters, to a directory, to the Hub, from a checkpoint; nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import Tensor, nn

from ..errors import AdapterNameError
from ..files.names import CONFIG_NAME, WEIGHTS_NAME, WEIGHTS_NAMES
from ..files.transaction import settled
from ..formats.opening import open_adapter
from ..layers.state import AdapterState
from . import adapters
from .publishing import push_adapter
from .saving import adapter_state_dict, save_adapters

__all__ = ["Persistence"]

_FOR_PUSHING = (
    "base_model", "commit_description", "commit_message", "create_pr", "private", "repo_id", "revision", "tags",
    "token",
)  # fmt: skip
# What Transformers, accelerate and others pass when they save any model: of no meaning for an adapter's three files.
_OF_A_BASE = (
    "distributed_checkpoint", "max_shard_size", "safe_serialization", "save_function", "save_original_format",
    "save_peft_format", "use_temp_dir", "variant",
)  # fmt: skip


class Persistence(nn.Module):
    """What a LoRAModel does about files."""

    _lora: AdapterState

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return one adapter's tensors (the active one's unless named) under PEFT's names, without their prefix."""
        return adapter_state_dict(self, adapter_name, state_dict)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        adapter_name: str | None = None,
        card_data: ModelCardData | None = None,
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
        if unknown := kwargs.keys() - {*_FOR_PUSHING, *_OF_A_BASE}:
            raise TypeError(
                f"save_pretrained() got unexpected keyword arguments: {', '.join(sorted(unknown))}. One adapter of "
                "several is chosen by adapter_name=."
            )
        directory = Path(save_directory)
        save_adapters(self, directory, adapter_name, state_dict, write=is_main_process, card_data=card_data)
        if is_main_process and push_to_hub:
            given = {k: v for k, v in kwargs.items() if k in _FOR_PUSHING and k != "repo_id"}
            repo = kwargs.get("repo_id") or directory.resolve().name
            self.push_to_hub(repo, adapter_name=adapter_name, state_dict=state_dict, card_data=card_data, **given)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload every adapter (never the base) to the Hub in one commit, and return the commit's URL.

        The repo is made where needed; what its owner wrote into the card stays.
        kwargs: commit_message, commit_description, private, token, revision (a branch, made where needed), create_pr,
        tags, card_data; tokenizer (or processing_class) is uploaded along; adapter_name: only this one; base_model: the
        base's Hub id, where it was loaded from a local path, which is never published.
        Raises ModelError, AdapterStateError, HubError, with everything here unchanged.
        """
        return push_adapter(self, repo_id, **kwargs)

    def load_weights(self, directory: str | os.PathLike[str]) -> None:
        """Copy saved adapters into the ones of the same names that are here, in place: for resuming.

        A directory written with one adapter holds it at its top, whatever its name; with several, each in a folder.
        Raises AdapterFileError where the directory does not hold every adapter of this model.
        """
        for name, folder in self._saved_places(Path(directory)).items():
            if folder is None:
                raise AdapterNameError(f"{directory} holds no folder of the adapter {name!r}; it cannot be resumed.")
            files = open_adapter(os.fspath(folder), {}, required=True)
            assert files is not None
            adapters.copy_in(self, self._lora, files.config, files.tensors, name)

    def missing_weights(self, directory: str | os.PathLike[str]) -> list[str]:
        """Return the files that `load_weights` would miss in a directory, by their paths in it; nothing is read."""
        missing = []
        for name, folder in self._saved_places(Path(directory)).items():
            place = Path("" if folder == Path(directory) else name)
            if folder is None or settled(folder) is None:
                missing.append(os.fspath(place / CONFIG_NAME))
            if folder is None or not any((folder / file).is_file() for file in WEIGHTS_NAMES):
                missing.append(os.fspath(place / WEIGHTS_NAME))
        return missing

    def _saved_places(self, directory: Path) -> dict[str, Path | None]:
        """Return where in a saved directory each adapter of this model lies: in a folder of its name, or at the top."""
        several = len(self._lora.configs) > 1
        places: dict[str, Path | None] = {}
        for name in self._lora.configs:
            folder = directory / name
            at_top = None if several and name != "default" else directory
            places[name] = folder if folder.is_dir() else at_top
        return places
