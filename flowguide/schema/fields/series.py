"""Sequences of vectors: embedded text, a time series of another length than the example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide.errors import UserError
from flowguide.schema import files
from flowguide.schema.examples import Vectors
from flowguide.schema.fields.field import Column, Field, check_setting
from flowguide.schema.standard import check_standard, restored
from flowguide.typing import Array, PRNGKey


class Series(NamedTuple):
    """A field with a sequence of vectors, float32 ``(B, length, size)``, which attention reads standardised.

    Rows of NaN pad a shorter sequence.

    Attributes:
      length: of the longest sequence.
      size: of each vector.
      mean: of each entry of the vectors, subtracted; empty for zeros.
      scale: of each entry, divided by; empty for ones.
    """

    length: int
    size: int
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    kind = "series"
    dtype = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, self.size)

    @property
    def takes(self) -> str:
        return f"a file .npy or an array {self.shape}; rows of NaN pad a shorter one"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Series | None:
        return known if isinstance(known, Series) and column.shape == known.shape else None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Series:
        field = cls(**content)
        check_setting("length", field.length)
        check_setting("size", field.size)
        check_standard(field.size, field.mean, field.scale)
        return field

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value}

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        return np.asarray(rows, np.float32).reshape(-1, *self.shape)

    def parse(self, name: str, text: str) -> np.ndarray:
        found = files.read(name, text, Vectors(self.shape))[0]
        self.check(name, found)
        return found

    def check(self, name: str, values: np.ndarray) -> None:
        padded = np.isnan(values).all(axis=-1)
        shown = ~padded
        if np.isinf(values).any() or np.isnan(values[shown]).any() or (np.diff(shown.astype(int), axis=-1) > 0).any():
            raise UserError(f"field {name!r} takes {self.takes}; got NaN or infinity in between")

    def text(self, value: np.ndarray) -> str | None:
        return None

    def mirrored(self, values: Any) -> Any:
        return values

    def random(self, key: PRNGKey, num: int) -> Array:
        return restored(jax.random.normal(key, (num, *self.shape)), self.mean, self.scale)
