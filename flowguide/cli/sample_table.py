"""Samples of vectors, or of rows of a table, as a CSV file, which ``train --data`` reads again."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowguide import storage
from flowguide.errors import UserError
from flowguide.schema import DataInfo, Field, Records, Vectors, prompts, stored


def check_table(conds: Sequence[str], info: DataInfo) -> None:
    """Raises ``UserError`` unless samples under these prompts can be the rows of one table."""
    if not isinstance(info.examples, Vectors | Records) or len(info.shape) != 1:
        raise UserError(f"--save=csv is for vectors; {info.name} has examples of shape {info.shape}: use --save=npz")
    present = prompts.condition(conds, info.fields).present
    if partly := [name for name in stored(info.fields) if present[name].any() and not present[name].all()]:
        raise UserError(
            f"--save=csv has a column for each field; got {partly[0]!r} in some --cond only: name it in all or none"
        )
    header = [*_names(info), *_conditions(conds, info)]
    if double := [name for name in header if header.count(name) > 1]:
        raise UserError(f"--save=csv would have two columns {double[0]!r}: use --save=npz")


def save_table(file: Path, x: Sequence[np.ndarray], conds: Sequence[str], info: DataInfo) -> None:
    """Writes samples, a row for each.

    Numbers are written as float64, in which every float32 has an exact place, and classes by name.

    Args:
      file: to write.
      x: samples ``(num, d)`` of each prompt, as ``sampling.sample`` gives them.
      conds: the prompts.
      info: what was sampled.

    Raises:
      OSError: if the file cannot be written.
    """
    asked = _conditions(conds, info)
    content = io.StringIO(newline="")
    table = csv.writer(content, lineterminator="\n")
    table.writerow([*_names(info), *asked])
    for i, samples in enumerate(x):
        for row in zip(*_texts(samples, info), strict=True):
            table.writerow([*row, *(column[i] for column in asked.values())])
    storage.write_bytes(file, content.getvalue().encode())


def _texts(samples: np.ndarray, info: DataInfo) -> list[list[str]]:
    """Returns the values of each column of samples as texts."""
    columns = samples.astype(np.float64).T.tolist()
    classes = info.examples.classes if isinstance(info.examples, Records) else ((),) * len(columns)
    return [[c[int(v)] if c else repr(v) for v in column] for column, c in zip(columns, classes, strict=True)]


def _names(info: DataInfo) -> list[str]:
    """Returns the names of the examples' columns: those of the table that was learned from, or x0, x1, ..."""
    names = info.examples.names if isinstance(info.examples, Vectors | Records) else ()
    return list(names) or [f"x{i}" for i in range(info.shape[-1])]


def _conditions(conds: Sequence[str], info: DataInfo) -> dict[str, list[str]]:
    """Returns the columns of the fields that are asked for, with a text for each prompt.

    The known part of a sample is none of them: the sample has it.
    """
    c, found = prompts.condition(conds, info.fields), {}
    for name, field in stored(info.fields).items():
        if c.present[name].all():
            found |= _columns(name, field, np.asarray(c.value[name]))
    return found


def _columns(name: str, field: Field, values: np.ndarray) -> dict[str, list[str]]:
    """Returns one column of texts, or a column of numbers for each entry of a vector."""
    texts = [field.text(value) for value in values]
    if None not in texts:
        return {name: [str(text) for text in texts]}
    entries = values.reshape(len(values), -1).astype(np.float64)
    names = [name] if entries.shape[1] == 1 else [f"{name}{i}" for i in range(entries.shape[1])]
    return {each: [repr(number) for number in column.tolist()] for each, column in zip(names, entries.T, strict=True)}
