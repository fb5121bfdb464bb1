"""Continuous vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide.errors import UserError
from flowguide.schema.fields.field import Column, Field, check_setting
from flowguide.schema.standard import check_standard, restored
from flowguide.typing import Array, PRNGKey


class Vector(NamedTuple):
    """A field with a continuous vector, float32 ``(B, size)``, which the network sees standardised.

    Attributes:
      size: number of its entries.
      mean: of each entry, subtracted; empty for zeros.
      scale: of each entry, divided by; empty for ones.
    """

    size: int
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    kind = "vector"
    dtype = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def takes(self) -> str:
        return f"{self.size} finite numbers"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Vector | None:
        if column.dtype is None or not np.issubdtype(column.dtype, np.floating) or None in column.shape:
            return None
        sizes = [size for size in column.shape if size is not None]
        return cls(sizes[0] if sizes else 1) if len(sizes) < 2 else None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Vector:
        field = cls(**content)
        check_setting("size", field.size)
        check_standard(field.size, field.mean, field.scale)
        return field

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value}

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        return np.asarray(rows, np.float32).reshape(-1, self.size)

    def parse(self, name: str, text: str) -> np.ndarray:
        try:
            numbers = _float32([float(word) for word in text.split()])
        except ValueError:
            raise UserError(
                f"field {name!r} takes {self.size} numbers separated by spaces; got {text!r:.100}"
            ) from None
        if numbers.size != self.size or not np.isfinite(numbers).all():
            raise UserError(f"field {name!r} takes {self.takes}; got {text!r:.100}")
        return numbers

    def check(self, name: str, values: np.ndarray) -> None:
        if not np.isfinite(_float32(values)).all():
            raise UserError(f"field {name!r} takes {self.takes}; got {values}")

    def text(self, value: np.ndarray) -> str | None:
        return None

    def mirrored(self, values: Any) -> Any:
        return values

    def random(self, key: PRNGKey, num: int) -> Array:
        return restored(jax.random.normal(key, (num, self.size)), self.mean, self.scale)


def _float32(numbers: Any) -> np.ndarray:
    """Converts numbers to float32; those too large for it become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(numbers).astype(np.float32)
