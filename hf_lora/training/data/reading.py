"""Files, folders and data sets of the Hub as tables on disk: one function a format, one table of formats.

Rows are written to an Arrow file and mapped into memory, so that a million of them take none twice. Every reader adds
the column PLACE, which says where a row stands.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DataError, some
from . import annotated, columnar, folders, lines, objects, tables
from .folders import split_of
from .written import Found, Wanted

if TYPE_CHECKING:
    from datasets import Dataset

# A file's ending -> what reads it: (path, an empty file to write Arrow into, how) to Found. Text may be in a .gz.
READERS = {
    ".csv": tables.read_csv, ".tsv": tables.read_csv, ".tab": tables.read_csv, ".jsonl": objects.read_json,
    ".ndjson": objects.read_json, ".json": objects.read_json, ".parquet": columnar.read_parquet,
    ".txt": lines.read_text, ".text": lines.read_text,
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio"), lines.read_conll),
}  # fmt: skip
_TEXTS = (".txt", ".text")  # beside pictures and sounds they are notes
_ELSEWHERE = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "save the sheet as CSV UTF-8"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z"), "unpack it and name a file in it"),
    **dict.fromkeys((".pdf", ".docx", ".doc"), "save its text as .txt, or its rows as CSV"),
}


def read_rows(source: str, scratch: Path, limit: int | None = None, **how: object) -> Dataset:
    """Return the rows of a file, a folder or a data set of the Hub; of several splits, those to train on.

    scratch: a folder for the Arrow files, which must stay as long as the rows are used. limit: at most so many rows,
    from the top. how: `encoding` and `skip_bad_rows`. Raises DataError for what is not there, is empty or cannot be
    read, with the file, the line, and what to do.
    """
    found = _read(source, scratch, Wanted(limit=limit, **how))  # type: ignore[arg-type]
    return (found.get("train") or next(iter(found.values()))).rows


def read_splits(sources: Mapping[str, str | None], scratch: Path, wanted: Wanted) -> dict[str, Found]:
    """Return what was read for "train", "eval" and "test", those that there are.

    sources: where the rows of each split are; None for those not given: they are taken from a folder or data set to
    train on that has them. Raises DataError, as `read_rows` does.
    """
    found = _read(str(sources["train"]), scratch, wanted)
    for split, source in sources.items():
        if source is not None and split != "train":
            own = _read(source, scratch, wanted)
            found[split] = own.get(split) or next(iter(own.values()))
    return found


def _read(source: str, scratch: Path, wanted: Wanted) -> dict[str, Found]:
    """Return the rows of a source by split; all of them as "train" where there are none."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        path = path.parent  # YOLO's
    if path.is_dir():
        return _folder(path, scratch, wanted)
    if path.is_file():
        return {"train": _file(path, scratch, wanted)}
    files = sorted(glob.glob(source)) if glob.has_magic(source) else source.split(",")
    if len(files) > 1 or (files and files[0] != source):
        return {"train": _joined([Path(each.strip()) for each in files], scratch, wanted)}
    if columnar.is_hub_name(source) and _reader_of(path) is None:
        found = columnar.read_hub(source, wanted)
        return {"train": next(iter(found.values()))} if len(found) == 1 else _by_split(found, source)
    raise DataError(f"{source}: {_not_there(path)}")


def _not_there(path: Path) -> str:
    """Say that a file is missing, and what lies there instead."""
    if path.is_symlink():
        return f"it is a link to {path.readlink()}, where nothing is; link it anew, or name the file itself."
    if not path.parent.is_dir():
        return f"there is no such file, and no folder {path.parent}."
    there = [each.name for each in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, there, n=1)
    if near:
        return f"there is no such file or folder. Did you mean {path.with_name(near[0])}?"
    return "there is no such file or folder; a data set of the Hub is called owner/name."


def _reader_of(path: Path) -> str | None:
    """Return the ending in READERS by which a file is read."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in READERS if name.endswith(ending)), None)


def _file(path: Path, scratch: Path, wanted: Wanted) -> Found:
    if not path.is_file():
        raise DataError(f"{path}: {_not_there(path)}")
    ending = _reader_of(path)
    if ending is None:
        cure = _ELSEWHERE.get(path.suffix.lower(), "save it as one of these")
        raise DataError(f"{path}: rows are read from {', '.join(READERS)} files; {cure}.")
    if not path.stat().st_size:
        raise DataError(f"{path}: it is empty. Was it saved, or is it still being written? Name a file with rows.")
    reader = folders.read_coco if ending == ".json" and folders.is_coco(path) else READERS[ending]
    found = annotated.gather_boxes(reader(path, _table(scratch), wanted), _table(scratch), wanted)
    if not len(found.rows):
        bad = f" Left out: {some(found.left_out, between='; ')}." if found.left_out else ""
        raise DataError(f"{path}: it has no rows; give it at least one to learn from.{bad}")
    return found


def _table(scratch: Path) -> Path:
    return scratch / f"{len(list(scratch.iterdir()))}.arrow"


def _joined(paths: list[Path], scratch: Path, wanted: Wanted) -> Found:
    """Return the rows of several files of the same columns, one behind the other."""
    from datasets import concatenate_datasets

    found = [_file(path, scratch, wanted) for path in paths]
    for path, each in zip(paths, found, strict=True):
        if set(each.rows.column_names) != set(found[0].rows.column_names):
            raise DataError(
                f"{path}: it has the columns {', '.join(each.rows.column_names[:-1])}, and {paths[0]} has "
                f"{', '.join(found[0].rows.column_names[:-1])}; files that are read together need the same ones."
            )
    try:
        rows = concatenate_datasets([each.rows for each in found])
    except ValueError as error:
        raise DataError(f"{some(paths)}: their columns are of different types: {error}") from error
    if wanted.limit:
        rows = rows.select(range(min(wanted.limit, len(rows))))
    about = {**found[0].about, "files": str(len(paths))}
    return Found(rows, about, [line for each in found for line in each.left_out])


def _folder(path: Path, scratch: Path, wanted: Wanted) -> dict[str, Found]:
    """Return the rows of the files in a folder, by the split that their names tell."""
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        found = columnar.read_saved(path, wanted)
        return _by_split(found, str(path)) if len(found) > 1 else found
    if (boxes := annotated.read_annotated(path, scratch, wanted)) is not None:
        return boxes
    there = [each for each in sorted(path.iterdir()) if not each.name.startswith(".")]
    splits = {split_of(each.name): each for each in there if each.is_dir()}
    files = [each for each in there if each.is_file() and _reader_of(each)]
    files = [each for each in files if not each.stem.lower().startswith("readme")]
    if "train" in splits and None not in splits and not files:
        return {str(split): _folder(each, scratch, wanted)["train"] for split, each in splits.items()}
    if all(_reader_of(each) in _TEXTS for each in files) and folders.media_below(path):
        return {"train": folders.read_media(path, _table(scratch), wanted)}
    if not files:
        raise DataError(
            f"{path}: the folder has no pictures or sounds, and no file of rows; they end in {', '.join(READERS)}."
        )
    names: dict[str, list[Path]] = {}
    for each in files:
        names.setdefault(split_of(each.name) or "", []).append(each)
    if len(names) == 1:
        return {"train": _joined(files, scratch, wanted)}
    if "" in names or "train" not in names:
        raise DataError(
            f"{path}: which of {some(each.name for each in files)} are to train on? Call them train, validation and "
            "test, or name files with --train, --eval and --test."
        )
    return {split: _joined(each, scratch, wanted) for split, each in names.items()}


def _by_split(found: dict[str, Found], source: str) -> dict[str, Found]:
    """Return the first split of each kind, as "train", "eval" and "test"."""
    named: dict[str, Found] = {}
    for name, each in found.items():
        if (split := split_of(name)) is not None:
            named.setdefault(split, each)
    if "train" not in named:
        raise DataError(f"{source}: it has the splits {', '.join(found)}; say which to train on, as {source}::split.")
    return named
