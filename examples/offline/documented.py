"""What Python says of itself: the documentation strings of its library, as rows of several tasks."""

import builtins
import importlib
import inspect
import random
import re

MODULES = (
    "argparse ast base64 bisect builtins calendar codecs collections configparser contextlib csv dataclasses "
    "datetime decimal difflib dis email.message fractions functools gettext glob gzip hashlib heapq http.client "
    "imaplib inspect io ipaddress itertools json locale logging mailbox math multiprocessing.pool os os.path "
    "pathlib pickle platform poplib pprint queue random re sched shelve shlex shutil signal smtplib socket "
    "sqlite3 ssl statistics string struct subprocess tarfile tempfile textwrap threading time tokenize traceback "
    "unicodedata unittest.mock urllib.parse urllib.request uuid warnings weakref xml.dom.minidom "
    "xml.etree.ElementTree zipfile zlib"
)


def documented() -> list[tuple[str, str]]:
    """Return (name, documentation) of the library's functions, classes and methods, in a random order."""
    found: dict[str, str] = {}  # by the text: what many classes inherit is there once
    for name in MODULES.split():
        for key, thing in vars(importlib.import_module(name)).items():
            if key.startswith("_") or not (inspect.isroutine(thing) or inspect.isclass(thing)):
                continue
            inner = vars(thing).items() if inspect.isclass(thing) else ()
            for path, each in ((f"{name}.{key}", thing), *((f"{name}.{key}.{inside}", e) for inside, e in inner)):
                text = each.__doc__ if inspect.isroutine(each) or inspect.isclass(each) else None
                if isinstance(text, str) and not path.rpartition(".")[2].startswith("_"):
                    found.setdefault(inspect.cleandoc(text), path)
    rows = sorted((path, text) for text, path in found.items())
    random.Random(0).shuffle(rows)
    return rows


def _first_lines(longest: int = 120) -> list[tuple[str, str]]:
    """Return (name, the first sentence of its documentation), where that is a sentence."""
    cut = ((path, " ".join(text.split("\n\n")[0].split())) for path, text in documented())
    return [(path, line) for path, line in cut if 20 < len(line) < longest and line[0].isupper() and " " in line]


def conversations() -> list[tuple[str, str]]:
    """Return (a question, its answer): what something of the library does."""
    return [(f"What does {path} do?", line) for path, line in _first_lines()]


def summaries() -> list[tuple[str, str]]:
    """Return (a description, its first line): the first line of a documentation string says in short what follows."""
    parts = (text.partition("\n\n") for _, text in documented())
    cut = ((" ".join(rest.split()), " ".join(first.split())) for first, _, rest in parts)
    return [(rest[:400], first) for rest, first in cut if len(rest) > 40 and 20 < len(first) < 100]


def questions() -> list[dict[str, str]]:
    """Return question, context and answer, which is a part of the context: what something returns."""
    rows = []
    for path, text in documented():
        context = " ".join(text.split())[:160]
        if found := re.search(r"\b[Rr]eturns? (?:an? |the )?([^.,;:]{4,60})[.,;]", context):
            rows.append({"question": f"What does {path} return?", "context": context, "answer": found[1].strip()})
    return rows


def neighbours(seed: int) -> list[dict[str, object]]:
    """Return lists to rank: what a reader of one module saw, five things they may want next, which one is of it."""
    by_module: dict[str, list[str]] = {}
    for path, line in _first_lines(60):
        by_module.setdefault(path.split(".")[0], []).append(line)
    draw, rows = random.Random(seed), []
    for module, lines in by_module.items():
        others = [line for other, more in by_module.items() if other != module for line in more]
        for at in range(0, len(lines) - 2, 3):
            items, wanted = draw.sample(others, 4), draw.randrange(5)
            items.insert(wanted, lines[at + 2])
            rows.append({"module": module, "history": lines[at : at + 2], "items": items, "wanted": wanted})
    draw.shuffle(rows)
    return rows


def tagged() -> list[dict[str, list[str]]]:
    """Return words and their tags: errors, types and constants of Python that its documentation speaks of."""
    names = {key: thing for key, thing in vars(builtins).items() if isinstance(thing, type)}
    tags = dict.fromkeys(("True", "False", "None"), "B-CONSTANT")
    tags |= {key: "B-ERROR" if issubclass(thing, BaseException) else "B-TYPE" for key, thing in names.items()}
    rows = []
    for _, text in documented():
        words = re.findall(r"\w+|[^\w\s]", text)[:20]
        row = {"words": words, "tags": [tags.get(word, "O") for word in words]}
        if len(set(row["tags"])) > 1:
            rows.append(row)
    return rows
