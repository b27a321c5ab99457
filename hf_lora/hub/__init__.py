"""The Hub's files read and verified, commits made once, its client's errors as ours; nothing of models."""

from __future__ import annotations

from .reading import digest, fetch, fetch_range, file_size, is_repo_id, list_files

__all__ = ["digest", "fetch", "fetch_range", "file_size", "is_repo_id", "list_files"]
