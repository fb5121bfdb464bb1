"""A TFDS data set as random access to batches of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow_datasets as tfds

from flowguide.condition import Field, Fields, Label, Tokens, Vector
from flowguide.data import pixels, tokens
from flowguide.data.errors import DataError
from flowguide.data.info import DataInfo
from flowguide.data.preparing import find_builder, prepared_builder, reading
from flowguide.kinds import fits

MEMORY_LIMIT = 2**29  # bytes of decoded examples; the train split of CIFAR-10 takes 154 MB


class Batch(NamedTuple):
    """Examples and what they are conditioned on.

    Attributes:
      x: uint8 (images) or float32 (points), ``(B, *shape)``.
      value: by field, int32 ``(B,)`` (Label), float32 ``(B, size)`` (Vector) or int32 ``(B, length)`` (Tokens).
    """

    x: np.ndarray
    value: dict[str, np.ndarray]


class Dataset(NamedTuple):
    """One split of a data set.

    Attributes:
      info: what a model must know about it.
      split: as asked for, ``"train"`` or ``"train[:90%]"``.
      version: the version that TFDS gives the data.
      size: examples in the split, those of all processes.
      in_memory: whether the decoded examples are held in memory.
      read: int ``(B,)`` of numbers below ``size`` -> the Batch of these examples.
    """

    info: DataInfo
    split: str
    version: str
    size: int
    in_memory: bool
    read: Callable[[np.ndarray], Batch]


def open_dataset(
    name: str,
    split: str = "train",
    fields: Sequence[str] | Fields | None = None,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
    """Opens a split of any TFDS data set that is prepared in array_record; our own are prepared on first use.

    Examples are its feature "image" (or its only image feature), otherwise its float feature "x".

    Args:
      name: a TFDS name.
      split: a split, or a slice of one in the notation of TFDS.
      fields: names of the features to condition on. None means every class label. A dict of names and specs, such
        as ``info.fields`` of a trained model, demands just these; a text needs one, unless the builder's metadata
        states its vocabulary.
      data_dir: where prepared sets are; without it ``TFDS_DATA_DIR``, or ``~/tensorflow_datasets``.
      image_size: where given, the central square of each image is resized to this side, on the host.
      memory_limit: a split whose decoded examples take no more bytes is decoded once and held in memory.

    Raises:
      DataError: where the set, split or a field is not there, or cannot be used in the way asked for.
    """
    builder = prepared_builder(name, data_dir)
    features = builder.info.features
    key, shape, kind = _example(name, features, image_size)
    info = DataInfo(name, shape, kind, _fields(builder, fields))
    source = _source(builder, name, split)
    size = len(source)
    wanted: Any = tfds.features.FeaturesDict({k: features[k] for k in (key, *info.fields)})
    still_encoded = {key: tfds.decode.SkipDecoding()} if kind == "image" else None

    def read(indices: np.ndarray) -> Batch:
        with reading(builder):  # array_record opens its files when it first reads
            records = source.__getitems__([int(i) for i in indices])
            rows = [wanted.deserialize_example_np(record, decoders=still_encoded) for record in records]
        if kind == "image":
            places = (f"example {i} in {builder.data_dir}" for i in indices)
            x = np.stack([_pixels(row[key], shape, image_size, at) for row, at in zip(rows, places, strict=True)])
        else:
            x = np.asarray([row[key] for row in rows], np.float32)
        return Batch(x, {k: _column(f, k, [row[k] for row in rows]) for k, f in info.fields.items()})

    bytes_each = int(np.prod(shape)) * (1 if kind == "image" else 4)
    in_memory = size * bytes_each <= memory_limit
    if in_memory:
        chunks = [read(chunk) for chunk in np.array_split(np.arange(size), -(-size // 1024))]
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
        return Dataset(info, split, str(builder.version), size, True, lambda i: jax.tree.map(lambda a: a[i], whole))
    return Dataset(info, split, str(builder.version), size, False, read)


def describe_dataset(
    name: str,
    fields: Sequence[str] | Fields | None = None,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
) -> DataInfo:
    """What ``open_dataset`` would tell of a data set, which need not be there; the arguments are the same.

    Raises:
      DataError: where the set or a field is not known, or cannot be used in the way asked for.
    """
    builder = find_builder(name, data_dir)
    _, shape, kind = _example(name, builder.info.features, image_size)
    return DataInfo(name, shape, kind, _fields(builder, fields))


def _example(name: str, features: Any, image_size: int | None) -> tuple[str, tuple[int, ...], str]:
    """The feature that holds the examples, their shape and their kind."""
    if image_size is not None and image_size < 1:
        raise DataError(f"got image_size={image_size}, expected a side in pixels, 1 or more")
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    if "image" in images or len(images) == 1:
        key = "image" if "image" in images else images[0]
        *sides, channels = features[key].shape
        if image_size is not None:
            sides = [image_size, image_size]
        if None in sides:
            raise DataError(f"got images of differing sizes in {name}, expected one size: set image_size, e.g. 64")
        if features[key].np_dtype != np.uint8 or channels not in (1, 3, 4):
            raise DataError(f"got {features[key]} in {name}, expected uint8 images of 1, 3 or 4 channels: convert them")
        return key, (*sides, channels), "image"
    if image_size is not None:
        raise DataError(f"got image_size={image_size} for {name}, which has no images: leave it out")
    if "x" in features:
        shape, dtype = features["x"].shape, features["x"].np_dtype
        if isinstance(features["x"], tfds.features.Tensor) and np.issubdtype(dtype, np.floating) and None not in shape:
            return "x", tuple(shape), "points"
    raise DataError(f"got {name} with {', '.join(features)}, expected an image, or a float feature 'x' of fixed shape")


def _fields(builder: Any, fields: Sequence[str] | Fields | None) -> Fields:
    features = builder.info.features
    if fields is None:
        fields = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    if isinstance(fields, str):
        fields = [fields]
    if missing := [k for k in fields if k not in features]:
        raise DataError(f"got field {missing[0]!r}, expected features of {builder.name}: {', '.join(features)}")
    asked = fields if isinstance(fields, dict) else {}
    specs = {k: _field(builder, k, asked.get(k)) for k in fields}
    if differing := [k for k in asked if specs[k] != asked[k]]:
        k = differing[0]
        raise DataError(
            f"got {k}={asked[k]}, but {builder.name} has {specs[k]}: use the data that the spec was made for"
        )
    return specs


def _field(builder: Any, name: str, asked: Field | None) -> Field:
    feature = builder.info.features[name]
    shape, dtype = feature.shape, feature.np_dtype
    if isinstance(feature, tfds.features.ClassLabel):
        return Label(tuple(feature.names))
    if isinstance(feature, tfds.features.Text):
        if isinstance(asked, Tokens):
            return asked
        stated = _vocabulary(builder, name)
        if stated is None:
            raise DataError(
                f"got the text {name!r} of {builder.name}, which states no vocabulary: "
                f"pass fields={{{name!r}: vocabulary(texts)}}"
            )
        return stated
    if isinstance(feature, tfds.features.Tensor) and np.issubdtype(dtype, np.floating) and None not in shape:
        if shape == ():
            return Vector(1)
        if len(shape) == 1:
            return Vector(shape[0])
    raise DataError(f"got field {name!r}, {feature}, expected a class label, a text, or floats of shape () or (k,)")


def _pixels(file: bytes, shape: Any, image_size: int | None, where: str) -> np.ndarray:
    """One image of a batch."""
    try:
        return pixels.decode(file, shape, resize=image_size is not None)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _vocabulary(builder: Any, name: str) -> Tokens | None:
    """What the metadata of a set state of a text, if they do."""
    with reading(builder):
        stated = (builder.info.metadata or {}).get(name)
        if stated is None:
            return None
        length, words = stated["length"], stated["words"]
        if not (fits(length, int) and 0 <= length < 2**16 and fits(words, Sequence[str])):
            raise ValueError(f"metadata.json states no vocabulary of {name!r}")
        return Tokens(length, tuple(words))


def _column(field: Field, name: str, rows: list[Any]) -> np.ndarray:
    """One field of a batch."""
    if isinstance(field, Vector):
        return np.asarray(rows, np.float32).reshape(-1, field.size)
    if isinstance(field, Tokens):
        return np.stack([tokens.encode(text.decode(), field) for text in rows])
    labels = np.asarray(rows, np.int32)
    if (labels < 0).any():
        raise DataError(f"got examples without {name!r}, expected a label for each: choose another split or fields=()")
    if (labels >= len(field.values)).any():
        raise DataError(f"got {name}={labels.max()}, expected labels below {len(field.values)}: prepare the data again")
    return labels


def _source(builder: Any, name: str, split: str) -> Any:
    """Random access to the serialized records of a split."""
    with reading(builder):  # the names and lengths of files are in dataset_info.json
        for each in builder.info.splits.values():
            _ = each.filenames
    try:
        size = builder.info.splits[split].num_examples
    except Exception as error:  # ValueError for most; what the notation does not know ends in others
        splits = ", ".join(builder.info.splits)
        raise DataError(
            f"got split {split!r} of {name}, expected {splits}, or a slice such as 'train[:90%]'"
        ) from error
    if size == 0:
        raise DataError(f"got split {split!r} of {name}, which is empty: choose a larger slice")
    with reading(builder):
        return builder.as_data_source(
            split, file_format="array_record", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
