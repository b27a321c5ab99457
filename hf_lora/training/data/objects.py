"""JSON as rows: an object a line, or a list of objects; every fault with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ...errors import DataError
from .columns import PLACE
from .opening import encoding_of, open_text
from .written import BATCH, Found, Wanted, write_batches

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch

_CHUNK = 1 << 20  # letters read at once
_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_NESTED = (list, dict)
_OWN_KEYS = ("arguments", "parameters")
_Placed = tuple[int, dict[str, Any]]  # the line where a row begins, and its values


def read_json(path: Path, table: Path, wanted: Wanted) -> Found:
    """Return the rows of a file of JSON objects, a line each or in a list, written to `table` as Arrow.

    It is read again where later rows have columns, or types, that the first 10,000 did not tell. What a row lacks is
    None. A column whose lists Arrow has no type for, or would give keys that others have, stays JSON (`_is_free`).
    Raises DataError with the line of what is no JSON, no object, or of another type than in the rows before.
    """
    import pyarrow as pa

    encoding = encoding_of(path, wanted.encoding)
    left_out: list[str] = []
    free: set[str] = set()  # columns that stay JSON

    def batches() -> Iterator[list[_Placed]]:
        left_out.clear()
        with open_text(path, encoding) as file:
            rows = _checked(path, _listed(path, file), wanted, left_out, free)
            rows = islice(rows, wanted.limit)
            while batch := list(islice(rows, BATCH)):
                yield batch

    with open_text(path, encoding) as file:
        is_list = file.read(_CHUNK).lstrip("\ufeff \t\r\n")[:1] == "["
    kind = assumed = _joined(path, pa.struct([]), next(batches(), []), free)[0]

    def written(names: Any) -> Iterator[RecordBatch]:
        nonlocal kind
        for batch in batches():
            kind, values = _joined(path, kind, batch, free)
            if kind == assumed:
                values = values if values.type == kind else pa.array([row for _, row in batch], kind)
                places = pa.array([f"{path}, line {line}" for line, _ in batch], pa.string())
                yield pa.record_batch([*values.flatten(), places], schema=names)

    for name in (table, table.with_suffix(".again.arrow")):
        schema = pa.schema([*assumed, pa.field(PLACE, pa.string())])
        found = write_batches(written(schema), schema, name, None)
        if kind == assumed:
            break
        assumed = kind
    return Found(found, {"format": "JSON list" if is_list else "JSON lines", "encoding": encoding}, left_out)


def _listed(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    """Yield (the line, the value or an error) for what stands in a list, or a line each."""
    first, second = (*islice((line for line in file if line.strip("\ufeff \t\r\n")), 2), "", "")[:2]
    file.seek(0)
    if first.lstrip("\ufeff \t").startswith("["):
        yield from _list(path, file)
        return
    if ".json" in path.suffixes and (not second or not _is_json(first)):  # one object, as {"data": [...]}
        yield from ((1, row) for row in _inside(path, file.read()))
        return
    for number, line in enumerate(file, start=1):
        if line.strip("\ufeff \t\r\n"):
            try:
                yield number, json.loads(line.lstrip("\ufeff"))
            except (ValueError, RecursionError) as error:
                yield number, error


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _inside(path: Path, text: str) -> Iterator[Any]:
    """Yield the objects of the one list in an object; of SQuAD's, a row for each question."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: it is no JSON: {error}. Write an object a line, or a list of objects.") from error
    lists = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) != 1:
        raise DataError(
            f"{path}: it holds one object ({', '.join(map(repr, list(found)[:4]))}), and has to hold a list of "
            'objects, a row each, or one a line; pandas writes them by to_json(orient="records", lines=True).'
        )
    for row in lists[0]:
        if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):
            for part in row["paragraphs"]:
                yield from ({"context": part["context"], **asked} for asked in part["qas"])
        else:
            yield row


def _list(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for each value of a JSON list, without reading all of it at once."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    buffer, line, at = file.read(_CHUNK).lstrip("\ufeff").replace("[", " ", 1), 1, 0
    while True:
        start = between.match(buffer, at).end()  # type: ignore[union-attr]
        line += buffer.count("\n", at, start)
        at = start
        try:
            if buffer[at : at + 1] == "]":
                return
            value, end = decoder.raw_decode(buffer, at)
            if end == len(buffer) and (more := file.read(_CHUNK)):  # a number could go on
                buffer, at = buffer[at:] + more, 0
                continue
        except (ValueError, RecursionError) as error:
            if more := file.read(_CHUNK):
                buffer, at = buffer[at:] + more, 0
                continue
            raise DataError(
                f"{path}, line {line}: {error.msg if isinstance(error, json.JSONDecodeError) else error}. The list of "
                "objects is not closed, or this row is no JSON: mend it."
            ) from error
        yield line, value
        line += buffer.count("\n", at, end)
        at = end


def _checked(
    path: Path, values: Iterator[tuple[int, Any]], wanted: Wanted, left_out: list[str], free: set[str]
) -> Iterator[_Placed]:
    for line, value in values:
        if isinstance(value, dict) and PLACE not in value:
            free.update(k for k, v in value.items() if type(v) in _NESTED and k not in free and _is_free(v))
            yield line, value
            continue
        if isinstance(value, json.JSONDecodeError):
            problem = f"{path}, line {line}: it is no JSON: {value.msg} (column {value.colno})"
        elif isinstance(value, Exception):
            problem = f"{path}, line {line}: it is no JSON that can be read: {value}"
        elif isinstance(value, dict):
            problem = f"{path}, line {line}: the name {PLACE} is taken, so it can be no column's"
        else:
            problem = f"{path}, line {line}: it is {_KINDS.get(type(value), 'null')}, and has to be an object"
        if not wanted.skip_bad_rows:
            raise DataError(f'{problem}, as {{"text": "...", "label": "..."}}; --skip-bad-rows leaves such rows out.')
        left_out.append(problem)


def _is_free(value: Any) -> bool:
    """Return whether it has lists of numbers and words, as [0, 5, "PER"], which Arrow has not, or keys of its own.

    The arguments of a tool call, and the parameters of a tool, would get those of all other tools, with nulls.
    """
    if isinstance(value, dict):
        return any(isinstance(value.get(key), dict) for key in _OWN_KEYS) or any(map(_is_free, value.values()))
    if not isinstance(value, list) or not value or isinstance(value[0], str):
        return False
    return len({isinstance(each, str) for each in value}) > 1 or any(map(_is_free, value))


def _is_bare(value: Any) -> bool:
    """Return whether it is an empty list, or has nothing else."""
    return value == [] or (isinstance(value, dict) and bool(value) and all(each == [] for each in value.values()))


def _joined(path: Path, kind: DataType, batch: list[_Placed], free: set[str]) -> tuple[DataType, Any]:
    """Return the type that fits the rows before (kind) and those of a batch, and these as an Arrow array.

    free: the columns that stay JSON, to which lists of objects of other types than before are added. Raises DataError
    with the first row that is of another type.
    """
    import pyarrow as pa

    kind = pa.struct([pa.field(each.name, pa.string()) if each.name in free else each for each in kind])
    for _, row in batch:
        nested = {name: row[name] for name in free & row.keys() if type(row[name]) in _NESTED}
        row.update({name: json.dumps(value) if value else None for name, value in nested.items()})
    if bare := {name for _, row in batch for name, value in row.items() if type(value) in _NESTED and _is_bare(value)}:
        texts = {name for _, row in batch for name in bare if isinstance(row.get(name), str)}
        for _, row in batch:
            row.update(dict.fromkeys((name for name in texts if _is_bare(row.get(name))), None))
    try:
        values = pa.array([row for _, row in batch], None if batch else kind)
        return _both(kind, values.type), values
    except UnicodeEncodeError as error:
        raise DataError(_half_letter(path, batch)) from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        whole = error
    for line, row in batch:
        for name, value in row.items():
            before = kind.field(name).type if kind.get_field_index(name) >= 0 else pa.null()
            try:
                kind = _both(kind, pa.array([{name: value}]).type)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
                if isinstance(value, list) and all(isinstance(each, dict) for each in value) and not _is_word(before):
                    free.add(name)
                    return _joined(path, kind, batch, free)
                raise DataError(
                    f"{path}, line {line}: {name!r} is {_KINDS.get(type(value), 'null')}, {str(value)[:60]!r}, and in "
                    f"the rows before it is {before}; write it alike in all rows."
                ) from error
    raise DataError(f"{path}, line {batch[0][0]} onward: {whole}")


def _is_word(kind: DataType) -> bool:
    """Return whether a column has held neither lists nor objects."""
    return kind.num_fields == 0 and str(kind) != "null"


def _half_letter(path: Path, batch: list[_Placed]) -> str:
    """Say which row has half of a surrogate pair, as what was cut within an emoji has."""
    line = next(line for line, row in batch if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)))
    return f"{path}, line {line}: it has half a letter (an unpaired surrogate, \\ud800 to \\udfff); mend or remove it."


def _both(one: DataType, other: DataType) -> DataType:
    """Return the type of a struct that holds both: whole numbers become decimal ones, columns are joined."""
    import pyarrow as pa

    schemas = [pa.schema(list(each)) for each in (one, other)]
    return pa.struct(list(pa.unify_schemas(schemas, promote_options="permissive")))
