"""Arrays that lie beside the example: a small image to enlarge, an edge map, another channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide.errors import UserError
from flowguide.schema import files
from flowguide.schema.examples import Examples, Images, Vectors, examples_from_json, examples_to_json
from flowguide.schema.fields.field import Column, Field
from flowguide.typing import Array, PRNGKey


class Aligned(NamedTuple):
    """A field with an array on the same axes as the example, ``(B, *sides, C)``; its sides may be smaller.

    The network concatenates it with x along the channels, after repeating its entries up to the sides of x.

    Attributes:
      array: what the array is, such as ``Images((8, 8, 1))`` or ``Vectors((8, 8, 2), mean, scale)``.
    """

    array: Examples

    kind = "aligned"

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def takes(self) -> str:
        return f"{files.takes(self.array)}, or an array {self.shape}"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Aligned | None:
        shape = tuple(side for side in column.shape if side is not None)
        if column.dtype is None or len(shape) < len(column.shape) or len(shape) < 2:
            return None
        if column.dtype == np.uint8 and len(shape) == 3:
            return cls(Images(shape))
        if not np.issubdtype(column.dtype, np.floating):
            return None
        stored = known.array if isinstance(known, Aligned) and isinstance(known.array, Vectors) else Vectors(shape)
        return cls(stored._replace(shape=shape))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Aligned:
        return cls(examples_from_json(content["array"]))

    def to_json(self) -> dict[str, Any]:
        return {"array": examples_to_json(self.array)}

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        return np.asarray(rows, self.dtype).reshape(-1, *self.shape)

    def parse(self, name: str, text: str) -> np.ndarray:
        found = files.read(name, text, self.array)[0]
        self.check(name, found)
        return found

    def check(self, name: str, values: np.ndarray) -> None:
        check_array(name, values, self.array, self.takes)

    def text(self, value: np.ndarray) -> str | None:
        return None

    def mirrored(self, values: Any) -> Any:
        return values[:, :, ::-1]  # only images are mirrored, so the sides are (H, W) here too

    def random(self, key: PRNGKey, num: int) -> Array:
        return random_array(key, num, self.array)


def check_array(name: str, values: np.ndarray, array: Examples, takes: str) -> None:
    """Raises UserError for numbers that are not finite, or no pixels where the array is an image."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise UserError(f"field {name!r} takes {takes}; got {numbers[~np.isfinite(numbers)][0]} in it")
    if isinstance(array, Images) and ((numbers < 0) | (numbers > 255)).any():
        raise UserError(f"field {name!r} takes {takes} of pixels 0 to 255; got {numbers.min():g} to {numbers.max():g}")


def random_array(key: PRNGKey, num: int, array: Examples) -> Array:
    """Returns made-up arrays ``(num, *shape)`` in the dtype in which they are stored."""
    noise = jax.random.normal(key, (num, *array.model_shape))
    return array.to_output(noise).astype(array.dtype)
