"""Names of the classes that released networks know by number."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flowguide import storage
from flowguide.errors import UserError, one_line
from flowguide.schema import Label

IMAGENET = 1000  # classes, in the order of their WordNet ids


def class_names(count: int, file: str | None = None) -> tuple[str, ...]:
    """Returns names of classes by number.

    They are the lines of a file or, without one, WordNet ids such as "n01440764" for the 1,000 classes of ImageNet,
    from the list in tensorflow-datasets. Otherwise they are the numbers themselves.

    Args:
      count: number of classes.
      file: with one name in each line.

    Raises:
      UserError: if the file cannot be read, has another number of lines, or names of it are empty or the same.
    """
    if file is None:
        ids = _imagenet_ids() if count == IMAGENET else ()
        return ids if len(ids) == count else tuple(map(str, range(count)))
    try:
        lines = storage.read_text(storage.path(file)).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the names of classes, {file} ({one_line(error)}): give a text file") from error
    names = tuple(line.strip() for line in lines)
    if len(names) != count:
        raise UserError(f"expected {count} names of classes, one in each line of {file}; got {len(names)}")
    if twice := [name for name in names if not name or names.count(name) > 1]:
        raise UserError(f"names of classes must differ and not be empty; {file} has {twice[0]!r:.100}: tell them apart")
    return Label(names).values


def _imagenet_ids() -> tuple[str, ...]:
    """Returns the list that tensorflow-datasets ships, found without an import; empty if it is not there."""
    found = importlib.util.find_spec("tensorflow_datasets")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "imagenet2012" / "labels.txt"
        if file.is_file():
            return tuple(file.read_text().split())
    return ()
