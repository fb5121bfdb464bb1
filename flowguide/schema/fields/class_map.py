"""Class maps: a class for every place of the example, such as a segmentation or a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.errors import DataError
from flowguide.schema import files
from flowguide.schema.examples import Images
from flowguide.schema.examples.example import check_shape
from flowguide.schema.fields.field import Column, Field, check_index, check_setting
from flowguide.typing import Array, PRNGKey


class ClassMap(NamedTuple):
    """A field with one of ``len(values)`` classes at each place, int32 ``(B, *sides)``; the sides may be smaller.

    The network concatenates it with x as one channel a class, after repeating its entries up to the sides of x.
    """

    shape: tuple[int, ...]
    values: tuple[str, ...]

    kind = "class_map"
    dtype = np.int32

    @property
    def takes(self) -> str:
        return f"an image file whose grey levels are classes, or classes 0 to {len(self.values) - 1} of {self.shape}"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> ClassMap | None:
        return known if isinstance(known, ClassMap) and column.shape == known.shape else None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ClassMap:
        field = cls(**content)
        check_shape(field.shape)
        check_setting("values", field.values, texts=True)
        return field

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        a = np.asarray(rows, np.int32).reshape(-1, *self.shape)
        if (a < 0).any() or (a >= len(self.values)).any():
            raise DataError(f"got {name} from {a.min()} to {a.max()}, expected classes 0 to {len(self.values) - 1}")
        return a

    def parse(self, name: str, text: str) -> np.ndarray:
        found = files.read(name, text, Images((*self.shape, 1)))[0][..., 0].astype(np.int32)
        self.check(name, found)
        return found

    def check(self, name: str, values: np.ndarray) -> None:
        check_index(name, self, values, len(self.values))

    def text(self, value: np.ndarray) -> str | None:
        return None

    def mirrored(self, values: Any) -> Any:
        return values[:, :, ::-1]

    def random(self, key: PRNGKey, num: int) -> Array:
        flat = jax.random.randint(key, (num, math.prod(self.shape)), 0, len(self.values))
        return jnp.reshape(flat, (num, *self.shape))
