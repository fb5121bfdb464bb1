"""Embeds the texts of a data set once, by any encoder, and writes the set with embeddings in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowguide import storage
from flowguide.data import parts
from flowguide.data.builders import OURS
from flowguide.data.column_checks import check_columns, check_name
from flowguide.data.dataset import Dataset, describe_dataset, open_dataset, open_texts
from flowguide.data.files import by_split, is_path, open_tables, tables_of
from flowguide.data.importing import alone_in, is_written, set_folder, write_set, writing_to
from flowguide.data.preparing import find_builder, prepared_builder
from flowguide.data.tables import Table, check_no_blank, content_hash, rows_of
from flowguide.errors import DataError, listed, shown
from flowguide.hashes import json_hash
from flowguide.schema import Batch, DataInfo, Series, Tokens, encoders, info_to_json
from flowguide.schema.standard import moments_of_parts


class Embedding(NamedTuple):
    """What an embedding did.

    Attributes:
      builder: of the prepared set.
      written: False if the same set was there already.
      cut: number of texts that had more vectors than allowed, whose last ones were left out; None if not written.
    """

    builder: Any
    written: bool
    cut: int | None


class Source(NamedTuple):
    """A split whose texts are embedded.

    Attributes:
      data: the examples and the other fields.
      texts: indices, int ``(B,)`` -> the texts.
    """

    data: Dataset
    texts: Callable[[np.ndarray], list[str]]


def embed(
    source: str | Path,
    name: str,
    data_dir: str | Path | None = None,
    *,
    field: str,
    encoder: str | Callable[[list[str]], Any],
    length: int | None = None,
    batch_size: int = 64,
    example: Sequence[str] = (),
    fields: Sequence[str] | None = None,
    image_size: int | None = None,
    progress: bool = False,
) -> Embedding:
    """Writes a data set as the prepared set ``name``, with one field of texts replaced by their embeddings.

    The field keeps its name and becomes a ``Series`` of float16 vectors, standardised by their mean and standard
    deviation in training. The encoder's name is a part of it, so that prompts can be texts. Splits, examples and other
    fields stay. What has been embedded is kept until the set is complete: the same call resumes.

    Args:
      source: the name of a prepared set, or a file or folder, see ``tables_of``.
      name: of the new set, lower-case letters, digits and _; none that TFDS knows.
      data_dir: folder or bucket of prepared sets; by default that of TFDS.
      field: the feature or column that holds the texts.
      encoder: ``package.module:function``, ``hf:NAME``, or a function of a module, see ``schema.encoders``.
      length: the largest number of vectors of a text; longer ones are cut. None for that of the longest text.
      batch_size: texts that the encoder gets at a time.
      example: as for ``open_path``.
      fields: other fields to keep, as for ``open_path`` or ``open_dataset``.
      image_size: as for ``open_path`` or ``open_dataset``.
      progress: show progress bars.

    Raises:
      UserError: if the data or the encoder cannot be used, ``name`` is taken, or the set cannot be written.
    """
    encoder, folder = encoders.encoder_name(encoder), set_folder(name, data_dir)
    for what, number in (("length", length), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise DataError(f"got {what}={number}, expected 1 or more")
    splits = _opened(source, field, data_dir, example, fields, image_size)
    train, sizes = splits["train"].data, {split: each.data.size for split, each in splits.items()}
    identity = {
        "info": info_to_json(train.info),
        "versions": {split: each.data.version for split, each in splits.items()},
        "sizes": sizes,
        "field": field,
        "encoder": encoder,
        "length": length,
    }
    version = f"{train.version}-{json_hash(identity):08x}"
    place = folder.with_name(f"incomplete.embed_{folder.name}")  # TFDS ignores such folders
    if is_written(name, data_dir, version, source, place):
        return Embedding(find_builder(name, data_dir), False, None)

    def make(split: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        return _embedded(splits[split].texts(rows), encoder, length, batch_size)

    with writing_to(folder, OSError), alone_in(folder.parent):
        parts.compute(place, identity, sizes, make, progress=progress)
    lengths, widths, cuts = zip(*(_about(place, split, size) for split, size in sizes.items()), strict=True)
    if len(found := set().union(*widths)) > 1 or not max(lengths):
        what = f"vectors of {listed(map(str, sorted(found)))} numbers" if max(lengths) else "no vector for any text"
        raise DataError(f"got {what} from {encoder}: mend it, delete {place}, and embed the texts again")
    mean, scale = moments_of_parts(_vectors(place, "train", sizes["train"]))
    series = Series(max(lengths), found.pop(), mean, scale, encoder)
    whole = {split: _with(each.data, split, field, series, place) for split, each in splits.items()}
    with writing_to(folder):
        write_set(name, data_dir, whole, version, progress)
        storage.remove(place)
    return Embedding(find_builder(name, data_dir), True, sum(cuts))


def embed_captions(
    table: Table, info: DataInfo, encoder: str | Callable[[list[str]], Any], batch_size: int = 64
) -> tuple[Table, DataInfo]:
    """Returns a table in memory, and what it is, with its captions as embeddings; classes stay.

    Args:
      table: the rows.
      info: of the table, whose captions are ``Tokens``.
      encoder: as for ``embed``.
      batch_size: texts that the encoder gets at a time.

    Raises:
      UserError: if there are no captions, or the encoder cannot be used.
    """
    name = encoders.encoder_name(encoder)
    captions = [key for key, field in info.fields.items() if isinstance(field, Tokens)]
    if not captions:
        raise DataError(f"got a text encoder for {table.name}, whose conditions are no captions: leave it out")
    columns, fields = dict(table.columns), dict(info.fields)
    for key in captions:
        vectors = _embedded(table.columns[key].tolist(), name, None, batch_size)["vectors"]
        _, length, size = vectors.shape
        if not length:
            raise DataError(f"got no vector for any text of {key!r} from {name}: mend the encoder, or leave {key} out")
        mean, scale = moments_of_parts([vectors[~np.isnan(vectors[..., 0])]])
        columns[key], fields[key] = vectors, Series(length, size, mean, scale, name)
    return table._replace(columns=columns, version=content_hash(columns)), info._replace(fields=fields)


def _opened(
    source: str | Path,
    field: str,
    data_dir: str | Path | None,
    example: Sequence[str],
    fields: Sequence[str] | None,
    image_size: int | None,
) -> dict[str, Source]:
    """Returns the splits of the data without the field."""
    if str(source) not in OURS and is_path(str(source)):
        return _of_path(source, field, example, fields, image_size)
    if example:
        raise DataError(f"example is about files and folders; got the set {source}: leave it out")
    name = str(source)
    splits = list(prepared_builder(name, data_dir).info.splits)
    if "train" not in splits:
        raise DataError(f"got {name} with the splits {listed(splits)}, expected one called train")
    texts = {split: open_texts(name, split, field, data_dir) for split in splits}
    asked = None if fields is None else [k for k in fields if k != field] or ("none",)
    kept = [k for k in describe_dataset(name, asked, data_dir, image_size=image_size).fields if k != field]

    def opened(split: str) -> Dataset:
        return open_dataset(name, split, kept or ("none",), data_dir, image_size=image_size, memory_limit=0)

    return {split: Source(opened(split), read) for split, read in texts.items()}


def _of_path(
    path: str | Path, field: str, example: Sequence[str], fields: Sequence[str] | None, image_size: int | None
) -> dict[str, Source]:
    tables = by_split(tables_of(path, image_size))
    texts = {split: _texts(table, split, field) for split, table in tables.items()}
    others = {k: t._replace(columns={c: a for c, a in t.columns.items() if c != field}) for k, t in tables.items()}
    kept = None if fields is None else tuple(name for name in fields if name != field)
    opened = open_tables(others, example, kept, memory_limit=0)
    return {split: Source(data, texts[split]) for split, data in zip(tables, opened, strict=True)}


def _texts(table: Table, split: str, field: str) -> Callable[[np.ndarray], list[str]]:
    """Returns a function from indices of a split to the texts of a column."""
    check_columns(table, [field])
    check_name(table, field)
    column = table.columns[field]
    if column.dtype.kind != "U":
        raise DataError(f"got {column.dtype} {tuple(column.shape)} in {field!r} of {table.name}, expected texts")
    check_no_blank(table, field, column)
    texts = column[rows_of(table, split)]
    return lambda indices: texts[indices].tolist()


def _embedded(texts: list[str], encoder: str, length: int | None, batch_size: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a part: its vectors float16 ``(n, L, size)``, padded, and what they are."""
    sequences, cut = [], []
    for start in range(0, len(texts), batch_size):
        found = encoders.encode(encoder, texts[start : start + batch_size], length, device="auto")
        sequences, cut = sequences + found.sequences, cut + found.cut
    lengths, sizes = (np.array([a.shape[axis] for a in sequences]) for axis in (0, 1))
    if odd := [i for i, size in enumerate(sizes) if size != sizes[0]]:
        raise DataError(f"got vectors of {sizes[0]} and of {sizes[odd[0]]} numbers from {encoder}: mend it")
    vectors = encoders.padded(sequences, (int(lengths.max()), int(sizes[0])), np.float16)
    if np.isinf(vectors).any():
        row = int(np.argmax(np.isinf(vectors).any(axis=(1, 2))))
        raise DataError(f"got numbers beyond 65,504 from {encoder} for {shown(texts[row])}: give another encoder")
    return {"vectors": vectors, "length": lengths, "size": sizes, "cut": np.array(cut)}


def _about(place: Path, split: str, size: int) -> tuple[int, set[int], int]:
    """Returns the longest sequence of a split, the sizes of its vectors, and how many texts were cut."""
    found = [part for _, part in parts.read(place, split, np.arange(size), "length", "size", "cut")]
    length, width, cut = (np.concatenate([part[name] for part in found]) for name in ("length", "size", "cut"))
    return int(length.max()), set(width.tolist()), int(cut.sum())


def _vectors(place: Path, split: str, size: int) -> Iterator[np.ndarray]:
    """Yields all vectors of a split, without padding, ``(n, size)`` from each part."""
    for _, part in parts.read(place, split, np.arange(size), "vectors"):
        yield part["vectors"][~np.isnan(part["vectors"][..., 0])]


def _with(data: Dataset, split: str, field: str, series: Series, place: Path) -> Dataset:
    """Returns a split with the embeddings of its texts, read from the parts."""

    def read(rows: np.ndarray) -> Batch:
        values = [
            encoders.padded(part["vectors"], series.shape, series.dtype)
            for _, part in parts.read(place, split, rows, "vectors")
        ]
        batch = data.read(rows)
        return batch._replace(value={**batch.value, field: np.concatenate(values)})

    return data._replace(info=data.info._replace(fields={**data.info.fields, field: series}), read=read)
