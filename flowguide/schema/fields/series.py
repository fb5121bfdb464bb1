"""Sequences of vectors: embedded texts, a time series of another length than the example."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide.errors import UserError
from flowguide.schema import encoders, files
from flowguide.schema.examples import Vectors
from flowguide.schema.fields.field import Column, Field, check_setting
from flowguide.schema.standard import check_standard, restored
from flowguide.typing import Array, PRNGKey


class Series(NamedTuple):
    """A field with a sequence of vectors, float32 ``(B, length, size)``, which attention reads standardised.

    Rows of NaN pad a shorter sequence. With ``encoder`` they are the embeddings of a text, float16: a prompt may be a
    text.

    Attributes:
      length: of the longest sequence.
      size: of each vector.
      mean: of each entry of the vectors, subtracted; empty for zeros.
      scale: of each entry, divided by; empty for ones.
      encoder: how a text becomes vectors, see ``schema.encoders``; empty if no text does.
    """

    length: int
    size: int
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    encoder: str = ""

    kind = "series"

    @property
    def dtype(self) -> Any:
        return np.float16 if self.encoder else np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, self.size)

    @property
    def takes(self) -> str:
        return f"{'a text, ' * bool(self.encoder)}a file .npy or an array {self.shape}; rows of NaN pad a shorter one"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Series | None:
        return known if isinstance(known, Series) and column.shape == known.shape else None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Series:
        field = cls(**content)
        check_setting("length", field.length)
        check_setting("size", field.size)
        check_standard(field.size, field.mean, field.scale)
        if field.encoder != "":
            encoders.check_encoder(field.encoder)
        return field

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value}

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        return np.asarray(rows, self.dtype).reshape(-1, *self.shape)

    def parse(self, name: str, text: str) -> np.ndarray:
        is_text = self.encoder and not text.endswith(".npy")
        found = self._embedded(name, text) if is_text else files.read(name, text, Vectors(self.shape))[0]
        self.check(name, found)
        return found.astype(self.dtype)

    def _embedded(self, name: str, text: str) -> np.ndarray:
        """Returns the vectors of a text, float32 ``(length, size)``."""
        vectors, is_cut = _encoded(self.encoder, text, self.length)
        if is_cut:
            raise UserError(
                f"field {name!r} takes texts of at most {self.length} vectors; {self.encoder} gives more for "
                f"{text!r:.100}: shorten it"
            )
        if vectors.shape[1] != self.size:
            raise UserError(
                f"field {name!r} takes vectors of {self.size} numbers; {self.encoder} gives {vectors.shape[1]}: use "
                "the version of it that embedded the training data"
            )
        return encoders.padded([vectors], self.shape, np.float32)[0]

    def check(self, name: str, values: np.ndarray) -> None:
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            values = values.astype(self.dtype)
        padded = np.isnan(values).all(axis=-1)
        shown = ~padded
        if np.isinf(values).any() or np.isnan(values[shown]).any() or (np.diff(shown.astype(int), axis=-1) > 0).any():
            raise UserError(f"field {name!r} takes {self.takes}; got NaN or infinity in between")

    def text(self, value: np.ndarray) -> str | None:
        return None

    def mirrored(self, values: Any) -> Any:
        return values

    def random(self, key: PRNGKey, num: int) -> Array:
        return restored(jax.random.normal(key, (num, *self.shape)), self.mean, self.scale).astype(self.dtype)


@functools.lru_cache(maxsize=1024)
def _encoded(encoder: str, text: str, length: int) -> tuple[np.ndarray, bool]:
    """Returns the vectors of a prompt, of which commands and batches parse each several times; and if it was cut."""
    vectors, cut = encoders.encode(encoder, [text], length)
    return vectors[0], cut[0]
