"""Arrays in files that say what they were computed from, so that nothing else is ever taken for it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowguide import storage
from flowguide.errors import one_line

ORIGIN = "computed_from"  # the entry of a file that says it


def write(file: Path, origin: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name such that, whatever happens, the file is either whole or as it was before.

    Args:
      file: NPZ file.
      origin: what they were computed from; JSON-serializable.
      arrays: no object arrays.

    Raises:
      OSError: if it cannot be written.
    """
    content, entry = io.BytesIO(), np.array(_text(origin))
    np.savez(content, **{ORIGIN: entry, **arrays})  # pyright: ignore[reportArgumentType]
    storage.replace_bytes(file, content.getvalue())


def read(file: Path, origin: Mapping[str, Any]) -> tuple[dict[str, np.ndarray] | None, str]:
    """Returns the arrays of a file; or None and the reason, which is empty if there is no such file."""
    return _opened(file, origin, lambda name: True)


def count(file: Path, origin: Mapping[str, Any], name: str) -> tuple[int, str]:
    """Returns the length of one array of a file, and reads no others; or 0 and the reason, as ``read`` does."""
    arrays, reason = _opened(file, origin, lambda found: found == name)
    return (0 if arrays is None else len(arrays[name])), reason


def _opened(file: Path, origin: Mapping[str, Any], wanted: Any) -> tuple[dict[str, np.ndarray] | None, str]:
    try:
        with _npz(file) as content:
            stored = json.loads(str(content[ORIGIN]))
            now = json.loads(_text(origin))
            if changed := [name for name in now | stored if stored.get(name) != now.get(name)]:
                return None, f"{changed[0]} was {stored.get(changed[0])!r:.60}, is {now.get(changed[0])!r:.60}"
            return {name: content[name] for name in content.files if name != ORIGIN and wanted(name)}, ""
    except FileNotFoundError:
        return None, ""
    except Exception as error:  # NumPy and zipfile raise nearly anything for damaged files
        return None, f"it cannot be read ({one_line(error, 100)})"


@contextlib.contextmanager
def _npz(file: Path) -> Generator[Any]:
    with storage.as_os_errors(file), file.open("rb") as stream, np.load(stream) as content:
        yield content


def _text(origin: Mapping[str, Any]) -> str:
    return json.dumps(origin, sort_keys=True)
