"""Writes prepared TFDS sets, which any machine reads by name, without TensorFlow; imports a file or folder as one.

TFDS's own writer keeps up to a gigabyte of records in memory and then needs TensorFlow. ``SequentialWriter`` writes
each record as it comes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tqdm import tqdm

from flowguide import storage
from flowguide.data.dataset import Dataset, example_bytes
from flowguide.data.files import open_path
from flowguide.data.imported import Imported, imported, to_metadata
from flowguide.data.pixels import encode_png
from flowguide.data.preparing import INFO, find_builder
from flowguide.errors import DataError, UserError, one_line
from flowguide.hashes import json_hash
from flowguide.schema import Batch, Images

VERSION = "1.0.0"
CHUNK = 256  # examples in memory at a time
SHARD = 2**28  # bytes of decoded examples in a file, at most

_LAST = ("features.json", INFO)  # tell readers that all is there


class Import(NamedTuple):
    """What an import did.

    Attributes:
      builder: of the prepared set.
      written: False if the same import was there already.
    """

    builder: Any
    written: bool


def import_path(
    path: str | Path,
    name: str,
    data_dir: str | Path | None = None,
    *,
    example: Sequence[str] = (),
    fields: Sequence[str] | None = None,
    image_size: int | None = None,
    progress: bool = False,
) -> Import:
    """Writes what is at a path as the prepared set ``name``, with the splits train and test.

    Training on the set is training on the path: the same examples in the same order, and the same ``DataInfo`` but for
    the name. Images are decoded a few at a time. The set appears under its name when it is complete; an import that
    failed or was killed is started again.

    Args:
      path: a file or folder, see ``tables_of``.
      name: of the set, lower-case letters, digits and _; none that TFDS knows.
      data_dir: folder or bucket to write to; by default that of TFDS.
      example: as for ``open_path``.
      fields: as for ``open_path``.
      image_size: as for ``open_path``.
      progress: show a progress bar.

    Raises:
      DataError: if the data cannot be used, ``name`` is taken, or the set cannot be written.
    """
    folder = set_folder(name, data_dir)
    splits = open_path(path, example, fields, image_size=image_size, memory_limit=0)
    train, test = splits
    version = train.version if test.version == train.version else f"{train.version}-{test.version}"
    about = Imported(train.info._replace(name=name), _feature(train), version)
    if storage.exists(folder / INFO):
        return Import(_same(name, data_dir, about, path), False)
    with writing_to(folder):
        write_set(name, data_dir, {"train": train, "test": test}, version, progress)
    return Import(find_builder(name, data_dir), True)


def write_set(
    name: str,
    data_dir: str | Path | None,
    splits: Mapping[str, Dataset],
    version: str,
    progress: bool = False,
    beside: Callable[[Path], None] = lambda place: None,
) -> None:
    """Writes splits as the prepared set ``name``, which appears under its name when it is complete.

    Args:
      name: of the set, which is free (``set_folder``).
      data_dir: folder or bucket to write to.
      splits: by name, of the same kinds of example and field; each is read in order.
      version: of the data.
      progress: show a progress bar.
      beside: writes more files into the folder.
    """
    first = next(iter(splits.values()))
    about = Imported(first.info._replace(name=name), _feature(first), version)
    with _complete(set_folder(name, data_dir)) as place:
        _write(place, about, splits, progress)
        beside(place)


def is_written(name: str, data_dir: str | Path | None, version: str, source: str | Path, parts: Path) -> bool:
    """Returns whether the set exists, and removes parts left beside it.

    A process that is killed just before it ends leaves them.

    Args:
      name: of the set.
      data_dir: its folder or bucket.
      version: of the data that it is to be made from, and of the way.
      source: of these data, for the message.
      parts: folder of its parts.

    Raises:
      DataError: if a set of this name is there that was made from other data, or in another way.
    """
    if not storage.exists(set_folder(name, data_dir) / INFO):
        return False
    builder = find_builder(name, data_dir)
    there = imported(builder)
    if there is None or there.version != version:
        got = (
            "which was not"
            if there is None
            else f"of version {there.version}, and now it would be {version}, as it was"
        )
        raise DataError(
            f"got {name}, {got} made from {source} in this way: give another name, or delete {builder.data_dir} and "
            "run this again"
        )
    if storage.exists(parts):
        storage.remove(parts)
    return True


@contextlib.contextmanager
def writing_to(folder: Path, kind: type[Exception] = Exception) -> Generator[None]:
    """Converts exceptions of its block to ``DataError``, except those that are errors of the user already."""
    try:
        yield
    except UserError:
        raise
    except kind as error:  # a full disk, a bucket that has gone: each storage has its own kinds
        raise DataError(
            f"{folder.parent.name} cannot be written to {folder} ({one_line(error)}): make room, or give another "
            "data_dir"
        ) from error


def set_folder(name: str, data_dir: str | Path | None) -> Path:
    """Returns where a set of this name is kept, if the name can be given."""
    if not re.fullmatch("[a-z][a-z0-9_]{0,99}", name):
        raise DataError(f"got the name {name!r:.100}, expected lower-case letters, digits and _, such as my_photos")
    if name in tfds.list_builders(with_community_datasets=False):
        raise DataError(f"got the name {name!r}, which is that of a set that TFDS or flowguide knows: give another")
    root = find_builder("digits", data_dir).data_dir_root  # knows where TFDS keeps its data
    return storage.path(root) / name / VERSION


def _feature(data: Dataset) -> str:
    """Returns a name for the examples that no field has."""
    name = "image" if isinstance(data.info.examples, Images) else "x"
    while name in data.info.fields:
        name += "_"
    return name


def _same(name: str, data_dir: str | Path | None, about: Imported, path: str | Path) -> Any:
    """Returns the builder of a set that is there, if it was imported from the same data in the same way."""
    builder = find_builder(name, data_dir)
    there = imported(builder)
    if there == about:
        return builder
    if there is None:
        what = "which was not imported"
    elif there.version != about.version:
        versions = f"version {there.version}, now {about.version}"
        what = f"which was imported from other data, or before {path} changed ({versions})"
    else:
        what = "which was imported with another --example, --fields or --image_size"
    raise DataError(f"got {name}, {what}: give another name, or delete {builder.data_dir} and import it again")


@contextlib.contextmanager
def _complete(folder: Path) -> Generator[Path]:
    """Yields an empty folder that becomes ``folder`` when the block has ended, and vanishes if it fails."""
    if storage.is_remote(folder):
        with tempfile.TemporaryDirectory(prefix="flowguide-") as place:
            yield Path(place)
            storage.copy_folder(Path(place), folder, last=_LAST)
        return
    if folder.exists():
        raise DataError(f"got the incomplete folder {folder}: delete it, then import {folder.parent.name} again")
    with alone_in(folder.parent):
        place = folder.with_name(f"incomplete.import_{folder.name}")  # TFDS ignores such folders
        shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
        place.mkdir()
        try:
            yield place
            place.rename(folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Lets only one process of this machine write a set at a time, in its folder, which vanishes if it stays empty.

    The kernel frees the folder however that process ends. A bucket has no locks.

    Raises:
      DataError: if another process writes the set.
    """
    if storage.is_remote(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # the file system has no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"another process is writing {folder.name} into {folder}: wait until it ends"
                ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which fails unless it is empty
    finally:
        os.close(descriptor)


def _write(place: Path, about: Imported, splits: Mapping[str, Dataset], progress: bool) -> None:
    """Writes all examples and what they are."""
    identity: Any = DatasetIdentity(about.info.name, tfds.core.Version(VERSION), str(place), __name__)
    info = tfds.core.DatasetInfo(
        builder=identity,
        # Copies of a bucket's set are known by their dataset_info.json, which so differs from that of a later import.
        description=f"Imported by flowguide: {json_hash(to_metadata(about))}",
        features=tfds.features.FeaturesDict(_features(about)),
        metadata=tfds.core.MetadataDict(to_metadata(about)),
        disable_shuffling=True,
    )
    per_file = max(1, SHARD // example_bytes(about.info))
    writer = tfds.core.SequentialWriter(info, per_file, file_format="array_record")
    writer.initialize_splits(list(splits))
    total = sum(data.size for data in splits.values())
    with tqdm(total=total, disable=not progress, unit="example", dynamic_ncols=True) as bar:
        for split, data in splits.items():
            for start in range(0, data.size, CHUNK):
                records = _records(about, data.read(np.arange(start, min(start + CHUNK, data.size))))
                writer.add_examples({split: records})
                bar.update(len(records))
    writer.close_all()


def _features(about: Imported) -> dict[str, Any]:
    """Returns the TFDS feature of the examples and of each field."""

    def tensor(shape: tuple[int, ...], dtype: Any) -> Any:
        # TFDS would make float32 of float16.
        encoding = tfds.features.Encoding.BYTES if dtype == np.float16 else tfds.features.Encoding.NONE
        return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding=encoding)

    examples = about.info.examples
    if isinstance(examples, Images):
        example = tfds.features.Image(shape=examples.shape, encoding_format="png")
    else:
        example = tensor(examples.stored_shape, examples.dtype)
    return {about.example: example, **{k: tensor(f.shape, f.dtype) for k, f in about.info.fields.items()}}


def _records(about: Imported, batch: Batch) -> list[dict[str, Any]]:
    encode = encode_png if isinstance(about.info.examples, Images) else np.asarray
    values = [{name: column[i] for name, column in batch.value.items()} for i in range(len(batch.x))]
    return [{about.example: encode(x), **value} for x, value in zip(batch.x, values, strict=True)]
