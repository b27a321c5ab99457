"""Regular expressions in others' configs: which could take for ever to match."""

import re

_LONGEST = 10_000  # characters
_ATOM = re.compile(r"\\(.)|\[(\^?)(\]?(?:\\.|[^\]\\])*)\]", re.DOTALL)  # an escaped character, or a class
_GROUP = re.compile(r"\((?:\?[:=!]|\?P<\w+>)?([^()]*)\)([*+]|\{\d*,\})?")  # without groups inside
_REPEAT = re.compile(r"[*+]|\{\d*,\}")


def may_hang(pattern: str) -> bool:
    r"""Return whether a pattern is very long, or repeats without bound a group that itself repeats without bound.

    Such a pattern can try a number of ways that doubles with every letter. A group is harmless where each round has to
    end with a dot that nothing else in it can take.

    >>> may_hang(r"(.*a)+b"), may_hang(r"(\w+\.)+q_proj"), may_hang(r".*\.(q|v)_proj")
    (True, False, False)
    """
    if len(pattern) > _LONGEST:
        return True
    plain = _ATOM.sub(_letter, pattern)  # one letter for each, so that only real brackets and repeats are left
    while group := _GROUP.search(plain):
        inside, repeat = group[1], group[2]
        repeats = _REPEAT.search(inside) is not None
        ends = inside.endswith("D") and "." not in inside
        if repeat and repeats and not ends:
            return True
        plain = plain[: group.start()] + (".+" if repeats or repeat else ".") + plain[group.end() :]
    return False


def _letter(atom: re.Match[str]) -> str:
    """Return "D" for a dot itself, "." for what can take one among others, "x" for what cannot."""
    escaped, negated, characters = atom.groups()
    if escaped:
        return "D" if escaped == "." else "." if escaped in "WSD" else "x"
    return "." if ("." in characters) != bool(negated) else "x"
