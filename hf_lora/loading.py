"""Finding the adapter that a name stands for, in any of the formats."""

from __future__ import annotations

from typing import Any

from .config import CONFIG_NAME
from .errors import AdapterFileError
from .formats.contents import Contents
from .formats.folder import read_folder
from .sources import Source

__all__ = ["open_adapter"]


def open_adapter(name: str, kwargs: dict[str, Any], required: bool = False) -> Contents | None:
    """Read an adapter of the Hub or this machine; None where the name stands for something else.

    kwargs: Hub arguments among others; those that belong to the adapter alone (revision, subfolder) are taken out
    where it is one. Raises AdapterFileError where the adapter is damaged, or `required` and not there.
    """
    contents = read_folder(Source.of(name, kwargs))
    if contents is None:
        if required:
            raise AdapterFileError(f"{name} holds no {CONFIG_NAME}: it is not an adapter, or it cannot be reached.")
        return None
    for key in ("revision", "subfolder"):
        kwargs.pop(key, None)
    return contents
