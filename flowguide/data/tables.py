"""Data sets from tables: some columns are the examples, others the condition.

A column is anything that an array of row numbers can index: a NumPy array, a memory map, or ``files.ImageFiles``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowguide.data.dataset import MEMORY_LIMIT, Dataset, held
from flowguide.errors import DataError, hint, listed
from flowguide.schema import (
    Batch,
    Column,
    DataInfo,
    Examples,
    Field,
    Images,
    Label,
    Vector,
    Vectors,
    field_of_column,
    vocabulary,
)
from flowguide.schema.standard import moments

MOST_CLASSES = 1000  # more different texts than this are captions, more different numbers are numbers
HELD_OUT, MOST_HELD_OUT = 0.1, 10_000  # share of the rows that is held out for validation, and the largest number
SAMPLE = 20_000  # rows from which means and standard deviations of large columns are computed


class Table(NamedTuple):
    """Rows with named columns.

    Attributes:
      name: of the data.
      columns: by name, each with a ``shape`` ``(N, ...)`` and a ``dtype``, and indexed by arrays of row numbers.
      version: changes when the data change.
      place: names the place of a row for errors, "row 3 of wine.csv".
      split: which split the rows are; empty if the table has no splits, so that some rows are held out.
    """

    name: str
    columns: Mapping[str, Any]
    version: str
    place: Callable[[int], str]
    split: str = ""

    @property
    def size(self) -> int:
        """Number of rows."""
        return next(iter(self.columns.values())).shape[0]


def of_arrays(name: str, columns: Mapping[str, Any]) -> Table:
    """Returns a table of arrays ``(N, ...)``, or lists of texts.

    Raises:
      DataError: if one is no array, is empty or holds objects, or they differ in length.
    """
    arrays = {key: as_column(key, column) for key, column in columns.items()}
    first = next(iter(arrays))
    for key, a in arrays.items():
        if a.shape[0] != arrays[first].shape[0]:
            raise DataError(
                f"got {a.shape[0]:,} values of {key!r} for {arrays[first].shape[0]:,} of {first!r}: give one for each"
            )
    return Table(name, arrays, content_hash(arrays), lambda row: f"row {row} of {name}")


def as_column(name: str, given: Any) -> np.ndarray:
    """Returns one column as an array of numbers or of texts, ``(N, ...)``.

    Raises:
      DataError: if it cannot be one.
    """
    try:
        a = np.asarray(given)
    except (ValueError, TypeError) as error:  # rows of different lengths
        raise DataError(f"got {name!r} with rows of different shapes ({error}): make them equal") from error
    if a.dtype == object:
        texts = [isinstance(value, str) for value in a.reshape(-1)]
        if a.ndim != 1 or not all(texts):
            wrong = (
                f"row {texts.index(False)} is {a[texts.index(False)]!r:.60}" if a.ndim == 1 and a.size else "objects"
            )
            raise DataError(f"got {name!r} with {wrong}, expected numbers, or one text each: convert or drop it")
        a = a.astype(str)
    if a.dtype.kind not in "biufU" or a.ndim == 0 or a.shape[0] == 0 or 0 in a.shape:
        raise DataError(f"got {name!r} of dtype {a.dtype} and shape {a.shape}, expected numbers or texts (N, ...)")
    return a


def content_hash(columns: Mapping[str, np.ndarray]) -> str:
    """Returns a hash of the names, types and values of all columns."""
    found = hashlib.sha256()
    for name, a in columns.items():
        found.update(f"{name} {a.dtype} {a.shape};".encode())
        for start in range(0, a.shape[0], 4096):
            found.update(np.ascontiguousarray(a[start : start + 4096]).tobytes())
    return found.hexdigest()[:16]


def describe_table(table: Table, example: Sequence[str] = (), fields: Sequence[str] | None = None) -> DataInfo:
    """Finds the kinds of example and of fields in the dtypes and shapes of a table's columns.

    Args:
      table: the rows to train on.
      example: the columns that are the examples: one of any shape, or several numbers. By default the one called
        "image" or "x", else the only column of two axes or more, else all numbers that are no fields.
      fields: the columns of the condition; None for all other columns that can be one, () for none.

    Raises:
      DataError: if a column is missing, cannot be what it is to be, has one value only, or holds NaN or infinity.
    """
    if fields is not None and (unknown := [name for name in fields if name not in table.columns]):
        raise DataError(_no_column(table, unknown[0]))
    chosen = tuple(example) or _likely_examples(table, fields)
    if unknown := [name for name in chosen if name not in table.columns]:
        raise DataError(_no_column(table, unknown[0]))
    if both := sorted(set(chosen) & set(fields or ())):
        raise DataError(f"got {both[0]!r} as an example and as a field: leave it out of one of them")
    others = [name for name in table.columns if name not in chosen] if fields is None else list(fields)
    return DataInfo(table.name, _examples(table, chosen), {name: field_of(table, name) for name in others})


def open_table(
    table: Table,
    split: str,
    info: DataInfo,
    example: Sequence[str] = (),
    *,
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
    """Returns a split of a table as a data set.

    Args:
      table: the rows.
      split: "train" or "test". In a table without splits a tenth of the rows, at most 10,000, is the test split; which
        ones depends on their number alone.
      info: from ``describe_table``, or of a trained model.
      example: as for ``describe_table``.
      memory_limit: as for ``open_dataset``.

    Raises:
      DataError: for another split, a table with too few rows, and values that the info does not allow.
    """
    rows = _rows_of(table, split)
    chosen = tuple(example) or _likely_examples(table, tuple(info.fields))
    if missing := [name for name in (*chosen, *info.fields) if name not in table.columns]:
        raise DataError(_no_column(table, missing[0]))
    for name, field in info.fields.items():
        _check_values(table, name, field)

    def read(indices: np.ndarray) -> Batch:
        at = rows[indices]
        x = stacked([table.columns[name][at] for name in chosen]).reshape(len(at), *info.shape)
        values = {name: _values(field, name, table.columns[name][at]) for name, field in info.fields.items()}
        return Batch(x.astype(info.examples.dtype), values)

    return held(info, split, table.version, len(rows), read, memory_limit)


def stacked(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Returns one column as it is, and several numbers as vectors ``(N, k)``."""
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def field_of(table: Table, name: str) -> Field:
    """Returns the field that holds a column.

    Texts of few different values are classes, other texts captions; whole numbers of few different values are classes;
    other numbers are a vector, which is standardised.

    Raises:
      DataError: if none can hold it, it has only one value, or holds NaN or infinity.
    """
    column = table.columns[name]
    a = column[np.arange(table.size)]
    if a.dtype.kind == "U":
        words = [str(text) for text in a]
        classes = tuple(sorted(set(words)))
        spaced = sum(" " in text for text in classes) > len(classes) / 2
        if len(classes) > MOST_CLASSES or (spaced and len(classes) > 20):
            return vocabulary(words)
        _check_varies(table, name, len(classes))
        return Label(classes)
    distinct = np.unique(a)
    _check_finite(table, name, a)
    if a.ndim == 1:
        _check_varies(table, name, len(distinct))
    if a.ndim == 1 and a.dtype.kind in "biu" and len(distinct) <= min(MOST_CLASSES, max(2, table.size // 2)):
        return Label(tuple(str(value) for value in distinct.tolist()))
    field = field_of_column(Column(name, np.dtype(np.float32), tuple(a.shape[1:])))
    if isinstance(field, Vector):
        mean, scale = moments(a.reshape(len(a), -1))
        return field._replace(mean=mean, scale=scale)
    return field


def _values(field: Field, name: str, stored: np.ndarray) -> np.ndarray:
    if isinstance(field, Label):
        return np.array([field.values.index(str(value)) for value in stored.tolist()], np.int32)
    return field.column(name, list(stored))


def _check_values(table: Table, name: str, field: Field) -> None:
    """Raises DataError if some row has a value that the field does not know: one of a test split, say."""
    a = table.columns[name][np.arange(table.size)]
    if isinstance(field, Label):
        known, values = set(field.values), [str(value) for value in a.tolist()]
        for row, value in enumerate(values):
            if value not in known:
                raise DataError(
                    f"got {name}={value!r} in {table.place(row)}, which is not among the classes to train on, "
                    f"{listed(field.values)}{hint(value, known)}: correct it, or drop the row"
                )
    elif a.dtype.kind != "U":
        _check_finite(table, name, a)


def _examples(table: Table, chosen: Sequence[str]) -> Examples:
    columns = [table.columns[name] for name in chosen]
    for name, column in zip(chosen, columns, strict=True):
        if column.dtype.kind == "U":
            raise DataError(f"got texts in {name!r} as examples, expected numbers or images: make it a field")
        if len(columns) > 1 and len(column.shape) > 1:
            raise DataError(f"got {name!r} of shape {column.shape} among several columns: give it alone")
    first = columns[0]
    if len(columns) == 1 and first.dtype == np.uint8 and len(first.shape) in (3, 4):
        shape = tuple(first.shape[1:]) + ((1,) if len(first.shape) == 3 else ())
        if shape[-1] not in (1, 3, 4):
            raise DataError(
                f"got uint8 {chosen[0]!r} of shape {first.shape}, expected images (N, H, W) or (N, H, W, C) with 1, 3 "
                "or 4 channels, last: transpose them, or give float32 for other arrays"
            )
        return Images(shape)
    sample = np.sort(np.random.default_rng(0).permutation(table.size)[:SAMPLE])
    values = []
    for name, column in zip(chosen, columns, strict=True):
        for start in range(0, table.size, 4096):
            _check_finite(table, name, column[np.arange(start, min(start + 4096, table.size))], start)
        values.append(column[sample])
        if len(columns) > 1:
            _check_varies(table, name, len(np.unique(column[np.arange(table.size)])))
    x = stacked(values)
    mean, scale = moments(x if x.ndim > 1 else x[:, None])
    return Vectors(tuple(x.shape[1:]) or (1,), mean, scale, tuple(chosen) if len(columns) > 1 else ())


def _likely_examples(table: Table, fields: Sequence[str] | None) -> tuple[str, ...]:
    free = [name for name in table.columns if name not in (fields or ())]
    for usual in ("image", "images", "x"):
        if usual in free:
            return (usual,)
    wide = [name for name in free if len(table.columns[name].shape) > 1]
    if len(wide) == 1 or len(free) == 1:
        return tuple(wide or free)
    if wide:
        raise DataError(
            f"got the columns {listed(wide)} of two axes or more, any of which may be the examples: say which"
        )
    numbers = [name for name in free if table.columns[name].dtype.kind in "biuf"]
    if fields is None:  # whole numbers of few values are more likely a condition
        floats = [name for name in numbers if table.columns[name].dtype.kind == "f"]
        numbers = floats or numbers
    if not numbers:
        raise DataError(f"got {table.name} with no column of numbers or images left for the examples: name them")
    return tuple(numbers)


def _rows_of(table: Table, split: str) -> np.ndarray:
    if table.split or split not in ("train", "test"):
        if split == table.split:
            return np.arange(table.size)
        known = table.split or "train and test"
        raise DataError(f"got split {split!r} of {table.name}, expected {known}")
    if table.size < 2:
        raise DataError(f"got {table.size} rows in {table.name}, expected at least 2: one is held out for validation")
    order = np.random.default_rng(0).permutation(table.size)
    count = min(max(1, round(HELD_OUT * table.size)), MOST_HELD_OUT)
    return np.sort(order[:count] if split == "test" else order[count:])


def _check_finite(table: Table, name: str, a: np.ndarray, first: int = 0) -> None:
    if a.dtype.kind != "f":
        return
    bad = ~np.isfinite(a.reshape(len(a), -1)).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        number = a[row].reshape(-1)
        number = number[~np.isfinite(number)][0]
        raise DataError(f"got {number} in {name!r}, {table.place(first + row)}: fill it in, or drop the row")


def _check_varies(table: Table, name: str, distinct: int) -> None:
    if distinct < 2:
        raise DataError(f"got {name!r} with the same value in all rows of {table.name}: leave the column out")


def _no_column(table: Table, name: str) -> str:
    return f"got column {name!r}{hint(name, table.columns)}, expected columns of {table.name}: {listed(table.columns)}"
