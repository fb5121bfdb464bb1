"""Something costly that is computed for every example of a set, kept in parts on disk until the set is written.

A command that was stopped computes only the parts that are missing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flowguide import storage
from flowguide.errors import DataError, one_line

PART = 256  # examples in a part; a killed command loses one part
IDENTITY = "identity.json"


def compute(
    folder: Path,
    identity: Mapping[str, Any],
    sizes: Mapping[str, int],
    make: Callable[[str, np.ndarray], dict[str, np.ndarray]],
    *,
    progress: bool = False,
) -> None:
    """Computes the parts that ``folder`` does not hold yet.

    Args:
      folder: of the parts, or its address in a bucket; it is made with the first part.
      identity: JSON of all that the results depend on.
      sizes: number of examples in each split.
      make: (split, rows int ``(n,)``) -> arrays by name, each with n rows; parts may differ in the other axes.
      progress: show a progress bar, with rate and remaining time.

    Raises:
      DataError: if the folder holds parts of another identity.
      OSError: if a part cannot be written.
    """
    stated = json.loads(json.dumps({"identity": identity, "part": PART}))
    begun = storage.exists(folder / IDENTITY)
    if begun and json.loads(storage.read_text(folder / IDENTITY)) != stated:
        raise DataError(
            f"got {folder}, parts of a set that was to be made from other data or with other settings: delete that "
            "folder, or give another name"
        )
    missing = [
        (split, rows)
        for split, size in sizes.items()
        for rows in _parts(size)
        if not storage.exists(_file(folder, split, rows))
    ]
    total = sum(sizes.values())
    done = total - sum(len(rows) for _, rows in missing)
    with tqdm(total=total, initial=done, disable=not progress, unit="example", dynamic_ncols=True) as bar:
        for split, rows in missing:
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **make(split, rows))
            if not begun:
                storage.make_folder(folder, parents=True)
                storage.replace_text(folder / IDENTITY, json.dumps(stated))
                begun = True
            storage.replace_bytes(_file(folder, split, rows), content.getvalue())
            bar.update(len(rows))


def read(folder: Path, split: str, rows: np.ndarray, *names: str) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields ascending rows of a split, and their arrays of these names, part by part.

    Raises:
      DataError: for a damaged part.
    """
    for number in np.unique(rows // PART):
        chosen = rows[rows // PART == number]
        found = _read(_file(folder, split, chosen // PART * PART), names)
        yield chosen, {name: a[chosen % PART] for name, a in found.items()}


def _parts(size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + PART, size)) for start in range(0, size, PART)]


def _file(folder: Path, split: str, rows: np.ndarray) -> Path:
    return folder / f"{split}-{rows[0]:09d}.npz"


def _read(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return {name: content[name] for name in names}
    except Exception as error:  # NumPy and zipfile raise nearly anything for damaged files
        raise DataError(
            f"got {file}, which cannot be read ({one_line(error)}): delete it, and run this again"
        ) from error
