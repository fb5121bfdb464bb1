"""Tables from files: a folder of images, ``.npz`` and ``.npy``, CSV, Parquet, and a Hugging Face data set on disk."""

from __future__ import annotations

import csv
import hashlib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowguide.data import pixels
from flowguide.data.dataset import MEMORY_LIMIT, Dataset
from flowguide.data.tables import Table, as_column, content_hash, describe_table, open_table
from flowguide.errors import DataError, listed
from flowguide.schema import DataInfo

IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
# What folders and files of the two splits are called.
TRAIN, TEST = ("train", "training"), ("test", "validation", "valid", "val")
METADATA, FILE_NAME = "metadata.csv", "file_name"
_MODES = {"1": 1, "L": 1, "I;16": 1, "RGBA": 4, "LA": 4, "PA": 4}


class ImageFiles:
    """A column of image files, read when they are indexed; uint8 ``(N, H, W, C)``.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Sequence[Path], side: int | None):
        """Looks at the size of every file, and decodes none.

        Args:
          files: the images.
          side: to which the central square is resized; None for files of one size.

        Raises:
          DataError: for a file that is no image, and without ``side`` for files of different sizes.
        """
        self._files, self._side = list(files), side
        sizes, modes = zip(*map(_size_and_mode, files), strict=True)
        if side is None and (odd := [i for i, size in enumerate(sizes) if size != sizes[0]]):
            raise DataError(
                f"got {files[odd[0]]} of {_by(sizes[odd[0]])} pixels and {files[0]} of {_by(sizes[0])}, expected one "
                "size: give image_size, e.g. 64, to crop and resize them"
            )
        width, height = (side, side) if side else sizes[0]
        channels = max(_MODES.get(mode, 3) for mode in modes)
        self.shape = (len(self._files), height, width, channels)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._decoded(self._files[int(row)]) for row in rows])

    def _decoded(self, file: Path) -> np.ndarray:
        height, width, channels = self.shape[1:]
        try:
            return pixels.decode(file.read_bytes(), (height, width, channels), resize=self._side is not None)
        except (DataError, OSError) as error:
            raise DataError(f"{file}: {error}") from error


def is_path(name: str) -> bool:
    """Returns whether text looks like a path rather than the name of a data set."""
    return "/" in name or Path(name).suffix.lower() in READERS or Path(name).exists()


def tables_of(path: str | Path, image_size: int | None = None) -> dict[str, Table]:
    """Reads what is at a path; returns its tables by split, or one table under "".

    - a file ``.npz`` (arrays by name), ``.npy``, ``.csv``, ``.tsv`` or ``.parquet``;
    - a folder with such a file, or a folder, for each split: ``train`` and ``test`` (or ``val``, ``validation``);
    - a folder of images, in one folder a class, or with a ``metadata.csv`` whose column ``file_name`` names them and
      whose other columns are fields;
    - a Hugging Face data set that ``save_to_disk`` wrote.

    Raises:
      DataError: if it cannot be read, or is none of these.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"got {path}, which does not exist: give a file or a folder")
        if path.is_file():
            return {"": _read_file(path, "")}
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _hugging_face(path)
        parts = {split: _part(path, names) for split, names in (("train", TRAIN), ("test", TEST))}
        if (first := parts["train"]) is None:
            return {"": _read_folder(path, "", image_size)}
        found = {"train": first, **({} if parts["test"] is None else {"test": parts["test"]})}
        if len(found) == 1:
            return {"": _read(first, "", image_size)}
        return {split: _read(part, split, image_size) for split, part in found.items()}
    except OSError as error:
        raise DataError(f"got {path}, which cannot be read ({error.strerror or error}): give another path") from error


def open_path(
    path: str | Path,
    example: Sequence[str] = (),
    fields: Sequence[str] | None = None,
    *,
    image_size: int | None = None,
    known: DataInfo | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[Dataset, Dataset]:
    """Opens the training and the test split of what is at a path (see ``tables_of``).

    Args:
      path: a file or a folder.
      example: columns that are the examples, see ``describe_table``.
      fields: columns of the condition, see ``describe_table``; also ``("none",)`` for none.
      image_size: side to which the central square of each image is resized; None for no resizing.
      known: the info of a trained model, which the data must fit; None to find it out from the training split.
      memory_limit: as for ``open_dataset``, for each split.

    Raises:
      DataError: if it cannot be read or used this way.
    """
    found = tables_of(path, image_size)
    train = found.get("train", found.get(""))
    assert train is not None
    if fields is not None and tuple(fields) == ("none",) and "none" not in train.columns:
        fields = ()
    info = known or describe_table(train, example, fields)
    tables = {"train": train, "test": found.get("test", train)}
    first, second = (open_table(t, s, info, example, memory_limit=memory_limit) for s, t in tables.items())
    return first, second


def _part(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns the file or folder of a split."""
    for entry in sorted(folder.iterdir()):
        if entry.stem.lower() in names and (entry.is_dir() or entry.suffix.lower() in READERS):
            return entry
    return None


def _read(path: Path, split: str, image_size: int | None) -> Table:
    return _read_file(path, split) if path.is_file() else _read_folder(path, split, image_size)


def _read_file(path: Path, split: str) -> Table:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(f"got {path}, expected a file of {', '.join(READERS)}, or a folder")
    try:
        columns = READERS[suffix](path)
    except DataError:
        raise
    except Exception as error:  # NumPy, zipfile and PyArrow raise nearly anything for damaged files
        raise DataError(f"got {path}, which cannot be read ({type(error).__name__}: {error}): repair it") from error
    if not columns:
        raise DataError(f"got {path}, which has no columns")
    lengths = {name: a.shape[0] for name, a in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"got {path} with columns of different lengths, {lengths}: expected one value for each example")
    # A CSV file has a line of names before its first row, and people count from 1.
    unit, first = ("line", 2) if suffix in (".csv", ".tsv") else ("row", 0)
    return Table(path.stem, columns, content_hash(columns), lambda row: f"{unit} {row + first} of {path}", split)


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    rows = max((a.shape[0] for a in arrays.values() if a.ndim), default=0)
    # Files often keep names of classes and the like beside the rows.
    return {name: as_column(name, a) for name, a in arrays.items() if a.ndim and a.shape[0] == rows}


def _npy(path: Path) -> dict[str, np.ndarray]:
    a = np.load(path, mmap_mode="r", allow_pickle=False)
    if a.dtype.names:  # samples of a table with classes
        return {name: as_column(name, a[name]) for name in a.dtype.names}
    if a.dtype.kind not in "biuf" or a.ndim == 0 or 0 in a.shape:
        raise DataError(f"got {path} of dtype {a.dtype} and shape {a.shape}, expected numbers (N, ...)")
    return {"x": a}


def _csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        tab = path.suffix.lower() == ".tsv" or head.count("\t") > head.count(",")
        file.seek(0)
        rows = list(csv.reader(file, delimiter="\t" if tab else ";" if head.count(";") > head.count(",") else ","))
    names, *rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)] or [[]]
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"got {path} with the names {listed(map(repr, names))}, expected different ones in line 1")
    if not rows:
        raise DataError(f"got {path} without rows: expected names in line 1 and values below")
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise DataError(f"got {len(row)} values in line {i + 2} of {path}, expected {len(names)}: {listed(names)}")
    return {name: _typed(path, name, [row[i] for row in rows]) for i, name in enumerate(names)}


def _typed(path: Path, name: str, cells: Sequence[str]) -> np.ndarray:
    """Returns whole numbers, numbers or texts, whichever all cells are; most numbers and a few texts are an error."""
    if all(re.fullmatch(r"[+-]?\d{1,18}", cell) for cell in cells):
        return np.array([int(cell) for cell in cells], np.int64)
    numbers = [_number(cell) for cell in cells]
    bad = [i for i, number in enumerate(numbers) if number is None]
    if not bad:
        return np.array(numbers, np.float64)
    if len(bad) < len(cells) / 2 and len({cells[i] for i in bad}) < 10 and len(cells) > 2:
        raise DataError(
            f"got {cells[bad[0]]!r:.60} in {name!r}, line {bad[0] + 2} of {path}, where most values are numbers: "
            "correct it, or drop the row"
        )
    if "" in cells:
        raise DataError(
            f"got no value of {name!r} in line {cells.index('') + 2} of {path}: fill it in, or drop the row"
        )
    return np.array(cells)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"got {path}, which PyArrow reads: pip install 'flowguide[files]'") from error
    return _arrow_columns(pq.read_table(path), str(path))


def _arrow_columns(table: Any, place: str) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            row = next(i for i, value in enumerate(column) if not value.is_valid)
            raise DataError(f"got no value of {name!r} in row {row} of {place}: fill it in, or drop the row")
        columns[name] = as_column(name, column.to_pylist())
    return columns


def _hugging_face(path: Path) -> dict[str, Table]:
    try:
        datasets = importlib.import_module("datasets")  # not installed with flowguide
    except ImportError as error:
        raise DataError(f"got {path}, which Hugging Face's datasets reads: pip install 'flowguide[hf]'") from error
    loaded: Any = datasets.load_from_disk(str(path))
    whole = loaded if isinstance(loaded, Mapping) else {"": loaded}
    names = {**dict.fromkeys(TRAIN, "train"), **dict.fromkeys(TEST, "test"), "": ""}
    found = {names[key]: part for key, part in whole.items() if key in names}
    if set(found) == {"train"}:
        found = {"": found["train"]}
    if "train" not in found and "" not in found:
        raise DataError(f"got {path} with the splits {listed(whole)}, expected one called train")
    return {split: _hugging_face_table(part, split, path) for split, part in found.items()}


def _hugging_face_table(part: Any, split: str, path: Path) -> Table:
    columns: dict[str, Any] = {}
    for name, feature in part.features.items():
        values = part[name]
        if type(feature).__name__ == "Image":
            columns[name] = as_column(name, [np.asarray(image) for image in values])
        elif type(feature).__name__ == "ClassLabel":
            columns[name] = np.array([feature.names[value] for value in values])
        else:
            columns[name] = as_column(name, list(values))
    where = f"{path}{f', split {split}' if split else ''}"
    return Table(path.name, columns, content_hash(columns), lambda row: f"row {row} of {where}", split)


def _read_folder(folder: Path, split: str, image_size: int | None) -> Table:
    beside: dict[str, list[Path]] = {}
    if (folder / METADATA).is_file():
        files, beside, columns = _listed_images(folder)
    else:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
        if not files:
            raise DataError(f"got {folder} without images ({', '.join(IMAGES)}), expected some, or files of a split")
        classes = [file.relative_to(folder).parts[0] if file.parent != folder else "" for file in files]
        if "" in classes and set(classes) != {""}:
            loose = files[classes.index("")]
            raise DataError(f"got {loose} beside folders of classes: move it into one of them, or away")
        columns = {"label": np.array(classes)} if len(set(classes)) > 1 else {}
    hashed = hashlib.sha256()
    for file in [*files, *(file for listed_files in beside.values() for file in listed_files)]:
        about = file.stat()
        hashed.update(f"{file.relative_to(folder)} {about.st_size} {about.st_mtime_ns};".encode())
    hashed.update(content_hash(columns).encode())
    images = {name: ImageFiles(listed_files, image_size) for name, listed_files in {"image": files, **beside}.items()}
    return Table(
        folder.resolve().name if not split else folder.resolve().parent.name,
        {**images, **columns},
        hashed.hexdigest()[:16],
        lambda row: str(files[row]),
        split,
    )


def _listed_images(folder: Path) -> tuple[list[Path], dict[str, list[Path]], dict[str, np.ndarray]]:
    """Returns the images, images beside them by name (column ``mask_file_name`` lists "mask"), and other columns."""
    columns = _csv(folder / METADATA)
    if FILE_NAME not in columns:
        raise DataError(f"got {folder / METADATA} with {listed(columns)}, expected a column {FILE_NAME}")
    files: dict[str, list[Path]] = {}
    for column in [name for name in columns if name == FILE_NAME or name.endswith(f"_{FILE_NAME}")]:
        name = column.removesuffix(FILE_NAME).removesuffix("_")
        files[name] = [folder / str(file) for file in columns.pop(column).tolist()]
        for row, file in enumerate(files[name]):
            if not file.is_file():
                raise DataError(f"got {file.name} in line {row + 2} of {folder / METADATA}, a file that does not exist")
    return files.pop(""), files, columns


def _size_and_mode(file: Path) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(file, formats=pixels.FORMATS) as image:
            return image.size, image.mode
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise DataError(f"got {file}, an image that cannot be read ({error}): repair or remove it") from error


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
