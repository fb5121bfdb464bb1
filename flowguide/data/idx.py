"""Reads MNIST and similar sets from their four IDX files, without TensorFlow.

The stock TFDS builders of these sets unpack and encode their files through TensorFlow. This module replaces only the
source of their examples: a builder keeps its name, version and features, and so the folder it writes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from flowguide.data.pixels import encode_png
from flowguide.errors import DataError

FAMILY = ("mnist", "fashion_mnist", "kmnist")
FILES = {  # images and labels of each split
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

_LARGEST = 2**28  # bytes; MNIST's largest file has 47 million

# SHA-256 of *unpacked* files. TFDS has only that of the .gz, which depends on the name and date in its header. These
# were computed from .gz files with their original header, after they had passed TFDS's check.
_UNPACKED = {
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888": "fashion_mnist",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9": "fashion_mnist",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b": "fashion_mnist",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34": "fashion_mnist",
}


def read_from_idx(builder: Any, folder: str | Path | None = None) -> None:
    """Makes a stock builder of ``FAMILY`` take its examples from IDX files.

    Args:
      builder: the TFDS builder; its ``_split_generators`` is replaced.
      folder: folder of the user's four files, .gz or unpacked; without it they are downloaded.

    Raises:
      DataError: later, while the builder prepares, if a file is missing, damaged or another data set's.
    """

    def splits(dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        stems = [stem for pair in FILES.values() for stem in pair]
        if folder is None:
            paths = dl_manager.download({stem: f"{builder.URL}{stem}.gz" for stem in stems})
        else:
            paths = {stem: find(folder, stem) for stem in stems}
        arrays = {stem: read(Path(path), builder.name, _checksums(builder)) for stem, path in paths.items()}
        return {split: _examples(arrays[images], arrays[labels]) for split, (images, labels) in FILES.items()}

    builder._split_generators = splits


def find(folder: str | Path, stem: str) -> Path:
    """Returns the file ``stem`` in ``folder``, packed or not; also finds the spelling ``train-images.idx3-ubyte``."""
    names = [name + ending for name in (stem, stem.replace("-idx", ".idx")) for ending in (".gz", "")]
    for name in names:
        if (path := Path(folder).expanduser() / name).is_file():
            return path
    raise DataError(f"got no {names[0]} or {names[1]} in {folder}, expected all four IDX files: copy the file there")


def read(path: Path, name: str, checksums: frozenset[str] = frozenset()) -> np.ndarray:
    """Returns the uint8 array of an IDX file of labels or images, packed or not.

    Args:
      path: the file.
      name: the data set to which the file should belong.
      checksums: SHA-256 of original .gz files, which are known to be genuine.

    Raises:
      DataError: if the file is damaged, or known to be another data set's.
    """
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content, shape = _content(gzip.GzipFile(fileobj=file) if packed else file)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"got the damaged file {path} ({error}), expected an IDX file: copy it again") from error
    owner = _UNPACKED.get(hashlib.sha256(content).hexdigest())
    if owner != name and (owner or name in _UNPACKED.values()):
        raise DataError(f"got {path} of {owner or 'unknown origin'}, expected {name}'s file: copy the original there")
    if owner is None and checksum not in checksums:
        logging.warning("%s is a valid IDX file, but not known to be an original of %s", path, name)
    return np.frombuffer(content, np.uint8, offset=len(content) - math.prod(shape)).reshape(shape)


def _content(file: Any) -> tuple[bytes, tuple[int, ...]]:
    """Returns the bytes of an IDX file and the shape in its header; reads at most one byte more than the header states.

    The limit is there because a packed file of a megabyte may unpack to gigabytes. The extra byte makes gzip reach the
    end and compare its checksum.
    """
    start = file.read(4)
    if start not in (b"\0\0\x08\1", b"\0\0\x08\3"):  # 8 means uint8; the last byte is the rank
        raise ValueError("no IDX file of labels or images")
    sides = file.read(4 * start[3])
    shape = struct.unpack(f">{start[3]}I", sides)
    size = math.prod(shape)
    if size > _LARGEST:
        raise ValueError(f"its header states {size:,} bytes, more than any file of this family has")
    values = file.read(size + 1)
    if len(values) != size:
        raise ValueError(f"it has {'more' if len(values) > size else 'fewer'} than the {size:,} bytes that it states")
    return start + sides + values, shape


def _checksums(builder: Any) -> frozenset[str]:
    return frozenset(info.checksum for info in builder.url_infos.values())


def _examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"got images {images.shape} and labels {labels.shape}, expected (n, 28, 28) and (n,): "
            "check that the four files belong together"
        )
    for i, image in enumerate(images):
        yield i, {"image": encode_png(image[..., None]), "label": int(labels[i])}
