"""The formats that adapters are read from, one reader each.

A reader takes a Candidate and returns its Contents, or None where it is not of its format. To add one: write the file,
add its reader to `READERS`. PEFT's comes last, because it says what is wrong with a config that is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable

from .adapterhub import read_adapterhub
from .contents import Candidate, Contents
from .folder import read_folder
from .loralib import read_loralib

__all__ = ["READERS"]

READERS: dict[str, Callable[[Candidate], Contents | None]] = {
    "loralib": read_loralib,
    "adapterhub": read_adapterhub,
    "peft": read_folder,
}
