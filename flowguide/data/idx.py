"""MNIST and its kin from their four IDX files, without TensorFlow.

The stock TFDS builders of this family unpack and encode their files through TensorFlow. Here such a builder keeps
its name, version and features, and so the folder that it writes; only where its examples come from is replaced.
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

from flowguide.data.errors import DataError
from flowguide.data.pixels import encode_png

FAMILY = ("mnist", "fashion_mnist", "kmnist")
FILES = {  # images and labels of each split
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

_LARGEST = 2**28  # bytes; MNIST's largest file has 47 million

# SHA-256 of *unpacked* files. TFDS knows that of the .gz alone, which changes with the name and date in its header;
# these were taken after the .gz, with its original header, had passed TFDS's own check.
_UNPACKED = {
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888": "fashion_mnist",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9": "fashion_mnist",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b": "fashion_mnist",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34": "fashion_mnist",
}


def read_from_idx(builder: Any, folder: str | Path | None = None) -> None:
    """Lets a stock builder of ``FAMILY`` take its examples from IDX files.

    Args:
      builder: the TFDS builder; its ``_split_generators`` is replaced.
      folder: where the user's own four files are, .gz or unpacked; without it they are downloaded.

    Raises:
      DataError: later, when the builder prepares: where a file is missing, damaged, or another data set's.
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
    """The file ``stem`` in ``folder``, packed or not, also under the spelling ``train-images.idx3-ubyte``."""
    names = [name + ending for name in (stem, stem.replace("-idx", ".idx")) for ending in (".gz", "")]
    for name in names:
        if (path := Path(folder).expanduser() / name).is_file():
            return path
    raise DataError(f"got no {names[0]} or {names[1]} in {folder}, expected all four IDX files: copy it there")


def read(path: Path, name: str, checksums: frozenset[str] = frozenset()) -> np.ndarray:
    """The uint8 array of an IDX file of labels or images, packed or not.

    Args:
      path: the file.
      name: the data set whose file it should be.
      checksums: SHA-256 of original .gz files, which need no further check.

    Raises:
      DataError: where the file is damaged, or known to be another data set's.
    """
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content, shape = _content(gzip.GzipFile(fileobj=file) if packed else file)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"got the damaged file {path} ({error}), expected an IDX file: copy it anew") from error
    owner = _UNPACKED.get(hashlib.sha256(content).hexdigest())
    if owner != name and (owner or name in _UNPACKED.values()):
        raise DataError(f"got {path} of {owner or 'unknown origin'}, expected {name}'s file: copy the original there")
    if owner is None and checksum not in checksums:
        logging.warning("%s is a sound IDX file, but not known to be an original of %s", path, name)
    return np.frombuffer(content, np.uint8, offset=len(content) - math.prod(shape)).reshape(shape)


def _content(file: Any) -> tuple[bytes, tuple[int, ...]]:
    """The bytes of an IDX file and the shape that its header states; reads one byte more than that, and no further.

    A packed file of a megabyte may unpack to gigabytes. Its checksum is compared when its end is read.
    """
    start = file.read(4)
    if start not in (b"\0\0\x08\1", b"\0\0\x08\3"):  # 8: unsigned bytes; then the rank
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
