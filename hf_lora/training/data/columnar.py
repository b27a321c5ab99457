"""Parquet files, data sets of the Hub, and folders that datasets saved, as rows: with names for class labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from .columns import PLACE
from .media import as_stored
from .written import BATCH, Found, Wanted, write_batches

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]*){0,2}")


def read_parquet(path: Path, table: Path, wanted: Wanted) -> Found:
    """Return the rows of a Parquet file, written to `table` as Arrow a batch at a time. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        batches = (batch.select(_columns(batch.schema.names)) for batch in file.iter_batches(BATCH))
        kept = pa.schema([file.schema_arrow.field(name) for name in _columns(file.schema_arrow.names)])
        schema = kept.with_metadata(file.schema_arrow.metadata)
        rows = write_batches((batch.cast(schema) for batch in batches), schema, table, wanted.limit)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: it cannot be read as Parquet: {' '.join(str(error).split())}") from error
    return Found(_with_names(rows, f"{path}, row"), {"format": "Parquet"})


def _columns(names: list[str]) -> list[str]:
    return [name for name in names if not re.fullmatch(r"__index_level_\d+__", name)]  # pandas' own


def is_hub_name(source: str) -> bool:
    """Return whether a source could be a data set of the Hub: owner/name, with :config or :config:split behind it."""
    return _HUB_NAME.fullmatch(source) is not None and not source.startswith((".", "/", "~"))


def read_hub(source: str, wanted: Wanted) -> dict[str, Found]:
    """Return each split of a data set of the Hub, from its cache where it lies there. Raises DataError."""
    import datasets

    name, config, split = (*source.split(":"), "", "")[:3]
    try:
        found = datasets.load_dataset(name, config or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: there is no such file or folder, and as a data set of the Hub it cannot be loaded: "
            f"{' '.join(str(error).split())[:400]} Say owner/name, or owner/name:config:split."
        ) from error
    if split and split not in found:
        raise DataError(f"{source}: it has no split {split!r}, but {', '.join(found)}.")
    return _each({split: found[split]} if split else dict(found), source, "Hub data set", wanted)


def read_saved(path: Path, wanted: Wanted) -> dict[str, Found]:
    """Return each split of what `save_to_disk` of datasets wrote. Raises DataError."""
    import datasets

    try:
        found = datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: it looks like a saved data set, but cannot be loaded: {error}") from error
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    return _each(splits, str(path), "folder of datasets", wanted)


def _each(splits: dict[str, Dataset], source: str, what: str, wanted: Wanted) -> dict[str, Found]:
    """Return the splits with places; without those whose labels are kept secret (-1 in every row)."""
    read = {}
    for split, rows in splits.items():
        if wanted.limit:
            rows = rows.select(range(min(wanted.limit, len(rows))))
        labels = [name for name, feature in rows.features.items() if _is_label(feature)]
        if len(splits) > 1 and any(set(rows.unique(name)) == {-1} for name in labels):
            continue
        read[split] = Found(_with_names(rows, f"{source}, {split} row"), {"format": what, "split": split})
    return read


def _is_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _with_names(rows: Dataset, place: str) -> Dataset:
    """Return rows with the names of class labels for their numbers, and with the column PLACE."""
    import pyarrow as pa
    from datasets import Dataset, concatenate_datasets

    rows = as_stored(rows)
    beside = {PLACE: pa.array(f"{place} {number}" for number in range(1, len(rows) + 1))}
    for name, feature in rows.features.items():
        if (names := _names(feature)) is not None:
            beside[name] = pa.array(_named(value, names) for value in rows[name])
    left = rows.remove_columns([name for name in beside if name in rows.column_names])
    right = Dataset(pa.table(beside))
    both = concatenate_datasets([left, right], axis=1) if left.column_names else right
    return both.select_columns([*rows.column_names, PLACE])


def _names(feature: Any) -> list[str] | None:
    """Return the names of a class label, or of a list of such."""
    each = getattr(feature, "feature", feature)
    return list(each.names) if _is_label(each) else None


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return None if value is None or value < 0 else names[value]
