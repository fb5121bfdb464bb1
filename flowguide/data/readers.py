"""Finds each kind of example among the features of a TFDS set, and reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from flowguide.data import pixels
from flowguide.errors import DataError
from flowguide.schema import Examples, Images, Latents, Records, Vectors


class Reader(NamedTuple):
    """Reads one kind of example.

    Attributes:
      find: (name of the data set, its features, image_size) -> the feature that holds the examples and their kind, or
        None. Raises DataError if they are of this kind but cannot be used.
      read: (stored values, a description of each for errors, kind, image_size) -> a batch ``(B, *shape)``.
      still_encoded: whether ``read`` takes encoded files, as bytes.
    """

    find: Callable[[str, Any, int | None], tuple[str, Examples] | None]
    read: Callable[[Sequence[Any], Sequence[str], Examples, int | None], np.ndarray]
    still_encoded: bool


def _find_images(name: str, features: Any, image_size: int | None) -> tuple[str, Examples] | None:
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    if "image" not in images and len(images) != 1:
        return None
    key = "image" if "image" in images else images[0]
    *sides, channels = features[key].shape
    if image_size is not None:
        sides = [image_size, image_size]
    if None in sides:
        raise DataError(f"got images of differing sizes in {name}, expected one size: set image_size, e.g. 64")
    if features[key].np_dtype != np.uint8 or channels not in (1, 3, 4):
        raise DataError(f"got {features[key]} in {name}, expected uint8 images of 1, 3 or 4 channels: convert them")
    return key, Images((*sides, channels))


def _read_images(
    files: Sequence[bytes], places: Sequence[str], examples: Examples, image_size: int | None
) -> np.ndarray:
    height, width, channels = examples.shape
    decoded = []
    for file, place in zip(files, places, strict=True):
        try:
            decoded.append(pixels.decode(file, (height, width, channels), resize=image_size is not None))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
    return np.stack(decoded)


def _find_vectors(name: str, features: Any, image_size: int | None) -> tuple[str, Examples] | None:
    if image_size is not None:
        raise DataError(f"got image_size={image_size} for {name}, which has no images: leave it out")
    feature: Any = dict(features.items()).get("x")
    if not isinstance(feature, tfds.features.Tensor):
        return None
    shape: Any = feature.shape
    dtype: Any = feature.np_dtype
    if None in shape:
        return None
    return ("x", Vectors(tuple(shape))) if np.issubdtype(dtype, np.floating) else None


def _read_vectors(
    values: Sequence[Any], places: Sequence[str], examples: Examples, image_size: int | None
) -> np.ndarray:
    return np.asarray(values, np.float32)


def _read_as_stored(
    values: Sequence[Any], places: Sequence[str], examples: Examples, image_size: int | None
) -> np.ndarray:
    return np.asarray(values, examples.dtype)


# By kind of example; the first reader that finds its examples wins.
READERS: dict[str, Reader] = {
    Images.kind: Reader(_find_images, _read_images, still_encoded=True),
    Vectors.kind: Reader(_find_vectors, _read_vectors, still_encoded=False),
    # Only imported and encoded sets have these.
    Records.kind: Reader(lambda *_: None, _read_vectors, still_encoded=False),
    Latents.kind: Reader(lambda *_: None, _read_as_stored, still_encoded=False),
}


def find_examples(name: str, features: Any, image_size: int | None) -> tuple[str, Examples]:
    """Returns the feature that holds the examples of a data set, and their kind.

    Raises:
      DataError: if there is none, or it cannot be used.
    """
    pixels.check_side(image_size)
    for reader in READERS.values():
        if found := reader.find(name, features, image_size):
            return found
    raise DataError(f"got {name} with {', '.join(features)}, expected an image, or a float feature 'x' of fixed shape")
