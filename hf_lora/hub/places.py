"""An adapter's place in a saved folder or a repo, and the Hub id of its base."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import ModelError
from ..files.hub_files import is_repo_id

__all__ = ["is_local_base", "places_of", "public_base"]


def places_of(names: Sequence[str]) -> dict[str, str]:
    """Return where in a saved folder or a repo each adapter lies: "" for its top, or a folder of its name.

    >>> places_of(["a"]), places_of(["default", "b"])
    ({'a': ''}, {'default': '', 'b': 'b'})
    """
    return {name: "" if len(names) == 1 or name == "default" else name for name in names}


def is_local_base(name: str) -> bool:
    """Return whether a base's name is a path of this machine, or no name that a repo can have."""
    return not is_repo_id(name) or os.path.exists(name)


def public_base(
    base: str | None, base_model: str | None, whose: str, way: str = "pass base_model='org/name' with its Hub id"
) -> str:
    """Return the Hub id that an adapter's base is published by.

    base: what its config names; base_model: what the caller says instead; way: how a caller says it.
    Raises ModelError where neither is an id: nobody else could load the adapter, and a path is nobody's business.
    """
    name = base_model or base
    if name and not is_local_base(name):
        return name
    if base_model:
        raise ModelError(f"base_model={base_model!r} is not the id of a Hub repo; pass it as 'org/name'.")
    told = f"the local base {base!r}, which nobody else can load" if base else "a base without a name"
    raise ModelError(f"{whose} belongs to {told}; {way}.")
