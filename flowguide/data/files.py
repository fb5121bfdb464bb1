"""Tables from files: a folder of images, ``.npz`` and ``.npy``, CSV, Parquet, and a Hugging Face data set on disk."""

from __future__ import annotations

import hashlib
import importlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flowguide.data import pixels
from flowguide.data.csv_files import Content, read_csv, read_table
from flowguide.data.dataset import MEMORY_LIMIT, Dataset
from flowguide.data.tables import (
    USUAL,
    Table,
    as_column,
    content_hash,
    describe_table,
    likely_examples,
    open_table,
)
from flowguide.errors import DataError, listed
from flowguide.schema import DataInfo, image_files
from flowguide.schema.files import load

IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
OTHER_IMAGES = (".tif", ".tiff", ".heic", ".avif", ".jxl")  # that people have, and that are not read
# What folders and files of the two splits are called.
TRAIN, TEST = ("train", "training"), ("test", "validation", "valid", "val")
METADATA, FILE_NAME = "metadata.csv", "file_name"


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
        sizes, channels = zip(*map(_size_and_channels, files), strict=True)
        if side is None and (odd := [i for i, size in enumerate(sizes) if size != sizes[0]]):
            raise DataError(
                f"got {files[odd[0]]} of {_by(sizes[odd[0]])} pixels and {files[0]} of {_by(sizes[0])}, expected one "
                "size: give image_size, e.g. 64, to crop and resize them"
            )
        width, height = (side, side) if side else sizes[0]
        self.shape = (len(self._files), height, width, max(channels))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._decoded(self._files[int(row)]) for row in rows])

    def _decoded(self, file: Path) -> np.ndarray:
        height, width, channels = self.shape[1:]
        try:
            resize = self._side is not None
            return pixels.decode(file.read_bytes(), (height, width, channels), resize, upright=True)
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
    pixels.check_side(image_size)
    try:
        path = _local(path)
        if path.is_file():
            return {"": _read_file(path, "", image_size)}
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _hugging_face(path, image_size)
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
    return open_tables(tables_of(path, image_size), example, fields, known=known, memory_limit=memory_limit)


def open_tables(
    found: Mapping[str, Table],
    example: Sequence[str] = (),
    fields: Sequence[str] | None = None,
    *,
    known: DataInfo | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[Dataset, Dataset]:
    """Opens the training and the test split of tables from ``tables_of``; arguments and errors as for ``open_path``."""
    tables = by_split(found)
    train = tables["train"]
    if fields is not None and tuple(fields) == ("none",) and "none" not in train.columns:
        fields = ()
    info = known or describe_table(train, example, fields)
    chosen = tuple(example) or likely_examples(train, tuple(info.fields) if known else fields)
    first, second = (open_table(t, s, info, chosen, memory_limit=memory_limit) for s, t in tables.items())
    return first, second


def by_split(found: Mapping[str, Table]) -> dict[str, Table]:
    """Returns the table of each split; both have the same one if some of its rows are held out."""
    train = found.get("train", found.get(""))
    assert train is not None
    return {"train": train, "test": found.get("test", train)}


def _local(path: str | Path) -> Path:
    """Returns the path of a file or folder of this machine; ~ is the home folder.

    Raises:
      DataError: if there is none.
    """
    text = os.fspath(path)
    if "://" in text or not text.strip():
        raise DataError(f"got the path {text!r}, expected a file or folder of this machine: copy the data there")
    found = Path(os.path.expanduser(text))
    if not found.exists():
        raise DataError(f"got {found}, which does not exist: give a file or a folder")
    if not (found.is_file() or found.is_dir()):  # a pipe would wait
        raise DataError(f"got {found}, which is neither a file nor a folder: give one")
    return found


def _part(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns the file or folder of a split."""
    for entry in sorted(folder.iterdir()):
        if entry.stem.lower() in names and (entry.is_dir() or entry.suffix.lower() in READERS):
            return entry
    return None


def _read(path: Path, split: str, image_size: int | None) -> Table:
    return _read_file(path, split, image_size) if path.is_file() else _read_folder(path, split, image_size)


def _read_file(path: Path, split: str, image_size: int | None) -> Table:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(f"got {path}, expected a file of {', '.join(READERS)}, or a folder")
    _check_resizes(path, image_size, False)
    try:
        columns, place, wrong = READERS[suffix](path)
    except DataError:
        raise
    except Exception as error:  # NumPy, zipfile and PyArrow raise nearly anything for damaged files
        raise DataError(f"got {path}, which cannot be read ({type(error).__name__}: {error}): repair it") from error
    if not columns:
        raise DataError(f"got {path}, which has no columns")
    lengths = {name: a.shape[0] for name, a in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"got {path} with columns of different lengths, {lengths}: expected one value for each example")
    return Table(path.stem, columns, content_hash(columns), lambda row: f"{place(row)} of {path}", split, wrong)


def _check_resizes(path: Path, image_size: int | None, has_images: bool) -> None:
    if image_size is not None and not has_images:
        raise DataError(f"got image_size={image_size} for {path}, which has no image files: leave it out")


def _content(place: str | Path, columns: Mapping[str, Any]) -> Content:
    """Returns columns as arrays; those that cannot be arrays are empty texts, and refused if they are used."""
    found, wrong = {}, {}
    for name, given in columns.items():
        try:
            if isinstance(given, list) and (missing := [row for row, value in enumerate(given) if value is None]):
                raise DataError(f"got no value of {name!r} in row {missing[0]}: fill it in, or drop the row")
            found[name] = as_column(name, given)
        except DataError as error:
            found[name], wrong[name] = np.full(len(given), ""), f"{place}: {error}"
    return Content(found, wrong=wrong)


def _npz(path: Path) -> Content:
    if not zipfile.is_zipfile(path):  # np.load would take it for a pickle, and advise to trust it
        raise ValueError("it is no .npz file")
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    arrays = {name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and a.ndim}
    usual = next((name for name in USUAL if name in arrays), None)
    rows = len(arrays[usual]) if usual else max(map(len, arrays.values()), default=0)
    # Files often keep names of classes and the like beside the rows, but not nearly as many.
    if odd := [name for name, a in arrays.items() if len(a) != rows and 2 * len(a) > rows]:
        count = len(arrays[odd[0]])
        raise DataError(f"got {count:,} values of {odd[0]!r} for {rows:,} rows in {path}: give one for each")
    return _content(path, {name: a for name, a in arrays.items() if len(a) == rows})


def _npy(path: Path) -> Content:
    a = load(path, mmap_mode="r")
    if a.dtype.names and a.ndim:  # samples of a table with classes
        return _content(path, {name: a[name] for name in a.dtype.names})
    if a.dtype.kind not in "biuf" or a.ndim == 0 or 0 in a.shape:
        raise DataError(f"got {path} of dtype {a.dtype} and shape {a.shape}, expected numbers (N, ...)")
    return Content({"x": a})


def _parquet(path: Path) -> Content:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"got {path}, which PyArrow reads: pip install 'flowguide[files]'") from error
    table = pq.read_table(path)
    return _content(path, {name: table.column(name).to_pylist() for name in table.column_names})


def _hugging_face(path: Path, image_size: int | None) -> dict[str, Table]:
    try:
        datasets = importlib.import_module("datasets")  # not installed with flowguide
    except ImportError as error:
        raise DataError(f"got {path}, which Hugging Face's datasets reads: pip install 'flowguide[hf]'") from error
    try:
        loaded: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # it raises nearly anything for damaged files
        raise DataError(f"got {path}, which cannot be read ({type(error).__name__}: {error}): repair it") from error
    whole = loaded if isinstance(loaded, Mapping) else {"": loaded}
    names = {**dict.fromkeys(TRAIN, "train"), **dict.fromkeys(TEST, "test"), "": ""}
    found = {names[key]: part for key, part in whole.items() if key in names}
    if set(found) == {"train"}:
        found = {"": found["train"]}
    if "train" not in found and "" not in found:
        raise DataError(f"got {path} with the splits {listed(whole)}, expected one called train")
    return {split: _hugging_face_table(part, split, path, image_size) for split, part in found.items()}


def _hugging_face_table(part: Any, split: str, path: Path, image_size: int | None) -> Table:
    where, values = f"{path}{f', split {split}' if split else ''}", {}
    kinds = {name: type(feature).__name__ for name, feature in part.features.items()}
    _check_resizes(path, image_size, "Image" in kinds.values())
    for name, kind in kinds.items():
        values[name] = list(part[name])
        if kind == "Image":
            values[name] = _of_one_shape(where, values[name], image_size)
        elif kind == "ClassLabel":  # below 0 it is hidden, as in some test splits
            names = part.features[name].names
            values[name] = [None if value is None or value < 0 else names[value] for value in values[name]]
    columns, _, wrong = _content(where, values)
    return Table(path.name, columns, content_hash(columns), lambda row: f"row {row} of {where}", split, wrong)


def _of_one_shape(where: str, images: list[Any], side: int | None) -> list[np.ndarray | None]:
    """Returns Pillow's images, None where there is none, as arrays of one mode and size."""
    there = [image for image in images if image is not None]
    try:
        for image in there:
            image_files.check(image)
    except ValueError as error:
        raise DataError(f"got an image that cannot be used in {where} ({error}): remove it") from error
    if side is None and len(sizes := {image.size for image in there}) > 1:
        some = listed(map(_by, sorted(sizes)), 3)
        raise DataError(f"got images of {some} pixels in {where}, expected one size: give image_size, e.g. 64")
    mode = image_files.MODES[max(map(image_files.channels, there), default=3)]
    shown = [image and image.convert(mode) for image in images]
    if side is not None:
        shown = [image and ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC) for image in shown]
    return [image and np.asarray(image) for image in shown]


def _read_folder(folder: Path, split: str, image_size: int | None) -> Table:
    beside: dict[str, list[Path]] = {}
    if (folder / METADATA).is_file():
        files, beside, listing = _listed_images(folder)
        columns, wrong = listing.columns, listing.wrong
    else:
        files = _images_in(folder)
        classes = [file.relative_to(folder).parts[0] if file.parent != folder else "" for file in files]
        if "" in classes and set(classes) != {""}:
            loose = files[classes.index("")]
            raise DataError(f"got {loose} beside folders of classes: move it into one of them, or away")
        columns, wrong = {"label": np.array(classes)} if len(set(classes)) > 1 else {}, {}
    hashed = hashlib.sha256()
    for file in [*files, *(file for listed_files in beside.values() for file in listed_files)]:
        about = file.stat()
        hashed.update(f"{os.path.relpath(file, folder)} {about.st_size} {about.st_mtime_ns};".encode())
    hashed.update(content_hash(columns).encode())
    images = {name: ImageFiles(listed_files, image_size) for name, listed_files in {"image": files, **beside}.items()}
    return Table(
        folder.resolve().name if not split else folder.resolve().parent.name,
        {**images, **columns},
        hashed.hexdigest()[:16],
        lambda row: str(files[row]),
        split,
        wrong,
    )


def _images_in(folder: Path) -> list[Path]:
    """Returns the image files below a folder. Hidden ones are leftovers of file managers and notebooks."""
    below = sorted(file for file in folder.rglob("*") if file.is_file())
    below = [file for file in below if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    files = [file for file in below if file.suffix.lower() in IMAGES]
    if other := [file for file in below if file.suffix.lower() in OTHER_IMAGES]:
        raise DataError(f"got {other[0]}, expected images of {', '.join(IMAGES)}: convert it, or move it away")
    if not files:
        raise DataError(f"got {folder} without images ({', '.join(IMAGES)}), expected some, or files of a split")
    return files


def _listed_images(folder: Path) -> tuple[list[Path], dict[str, list[Path]], Content]:
    """Returns the images, images beside them by name (column ``mask_file_name`` lists "mask"), and other columns."""
    listing = read_table(folder / METADATA)
    columns = dict(listing.columns)
    if FILE_NAME not in columns:
        raise DataError(f"got {folder / METADATA} with {listed(columns)}, expected a column {FILE_NAME}")
    files: dict[str, list[Path]] = {}
    for column in [name for name in columns if name == FILE_NAME or name.endswith(f"_{FILE_NAME}")]:
        name = column.removesuffix(FILE_NAME).removesuffix("_") if column != FILE_NAME else "image"
        cells = columns.pop(column).tolist()
        if name in {"", *files, *columns} or (name == "image" and column != FILE_NAME):
            raise DataError(
                f"got {column!r} in {folder / METADATA}, whose images would be called {name!r}, as another column is: "
                "rename it"
            )
        files[name] = [folder / str(cell) for cell in cells]
        for row, (cell, file) in enumerate(zip(cells, files[name], strict=True)):
            if not file.is_file():
                where = f"{listing.place(row)} of {folder / METADATA}"
                raise DataError(f"got {str(cell)!r:.200} in {where}, a file that does not exist: correct it")
    return files.pop("image"), files, listing._replace(columns=columns)


def _size_and_channels(file: Path) -> tuple[tuple[int, int], int]:
    try:
        with Image.open(file, formats=image_files.FORMATS) as image:
            image_files.check(image)
            return image_files.size(image), image_files.channels(image)
    except Exception as error:  # Pillow raises nearly anything for damaged files
        unknown = f"it is none of {', '.join(image_files.FORMATS)}"
        reason = unknown if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"got {file}, an image that cannot be read ({reason}): repair or remove it") from error


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


READERS: dict[str, Callable[[Path], Content]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": _parquet,
}
