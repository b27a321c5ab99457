"""What an adapter's file notes of the base that it was trained on, read strictly."""

from collections.abc import Mapping
from typing import Any

from ..errors import AdapterFileError
from ..maths import fingerprint as fp

BASE_NOTE = "base"  # its key in the notes of the file
SEED_NOTE = "seed"  # of what its start drew
START_NOTE = "started_as"  # what the config says of an adapter whose product at birth is in the file
RECIPE_NOTE = "recipe"  # of which adapters it was made
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


def described_recipe(recipe: object) -> str:
    """Return which adapters a combination was made of and how; "" for none, and for what is no recipe.

    >>> described_recipe({"adapters": ["a", "b"], "weights": [1, -0.5], "combination_type": "ties", "density": 0.2})
    '1 x `a`, -0.5 x `b` (ties, density=0.2)'
    """
    if not isinstance(recipe, Mapping):
        return ""
    rest = {key: value for key, value in recipe.items() if key not in ("adapters", "weights", "combination_type")}
    try:
        pairs = zip(recipe["adapters"], recipe["weights"], strict=True)
        terms = ", ".join(f"{float(weight):g} x `{name}`" for name, weight in pairs)
        how = ", ".join([recipe["combination_type"], *(f"{key}={value}" for key, value in rest.items())])
    except (KeyError, TypeError, ValueError):
        return ""
    return f"{terms} ({how})"
