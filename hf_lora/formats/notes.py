"""What an adapter's file notes of the base that it was trained on, read strictly."""

from __future__ import annotations

from typing import Any

from ..errors import AdapterFileError
from ..maths import fingerprint as fp

__all__ = ["BASE_NOTE", "FLOATS", "FORMAT", "read_base_note"]

BASE_NOTE = "base"  # its key in the notes of the file
FLOATS = "floats"  # in it: what stays in float where the adapted weights are packed
FORMAT = 1

Noted = tuple[dict[str, Any], fp.Fingerprint | None, fp.Fingerprint | None]


def read_base_note(note: object) -> Noted | None:
    """Return what is noted of the base, the fingerprint of its adapted weights and of what stays in float.

    None where there is neither, or a note of a later format. Raises AdapterFileError where the note is damaged.
    """
    if not note:
        return None
    try:
        known = dict(note)  # type: ignore[call-overload]
        if not isinstance(known["format"], int):
            raise TypeError(f"its format is {known['format']!r}")
        if known["format"] != FORMAT or not {"fingerprint", FLOATS} & known.keys():
            return None
        theirs, floats = (fp.decode(known[key]) if key in known else None for key in ("fingerprint", FLOATS))
        return known, theirs, floats
    except (TypeError, KeyError, ValueError) as error:
        raise AdapterFileError(
            f"what the adapter's file says of its base is damaged ({error}); get the file again, or pass "
            "check_base=False."
        ) from None
