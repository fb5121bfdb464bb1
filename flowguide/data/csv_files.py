"""CSV and TSV files as people have them: of Excel, of other languages, with blank cells."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from flowguide.errors import DataError, listed

_ENCODINGS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Content(NamedTuple):
    """What a file holds.

    Attributes:
      columns: by name.
      place: names the place of a row for errors, "line 3".
      wrong: columns that cannot be used, and what to say of one if it is.
    """

    columns: dict[str, np.ndarray]
    place: Callable[[int], str] = "row {}".format
    wrong: Mapping[str, str] = MappingProxyType({})


def read_csv(path: Path) -> Content:
    """Reads a file as data.

    Raises:
      DataError: as ``read_table``, and for a single column of texts: its separator is another one.
    """
    content = read_table(path)
    name, first = next(iter(content.columns.items()))
    if len(content.columns) == 1 and first.dtype.kind == "U" and name not in content.wrong:
        raise DataError(
            f"got {path} with one column of texts, {name!r:.60}, expected names and values separated by commas, "
            "semicolons or tabs: convert it"
        )
    return content


def read_table(path: Path) -> Content:
    """Reads names in the first line and values below, separated by commas, semicolons or tabs.

    The text is UTF-8, or UTF-16 as Excel writes it. In a file with semicolons, numbers may have decimal commas.

    Raises:
      DataError: if it is no such file; the message names the line.
    """
    separator, rows = _rows(path)
    numbered = list(rows)
    lines, cells = [line for line, _ in numbered], [row for _, row in numbered]
    names, *rows = cells or [[]]
    if len(rows) == 0:
        raise DataError(f"got {path} without rows: expected names in line 1 and values below")
    names = [" ".join(name.split()) for name in names]
    _check_names(path, names)
    for line, row in zip(lines[1:], rows, strict=True):
        if len(row) != len(names):
            raise DataError(f"got {len(row)} values in line {line} of {path}, expected {len(names)}: {listed(names)}")
    columns, wrong = {}, {}
    for i, name in enumerate(names):
        texts = [row[i] for row in rows]
        columns[name], odd = _typed(texts, decimal_comma=separator == ";")
        if odd is not None:
            wrong[name] = (
                f"got {texts[odd]!r:.60} in {name!r}, line {lines[odd + 1]} of {path}, where most values are numbers: "
                "correct it, or drop the row"
            )
    return Content(columns, lambda row: f"line {lines[row + 1]}", wrong)


def _rows(path: Path) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """Returns the separator of a file, and its rows, each with the number of its line; leaves out empty ones."""
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8-sig")
    try:
        with path.open(newline="", encoding=encoding) as file:
            head = next((line for line in file if line.strip()), "")
    except UnicodeError as error:
        raise _encoded_otherwise(path, error) from error
    counts = {separator: head.count(separator) for separator in "\t;,"}
    separator = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=lambda one: (counts[one], one == ","))

    def rows() -> Iterator[tuple[int, list[str]]]:
        line = 1
        try:
            with path.open(newline="", encoding=encoding) as file:
                reader = csv.reader(file, delimiter=separator, strict=True)
                for row in reader:
                    if any("\0" in cell for cell in row):
                        raise DataError(f"got a NUL character in line {line} of {path}: save it as UTF-8 text")
                    if any(cell.strip() for cell in row):
                        yield line, [cell.strip() for cell in row]
                    line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"got {path}, whose line {line} cannot be read ({error}): correct its quotes") from error
        except UnicodeError as error:
            raise _encoded_otherwise(path, error) from error

    return separator, rows()


def _encoded_otherwise(path: Path, error: UnicodeError) -> DataError:
    return DataError(f"got {path}, which cannot be read as text ({error}): save it as UTF-8")


def _check_names(path: Path, names: Sequence[str]) -> None:
    if "" in names:
        raise DataError(
            f"got no name for column {names.index('') + 1} in line 1 of {path}, expected one for each: name it, or "
            "leave the column out (an index of pandas by to_csv(index=False))"
        )
    if len(set(names)) < len(names):
        raise DataError(f"got {path} with the names {listed(map(repr, names))}, expected different ones in line 1")
    if fractions := [name for name in names if "." in name and _number(name) is not None]:
        raise DataError(f"got the number {fractions[0]} in line 1 of {path}, expected names of the columns: add them")


def _typed(cells: Sequence[str], decimal_comma: bool) -> tuple[np.ndarray, int | None]:
    """Returns whole numbers, numbers or texts, whichever all cells are.

    Also returns which cell is wrong, if most are numbers and a few are not.
    """
    if all(re.fullmatch(r"[+-]?\d{1,18}", cell) for cell in cells):
        return np.array([int(cell) for cell in cells], np.int64), None
    comma = decimal_comma and not any("." in cell for cell in cells)
    numbers = [_number(re.sub(r"^([+-]?\d*),(\d+)$", r"\1.\2", cell) if comma else cell) for cell in cells]
    bad = [i for i, number in enumerate(numbers) if number is None]
    if not bad:
        return np.array(numbers, np.float64), None
    few = len(bad) < len(cells) / 2 and len({cells[i] for i in bad}) < 10 and len(cells) > 2
    return np.array(cells), bad[0] if few else None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
