"""Uploading an adapter to the Hub: its own files, never the base's, never a path of this machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub

from .errors import ModelError
from .saving import save_adapters

__all__ = ["push_adapter"]


def push_adapter(
    model: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    base_model: str | None = None,
) -> str:
    """Upload a model's adapters and return the commit's URL.

    Raises ModelError where the base is known by a local path only: nobody else could load the adapter, and the path
    is nobody's business.
    """
    configs = model._lora.configs
    before = {name: config.base_model_name_or_path for name, config in configs.items()}
    for name, base in before.items():
        base = base_model or base
        if not base or os.path.isabs(base) or os.path.exists(base):
            raise ModelError(
                f"the adapter {name!r} belongs to the local base {base!r}, which nobody else can load; pass "
                "base_model='org/name' with its Hub id."
            )
    with tempfile.TemporaryDirectory() as folder:
        try:
            for config in configs.values():
                config.base_model_name_or_path = base_model or config.base_model_name_or_path
            save_adapters(model, Path(folder))
        finally:
            for name, config in configs.items():
                config.base_model_name_or_path = before[name]
        repo = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        info = huggingface_hub.upload_folder(
            repo_id=repo, folder_path=folder, token=token, revision=revision, create_pr=create_pr,
            commit_message=commit_message or "Upload adapter", commit_description=commit_description,
        )  # fmt: skip
    return str(info.commit_url)
