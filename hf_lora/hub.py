"""The Hub: one file of a repo, fetched and verified; its client's errors as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

__all__ = ["fetch"]


def fetch(repo_id: str, file: str, **kwargs: Any) -> Path | None:
    """Return the path of a file of a repo in the cache, downloaded where it is not there; None where there is none.

    kwargs: revision, subfolder, token, cache_dir, force_download, local_files_only.
    """
    try:
        return Path(huggingface_hub.hf_hub_download(repo_id, file, **kwargs))
    except (EntryNotFoundError, LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None
