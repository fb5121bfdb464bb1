"""Data sets from tables: some columns are the examples, others the condition.

A column is anything that an array of row numbers can index: a NumPy array, a memory map, or ``files.ImageFiles``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from flowguide.data.column_checks import (
    check_columns,
    check_field,
    check_finite,
    check_name,
    check_spread,
    check_varies,
    chunks,
    sampled,
)
from flowguide.data.dataset import MEMORY_LIMIT, Dataset, held
from flowguide.errors import DataError, UserError, hint, listed
from flowguide.schema import (
    Aligned,
    Batch,
    ClassMap,
    Column,
    DataInfo,
    Examples,
    Field,
    Images,
    Label,
    Labels,
    Records,
    Series,
    Vector,
    Vectors,
    field_of_column,
    stored,
    vocabulary,
)
from flowguide.schema.arrays import as_array
from flowguide.schema.fields.labels import SEPARATOR, names_in
from flowguide.schema.standard import moments, moments_of_classes

USUAL = ("image", "images", "x")  # what examples are called
MOST_CLASSES = 1000  # more different texts than this are captions, more different numbers are numbers
MOST_CAPTIONS_AS_CLASSES = 20  # more different texts than this, most of several words, are captions
HELD_OUT, MOST_HELD_OUT = 0.1, 10_000  # share of the rows that is held out for validation, and the largest number


class Table(NamedTuple):
    """Rows with named columns.

    Attributes:
      name: of the data.
      columns: by name, each with a ``shape`` ``(N, ...)`` and a ``dtype``, and indexed by arrays of row numbers.
      version: changes when the data change.
      place: names the place of a row for errors, "row 3 of wine.csv".
      split: which split the rows are; empty if the table has no splits, so that some rows are held out.
      wrong: columns that cannot be used, by name, and what to say of one if it is.
    """

    name: str
    columns: Mapping[str, Any]
    version: str
    place: Callable[[int], str]
    split: str = ""
    wrong: Mapping[str, str] = MappingProxyType({})

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
    if isinstance(given, list | tuple) and given and all(isinstance(row, list | tuple | set) for row in given):
        several: Sequence[Any] = given
        if all(isinstance(one, str) for row in several for one in row):  # several classes at once
            given = [SEPARATOR.join(row) for row in several]
            if not any(SEPARATOR in text for text in given):  # or they would be taken for classes
                given = [text + SEPARATOR for text in given]
    a = as_array(name, given)
    if a.dtype.kind not in "biufU" or a.ndim == 0 or 0 in a.shape:
        raise DataError(f"got {name!r} of dtype {a.dtype} and shape {a.shape}, expected numbers or texts (N, ...)")
    if a.dtype.kind == "U" and a.ndim > 1:
        raise DataError(f"got texts {name!r} of shape {a.shape}, expected one for each example, (N,)")
    return np.strings.strip(a) if a.dtype.kind == "U" else a  # as prompts are


def content_hash(columns: Mapping[str, np.ndarray]) -> str:
    """Returns a hash of the names, types and values of all columns."""
    found = hashlib.sha256()
    for name, a in columns.items():
        found.update(f"{name} {a.dtype} {a.shape};".encode(errors="backslashreplace"))
        for start in range(0, a.shape[0], 4096):
            found.update(np.ascontiguousarray(a[start : start + 4096]).tobytes())
    return found.hexdigest()[:16]


def describe_table(table: Table, example: Sequence[str] = (), fields: Sequence[str] | None = None) -> DataInfo:
    """Finds the kinds of example and of fields in the dtypes and shapes of a table's columns.

    Args:
      table: the rows to train on.
      example: the columns that are the examples: one of any shape, or several of numbers, and of texts and booleans,
        which are classes. By default the one called "image" or "x", else the only column of two axes or more, else all
        numbers that are no fields.
      fields: the columns of the condition; None for all other columns that can be one, () for none.

    Raises:
      DataError: if a column is missing, cannot be what it is to be, has one value only, or holds NaN or infinity.
    """
    if fields is not None:
        check_columns(table, fields)
    chosen = tuple(example) or likely_examples(table, fields)
    check_columns(table, chosen)
    if both := sorted(set(chosen) & set(fields or ())):
        raise DataError(f"got {both[0]!r} as an example and as a field: leave it out of one of them")
    others = [name for name in table.columns if name not in chosen] if fields is None else list(fields)
    check_columns(table, others)
    for name in others:
        check_name(table, name)
    examples = _examples(table, chosen)
    return DataInfo(table.name, examples, {name: field_of(table, name, examples) for name in others})


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
    rows = rows_of(table, split)
    fields = stored(info.fields)
    chosen = info.examples.names if isinstance(info.examples, Records) else tuple(example)
    chosen = chosen or likely_examples(table, tuple(fields))
    check_columns(table, [*chosen, *fields])
    _check_same_examples(table, chosen, info.examples)
    columns = _example_columns(table, chosen, info.examples)
    readers = {name: _reader(table, name, field) for name, field in fields.items()}

    def read(indices: np.ndarray) -> Batch:
        at = rows[indices]
        x = stacked([column[at] for column in columns]).reshape(len(at), *info.shape)
        return Batch(x.astype(info.examples.dtype), {name: values(at) for name, values in readers.items()})

    return held(info, split, table.version, len(rows), read, memory_limit)


def stacked(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Returns one column as it is, and several numbers as vectors ``(N, k)``."""
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def field_of(table: Table, name: str, examples: Examples) -> Field:
    """Returns the field that holds a column.

    - Texts of few different values are classes, texts such as "red|tall" several classes at once, others captions.
    - Whole numbers of few different values are classes, and a matrix of booleans says which of several apply.
    - Other numbers ``(N,)`` and ``(N, k)`` are vectors, which are standardised.
    - Images, and arrays on as many axes as the examples, lie beside them; whole numbers there are class maps.
    - Other arrays ``(N, L, k)`` are series.

    Raises:
      DataError: if none can hold it, it has only one value, or holds NaN or infinity.
    """
    column = table.columns[name]
    shape, sides = tuple(column.shape[1:]), examples.shape[:-1]
    if column.dtype.kind == "U":
        check_varies(table, name)
        return _field_of_texts(table, name)
    if column.dtype == np.uint8 and len(shape) in (2, 3):
        shape = shape if len(shape) == 3 else (*shape, 1)
        _check_beside(table, name, shape, sides)
        return field_of_column(Column(name, np.dtype(np.uint8), shape))
    check_varies(table, name)
    if column.dtype == np.bool_ and len(shape) == 1 and shape != sides:
        return Labels(tuple(map(str, range(shape[0]))))
    if column.dtype.kind in "biu" and (len(shape) >= 2 or (shape and shape == sides)):
        _check_beside(table, name, (*shape, 1), sides)
        return _class_map(table, name)
    check_finite(table, name, padded=len(shape) == 2 and not _fits_beside(shape, sides))
    if not shape and column.dtype.kind in "biu":
        distinct = np.unique(column[np.arange(table.size)])
        if len(distinct) <= min(MOST_CLASSES, max(2, table.size // 2)):
            return Label(tuple(str(value) for value in distinct.tolist()))
    check_spread(table, name)
    if shape and shape == sides:
        return Aligned(Vectors((*shape, 1), *moments(_sample(table, name, (*shape, 1)))))
    mean, scale = moments(_sample(table, name, shape or (1,)))
    if len(shape) < 2:
        return Vector(*shape or (1,), mean, scale)
    if not sides or _fits_beside(shape, sides):
        return Aligned(Vectors(shape, mean, scale))
    if len(shape) == 2:
        return Series(*shape, mean, scale)
    _check_beside(table, name, shape, sides)
    raise AssertionError


def _check_beside(table: Table, name: str, shape: tuple[int, ...], sides: tuple[int, ...]) -> None:
    """Raises DataError for an array ``(*sides, k)`` that cannot lie beside examples with these sides."""
    if sides and not _fits_beside(shape, sides):
        raise DataError(
            f"got field {name!r} of shape {tuple(table.columns[name].shape)} beside examples of sides {sides}, "
            "expected an array on the same axes with sides that divide theirs, numbers (N, k), or a series (N, L, k): "
            "reshape it"
        )


def _field_of_texts(table: Table, name: str) -> Field:
    words = [str(text) for text in table.columns[name][np.arange(table.size)]]
    classes = tuple(sorted(set(words)))
    if any(SEPARATOR in text for text in classes):
        names = sorted({one for text in classes for one in names_in(text)})
        if len(names) <= MOST_CLASSES:
            return Labels(tuple(names))
    check_no_blank(table, name, np.array(words))
    spaced = sum(" " in text for text in classes) > len(classes) / 2
    if len(classes) > MOST_CLASSES or (spaced and len(classes) > MOST_CAPTIONS_AS_CLASSES):
        return vocabulary(words)
    _check_repeats(table, name, len(classes))
    return Label(classes)


def check_no_blank(table: Table, name: str, column: np.ndarray) -> None:
    """Raises DataError if a text of a column is empty: a value that is missing."""
    if column.dtype.kind == "U" and (column == "").any():
        place = table.place(int(np.argmax(column == "")))
        raise DataError(f"got no value of {name!r} in {place}: fill it in, or drop the row")


def _check_repeats(table: Table, name: str, distinct: int) -> None:
    if distinct == table.size > MOST_CAPTIONS_AS_CLASSES:
        text = str(table.columns[name][0])
        raise DataError(
            f"got {name!r} with another text in each row of {table.name}, such as {text!r:.60}, expected classes that "
            "come again, or captions as a field: give numbers for amounts and dates, or leave the column out"
        )


def _class_map(table: Table, name: str) -> Field:
    column, seen = table.columns[name], set[int]()
    for rows in chunks(table.size):
        seen |= {int(value) for value in np.unique(column[rows]).tolist()}
    if min(seen) < 0 or max(seen) >= MOST_CLASSES:
        raise DataError(
            f"got {name!r}, whole numbers {min(seen)} to {max(seen)} of shape {column.shape}, expected a class map of "
            f"0 to {MOST_CLASSES - 1}: give floats for other arrays, uint8 (N, H, W, C) for images"
        )
    return ClassMap(tuple(column.shape[1:]), tuple(map(str, range(max(seen) + 1))))


def _fits_beside(shape: tuple[int, ...], sides: tuple[int, ...]) -> bool:
    """Whether an array ``(*sides, k)`` has as many axes as the examples, whose sides are multiples of its own."""
    return len(shape) == len(sides) + 1 and all(side % own == 0 for side, own in zip(sides, shape[:-1], strict=True))


def _reader(table: Table, name: str, field: Field) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from row numbers to values of the field; converts small columns once, here.

    Raises:
      DataError: if some row has a value that the field does not know: one of a test split, say.
    """
    check_field(table, name, field)
    column = table.columns[name]
    if isinstance(field, Aligned | ClassMap | Series):
        check_finite(table, name, padded=isinstance(field, Series))
        if table.split == "test" and isinstance(field, ClassMap):
            for rows in chunks(table.size):
                field.column(f"{name}, {table.place(int(rows[0]))},", column[rows])
        return lambda rows: field.column(name, column[rows])
    a = column[np.arange(table.size)]
    if isinstance(field, Label):
        codes = _codes(table, name, field.values)
        return lambda rows: codes[rows]
    check_finite(table, name)
    try:
        values = field.column(name, a.tolist() if a.dtype.kind == "U" else a)
    except UserError as error:
        raise DataError(f"{table.name}: {error}") from error
    return lambda rows: values[rows]


def _codes(table: Table, name: str, classes: Sequence[str]) -> np.ndarray:
    """Returns the index of the class in each row of a column, int32 ``(N,)``.

    Raises:
      DataError: if some row has another class: one of a test split, say.
    """
    a = table.columns[name][np.arange(table.size)]
    distinct, inverse = np.unique(a, return_inverse=True)
    index = {value: i for i, value in enumerate(classes)}
    codes = np.array([index.get(str(value), -1) for value in distinct.tolist()], np.int32)[inverse.reshape(-1)]
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        raise DataError(
            f"got {name}={str(a[row])!r} in {table.place(row)}, which is not among the classes to train on, "
            f"{listed(classes)}{hint(str(a[row]), classes)}: correct it, or drop the row"
        )
    return codes


def _example_columns(table: Table, chosen: Sequence[str], examples: Examples) -> list[Any]:
    """Returns the columns of the examples as numbers, of classes as their codes.

    Raises:
      DataError: for a class that training does not have.
    """
    classes = examples.classes if isinstance(examples, Records) else ((),) * len(chosen)
    return [
        _codes(table, name, each) if each else table.columns[name] for name, each in zip(chosen, classes, strict=True)
    ]


def _examples(table: Table, chosen: Sequence[str]) -> Examples:
    found = _kind_of_examples(table, chosen)
    if isinstance(found, Images):
        return found
    for name in chosen:
        check_finite(table, name)
        check_varies(table, name)
        if not _has_classes(table.columns[name]):
            check_spread(table, name)
    if isinstance(found, Records):
        return _records(table, chosen)
    x = stacked([table.columns[name][sampled(table)] for name in chosen])
    mean, scale = moments(x if x.ndim > 1 else x[:, None])
    return Vectors(found.shape, mean, scale, tuple(chosen) if len(chosen) > 1 else ())


def _kind_of_examples(table: Table, chosen: Sequence[str]) -> Examples:
    """Returns what the examples are by dtypes and shapes alone; without classes, mean and scale."""
    for name in chosen:
        column = table.columns[name]
        if len(chosen) > 1 and len(column.shape) > 1:
            raise DataError(f"got {name!r} of shape {column.shape} among several columns: give it alone")
    if any(_has_classes(table.columns[name]) for name in chosen):
        return Records(tuple(chosen), ((),) * len(chosen))
    first = table.columns[chosen[0]]
    if len(chosen) > 1 or len(first.shape) == 1:
        return Vectors((len(chosen),))
    if first.dtype != np.uint8 or len(first.shape) not in (3, 4):
        return Vectors(tuple(first.shape[1:]))
    shape = tuple(first.shape[1:]) + ((1,) if len(first.shape) == 3 else ())
    if shape[-1] not in (1, 3, 4):
        raise DataError(
            f"got uint8 {chosen[0]!r} of shape {first.shape}, expected images (N, H, W) or (N, H, W, C) with 1, 3 or 4 "
            "channels, last: transpose them, or give float32 for other arrays"
        )
    return Images(shape)


def _has_classes(column: Any) -> bool:
    """Whether a column of the examples is one of classes. Whole numbers are numbers there, however few."""
    return column.dtype.kind in "Ub" and len(column.shape) == 1


def _records(table: Table, chosen: Sequence[str]) -> Records:
    classes, means, scales = [], [], []
    for name in chosen:
        column, names = table.columns[name][np.arange(table.size)], ()
        if _has_classes(column):
            distinct, counts = np.unique(column, return_counts=True)
            if len(distinct) > MOST_CLASSES:
                raise DataError(
                    f"got {len(distinct):,} different texts in {name!r} as a part of the examples, expected classes, "
                    f"at most {MOST_CLASSES:,}: leave the column out, or make it a field"
                )
            check_no_blank(table, name, column)
            _check_repeats(table, name, len(distinct))
            names, (mean, scale) = tuple(map(str, distinct.tolist())), moments_of_classes(counts)
        else:
            mean, scale = moments(column[sampled(table)][:, None])
        classes.append(names)
        means, scales = [*means, *mean], [*scales, *scale]
    return Records(tuple(chosen), tuple(classes), tuple(means), tuple(scales))


def _check_same_examples(table: Table, chosen: Sequence[str], examples: Examples) -> None:
    """Raises DataError unless a table has examples of this kind: those of a test split may be of another."""
    classes = examples.classes if isinstance(examples, Records) else ((),) * len(chosen)
    for name in [name for name, each in zip(chosen, classes, strict=True) if not each]:
        if table.columns[name].dtype.kind == "U":
            place = table.place(0)
            raise DataError(f"got texts in {name!r} as examples, {place}, where training has numbers: correct them")
        if table.split == "test" and not isinstance(examples, Images):  # the others were checked for their description
            check_finite(table, name)
    found = _kind_of_examples(table, chosen)
    same = isinstance(examples, Records) or isinstance(found, type(examples))
    if not same or found.shape != examples.shape:
        raise DataError(
            f"got {found.kind} {found.shape} in {table.place(0)}, expected {examples.kind} {examples.shape}, as to "
            "train on: give both splits one shape and dtype"
        )


def likely_examples(table: Table, fields: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the columns that are the examples if none are named, see ``describe_table``.

    Raises:
      DataError: if there is no such column, or several that exclude each other.
    """
    free = [name for name in table.columns if name not in (fields or ())]
    if usual := next((name for name in USUAL if name in free), None):
        check_columns(table, [usual])
        if table.columns[usual].dtype.kind == "U":  # names of files, say
            raise DataError(
                f"got texts in {usual!r}, {table.place(0)}, expected numbers or images under this name: name the "
                "examples, example=..., or list files as file_name in a metadata.csv beside them"
            )
        return (usual,)
    check_columns(table, free)  # numbers with a text among them would silently be no examples
    wide = [name for name in free if len(table.columns[name].shape) > 1]
    if len(wide) == 1:
        return tuple(wide)
    if wide:
        raise DataError(
            f"got the columns {listed(wide)} of two axes or more, expected one: name the examples, example=..."
        )
    numbers = [name for name in free if table.columns[name].dtype.kind in "biuf"]
    if fields is None:  # whole numbers of few values are more likely a condition
        floats = [name for name in numbers if table.columns[name].dtype.kind == "f"]
        numbers = floats or numbers
    if not numbers:
        text = f" ({str(table.columns[free[0]][0])!r:.60} in {free[0]!r} is a text)" if free else ""
        raise DataError(f"got {table.name} with no column of numbers or images left for the examples{text}: name them")
    return tuple(numbers)


def rows_of(table: Table, split: str) -> np.ndarray:
    """Returns the rows of a table that are in a split; raises DataError as ``open_table``."""
    if table.split or split not in ("train", "test"):
        if split == table.split:
            return np.arange(table.size)
        known = table.split or "train and test"
        raise DataError(f"got split {split!r} of {table.name}, expected {known}")
    if table.size < 2:
        raise DataError(f"got a single row in {table.name}, expected at least 2: one is held out to validate with")
    order = np.random.default_rng(0).permutation(table.size)
    count = min(max(1, round(HELD_OUT * table.size)), MOST_HELD_OUT)
    return np.sort(order[:count] if split == "test" else order[count:])


def _sample(table: Table, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns rows of a column of numbers ``(n, *shape)``, without those of NaN that pad a series."""
    a = table.columns[name][sampled(table)].reshape(-1, *shape).astype(np.float32)
    padding = np.isnan(a).all(axis=-1)
    return a[~padding] if padding.any() else a
