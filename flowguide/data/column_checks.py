"""Checks of the columns of a table. Each error names the table's row, so that the data can be mended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowguide.errors import DataError, hint, listed
from flowguide.schema import Field, Label, Labels, Tokens

if TYPE_CHECKING:
    from flowguide.data.tables import Table

SAMPLE = 20_000  # rows from which means and standard deviations of large columns are computed
MOST_NUMBERS = 10**6  # of a column that are looked at for their rounding
SMALLEST = np.finfo(np.float32).tiny  # what is smaller, XLA may take for 0


def chunks(size: int) -> Iterator[np.ndarray]:
    """Yields all row numbers in parts, as a column may be too large to hold."""
    for start in range(0, size, 4096):
        yield np.arange(start, min(start + 4096, size))


def sampled(table: Table) -> np.ndarray:
    """Returns the rows from which means and standard deviations are computed."""
    return np.sort(np.random.default_rng(0).permutation(table.size)[:SAMPLE])


def check_columns(table: Table, names: Sequence[str]) -> None:
    """Raises DataError if a column is missing, named twice, or has values that make no sense."""
    for i, name in enumerate(names):
        if name not in table.columns:
            if table.split == "test":  # all that are named are those of the training split
                raise DataError(f"got no {name!r} with {table.place(0)}, to validate with: training has that column")
            near, known = hint(name, table.columns), listed(table.columns)
            raise DataError(f"got column {name!r}{near}, expected columns of {table.name}: {known}")
        if name in names[:i]:
            raise DataError(f"got the column {name!r} twice: name it once")
        if name in table.wrong:
            raise DataError(table.wrong[name])


def check_name(table: Table, name: str) -> None:
    """Raises DataError if no prompt could say the name of a field."""
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable() or set(name) & set("=,"):
        raise DataError(
            f"got {name!r} as the name of a field of {table.name}, expected a text without = and , as prompts have "
            "them: rename it, or leave it out"
        )


def check_finite(table: Table, name: str, *, padded: bool = False) -> None:
    """Raises DataError for numbers that float32 has not; ``padded`` allows NaN throughout the last rows of a series."""
    column = table.columns[name]
    if column.dtype.kind != "f":
        return
    for rows in chunks(table.size):
        a = column[rows]
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(a.astype(np.float32, copy=False))
        if padded:
            nothing = np.isnan(a).all(axis=-1)
            ends = np.logical_and.accumulate(nothing[:, ::-1], axis=1)[:, ::-1]
            bad &= ~ends[..., None]
        if bad.any():
            row = int(np.argmax(bad.reshape(len(a), -1).any(axis=1)))
            number = a[row][bad[row]].reshape(-1)[0]
            cure = "give it in another unit" if np.isfinite(number) else "fill it in, or drop the row"
            too_large = ", too large for float32" * bool(np.isfinite(number))
            raise DataError(f"got {number} in {name!r}, {table.place(int(rows[row]))}{too_large}: {cure}")


def check_spread(table: Table, name: str) -> None:
    """Raises DataError for numbers that are nearly the same to float32, with which networks compute: 1e9, 1e9 + 1, ...

    Rounding must not change them by more than 1 % of their mean distance from their mean.
    """
    column, rows = table.columns[name], sampled(table)
    numbers = len(rows) * math.prod(column.shape[1:])
    a = column[rows[:: max(1, numbers // MOST_NUMBERS)]]
    a = a.reshape(-1, a.shape[-1] if a.ndim > 1 else 1)
    a = a[~np.isnan(a).any(axis=1)]  # that pad a series
    if not len(a):
        raise DataError(f"got {name!r} with nothing but NaN in {table.name}: leave the column out")
    varies, exact = (a != a[:1]).any(axis=0), a.astype(np.float64)
    rounded = np.where(np.abs(exact) < SMALLEST, 0.0, exact.astype(np.float32))
    lost = np.abs(rounded - exact).mean(axis=0) > 0.01 * np.abs(exact - exact.mean(axis=0)).mean(axis=0)
    lost = varies & (lost | (rounded == rounded[:1]).all(axis=0))
    if lost.any():
        one = a[:, int(np.argmax(lost))]
        raise DataError(
            f"got {name!r} from {one.min()} to {one.max()}, numbers that float32 cannot tell apart: subtract their "
            "mean, or give them in another unit"
        )


def check_varies(table: Table, name: str) -> None:
    """Raises DataError if all rows are the same."""
    column = table.columns[name]
    if table.size < 2:
        raise DataError(f"got a single row in {table.name}, expected at least 2: add some")
    first = column[np.arange(1)]
    if not any((column[rows] != first).any() for rows in chunks(table.size)):
        raise DataError(f"got {name!r} with the same value in all rows of {table.name}: leave the column out")


def check_field(table: Table, name: str, field: Field) -> None:
    """Raises DataError unless a column holds values of a field: that of a test split may be of another kind."""
    column, shapes = table.columns[name], [field.shape]
    if field.shape[-1:] == (1,):  # of numbers and grey images, which need no axis for it
        shapes.append(field.shape[:-1])
    if column.dtype.kind == "U":
        fits = isinstance(field, Label | Labels | Tokens)
    else:
        fits = tuple(column.shape[1:]) in shapes and np.can_cast(column.dtype, field.dtype, "same_kind")
    if not fits:
        what = "texts" if column.dtype.kind == "U" else f"{column.dtype} {tuple(column.shape)}"
        raise DataError(
            f"got {what} in {name!r} of {table.name}, {table.place(0)}, expected what training has there, "
            f"{field.kind} {field.shape}: correct the column"
        )
