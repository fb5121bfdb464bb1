"""TFDS data sets with random access to batches of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow_datasets as tfds

from flowguide.data.imported import Imported, imported, resized
from flowguide.data.preparing import find_builder, prepared_builder, reading
from flowguide.data.readers import READERS, find_examples
from flowguide.errors import DataError, hint, listed
from flowguide.kinds import fits
from flowguide.schema import (
    Batch,
    Column,
    DataInfo,
    Field,
    Fields,
    Tokens,
    blank,
    example_spec,
    field_of_column,
    spec,
    stored,
)

MEMORY_LIMIT = 2**29  # bytes of decoded examples and their fields; the train split of CIFAR-10 takes 154 MB


class Dataset(NamedTuple):
    """One split of a data set.

    Attributes:
      info: what a model must know about the data.
      split: the requested split, ``"train"`` or ``"train[:90%]"``.
      version: TFDS version of the data; of an imported set, that of the file or folder it was imported from.
      size: number of examples in the split, over all processes.
      in_memory: whether the decoded examples are kept in memory.
      read: indices, int ``(B,)`` below ``size`` -> the Batch of these examples.
      unused: features that could be fields, and are not.
      folder: of a prepared set; None for arrays and files.
    """

    info: DataInfo
    split: str
    version: str
    size: int
    in_memory: bool
    read: Callable[[np.ndarray], Batch]
    unused: tuple[str, ...] = ()
    folder: Path | None = None


def open_dataset(
    name: str,
    split: str = "train",
    fields: Sequence[str] | Fields | None = None,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
    """Opens a split of any TFDS data set prepared as array_record; prepares our own sets on first use.

    The examples are the feature "image" (or the only image feature), otherwise the float feature "x".

    Args:
      name: a TFDS name.
      split: a split, or a slice of one in TFDS notation.
      fields: names of the features to condition on; also ``("none",)`` for none. None means every class label, and
        every field of an imported set. A dict of specs by name, such as ``info.fields`` of a trained model, requires
        exactly these specs; a text feature needs a spec, unless the builder's metadata states its vocabulary.
      data_dir: folder of prepared sets; by default ``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
      image_size: side to which the central square of each image is resized, on the host; None for no resizing.
      memory_limit: a split whose decoded examples take at most this many bytes is decoded once and kept in memory.

    Raises:
      DataError: if the set, the split or a field does not exist or cannot be used this way.
    """
    builder = prepared_builder(name, data_dir)
    features, about = builder.info.features, imported(builder)
    key, info = _example_and_info(builder, name, fields, image_size, about)
    examples, reader = info.examples, READERS[info.examples.kind]
    source = _source(builder, name, split)
    size = len(source)
    used: Any = tfds.features.FeaturesDict({k: features[k] for k in (key, *info.fields)})
    decoders = {key: tfds.decode.SkipDecoding()} if reader.still_encoded else None

    def read(indices: np.ndarray) -> Batch:
        with reading(builder):  # array_record opens its files on the first read
            records = source.__getitems__([int(i) for i in indices])
            rows = [used.deserialize_example_np(record, decoders=decoders) for record in records]
        places = [f"example {i} in {builder.data_dir}" for i in indices]
        x = reader.read([row[key] for row in rows], places, examples, image_size)
        fields = stored(info.fields)
        columns = {k: [row[k] for row in rows] for k in fields}
        if about is not None:
            return Batch(x, {k: np.asarray(columns[k], field.dtype) for k, field in fields.items()})
        return Batch(x, {k: field.column(k, columns[k]) for k, field in fields.items()})

    version = str(builder.version) if about is None else about.version
    unused = tuple(k for k in features if k not in (key, *info.fields) and _can_be_field(builder, k, about))
    return held(info, split, version, size, read, memory_limit)._replace(unused=unused, folder=Path(builder.data_path))


def held(
    info: DataInfo, split: str, version: str, size: int, read: Callable[[np.ndarray], Batch], memory_limit: int
) -> Dataset:
    """Returns a data set that keeps its examples and fields in memory if they take at most ``memory_limit`` bytes."""
    if size * example_bytes(info) > memory_limit:
        return Dataset(info, split, version, size, False, read)
    chunks = [read(chunk) for chunk in np.array_split(np.arange(size), -(-size // 1024))]
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
    return Dataset(info, split, version, size, True, lambda i: jax.tree.map(lambda a: a[i], whole))


def example_bytes(info: DataInfo) -> int:
    """Returns the bytes of one decoded example and its fields."""
    specs = [example_spec(info.examples, 1), *(spec(field, 1) for field in stored(info.fields).values())]
    return sum(each.size * each.dtype.itemsize for each in specs)


def open_texts(
    name: str, split: str, feature: str, data_dir: str | Path | None = None
) -> Callable[[np.ndarray], list[str]]:
    """Returns a function from indices, int ``(B,)``, to the texts that a feature of a prepared set has there.

    Captions of an imported set are words of a vocabulary, and come back without capitals and commas.

    Raises:
      DataError: if the set, the split or the feature does not exist, or the feature is neither texts nor classes.
    """
    builder = prepared_builder(name, data_dir)
    features = builder.info.features
    if feature not in features:
        raise DataError(
            f"got field {feature!r}{hint(feature, features)}, expected features of {name}: {listed(features)}"
        )
    about = imported(builder)
    field = None if isinstance(features[feature], tfds.features.Text) else _field(builder, feature, None, about)
    if field is not None and field.text(blank(field)) is None:
        raise DataError(f"got field {feature!r} of {name}, a {field.kind}, expected texts")
    source, used = _source(builder, name, split), tfds.features.FeaturesDict({feature: features[feature]})

    def read(indices: np.ndarray) -> list[str]:
        with reading(builder):
            records = source.__getitems__([int(i) for i in indices])
            rows: list[Any] = [used.deserialize_example_np(record) for record in records]
        found = [row[feature] for row in rows]
        if field is None:
            return [value.decode() if isinstance(value, bytes) else str(value) for value in found]
        values = field.column(feature, found) if about is None else np.asarray(found, field.dtype)
        return [str(field.text(value)) for value in values]

    return read


def describe_dataset(
    name: str,
    fields: Sequence[str] | Fields | None = None,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
) -> DataInfo:
    """Returns the ``DataInfo`` of ``open_dataset``, with the same arguments; the set need not be prepared.

    Raises:
      DataError: if the set or a field is unknown or cannot be used this way.
    """
    builder = find_builder(name, data_dir)
    return _example_and_info(builder, name, fields, image_size, imported(builder))[1]


def _example_and_info(
    builder: Any, name: str, fields: Sequence[str] | Fields | None, image_size: int | None, about: Imported | None
) -> tuple[str, DataInfo]:
    """Returns the feature that holds the examples, and what the data are."""
    if about is None:
        key, examples = find_examples(name, builder.info.features, image_size)
    else:
        about = resized(about, image_size)
        key, examples = about.example, about.info.examples
    return key, DataInfo(name, examples, _fields(builder, fields, about))


def _fields(builder: Any, fields: Sequence[str] | Fields | None, about: Imported | None) -> Fields:
    features = builder.info.features
    if fields is None and about is not None:
        fields = list(about.info.fields)
    elif fields is None:
        fields = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    if isinstance(fields, str):
        fields = [fields]
    if tuple(fields) == ("none",) and "none" not in features:
        fields = ()
    if missing := [k for k in fields if k not in features]:
        raise DataError(f"got field {missing[0]!r}, expected features of {builder.name}: {', '.join(features)}")
    asked = fields if isinstance(fields, Mapping) else {}
    specs = {k: _field(builder, k, asked.get(k), about) for k in fields}
    if differing := [k for k in asked if specs[k] != asked[k]]:
        k = differing[0]
        raise DataError(
            f"got {k}={asked[k]}, but {builder.name} has {specs[k]}: use the data that the spec was made for"
        )
    return specs


def _can_be_field(builder: Any, name: str, about: Imported | None) -> bool:
    try:
        _field(builder, name, None, about)
    except DataError:
        return False
    return True


def _field(builder: Any, name: str, known: Field | None, about: Imported | None) -> Field:
    if about is not None and name in about.info.fields:
        return about.info.fields[name]
    feature: Any = builder.info.features[name]
    if isinstance(feature, tfds.features.Text):
        return field_of_column(Column(name, None, vocabulary=_vocabulary(builder, name)), known)
    if isinstance(feature, tfds.features.ClassLabel):
        return field_of_column(Column(name, feature.np_dtype, classes=tuple(feature.names)), known)
    if isinstance(feature, tfds.features.Tensor):
        shape: Any = feature.shape
        return field_of_column(Column(name, feature.np_dtype, tuple(shape)), known)
    raise DataError(f"got field {name!r}, {feature}, expected a class label, a text, or floats of shape () or (k,)")


def _vocabulary(builder: Any, name: str) -> Tokens | None:
    """Returns the vocabulary of a text feature from the builder's metadata, or None."""
    with reading(builder):
        stated = (builder.info.metadata or {}).get(name)
        if stated is None:
            return None
        length, words = stated["length"], stated["words"]
        if not (fits(length, int) and 0 <= length < 2**16 and fits(words, Sequence[str])):
            raise ValueError(f"metadata.json states no vocabulary of {name!r}")
        return Tokens(length, tuple(words))


def _source(builder: Any, name: str, split: str) -> Any:
    """Returns a random-access source of the serialized records of a split."""
    with reading(builder):  # computes the file names from dataset_info.json, which may be damaged
        for each in builder.info.splits.values():
            _ = each.filenames
    try:
        size = builder.info.splits[split].num_examples
    except Exception as error:  # mostly ValueError; TFDS raises others for malformed slices
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
