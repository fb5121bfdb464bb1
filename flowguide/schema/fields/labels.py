"""Several classes at once: tags, attributes, genres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide.errors import UserError
from flowguide.schema.fields.field import Column, Field, check_setting, unknown_value
from flowguide.typing import Array, PRNGKey

SEPARATOR = "|"  # between the classes of a text, as in "action|comedy"


class Labels(NamedTuple):
    """A field with any number of ``len(values)`` classes; examples hold whether each applies, bool ``(B, K)``."""

    values: tuple[str, ...]

    kind = "labels"
    dtype = np.bool_

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.values),)

    @property
    def takes(self) -> str:
        return f"names with {SEPARATOR} between them, or {len(self.values)} times True or False"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Labels | None:
        if isinstance(known, Labels) and column.shape == known.shape:
            return known
        if column.dtype != np.bool_ or len(column.shape) != 1 or column.shape[0] is None:
            return None
        return cls(column.classes or tuple(map(str, range(column.shape[0]))))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Labels:
        field = cls(**content)
        check_setting("values", field.values, texts=True)
        return field

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        return np.stack([self.parse(name, row) if isinstance(row, str) else np.asarray(row, bool) for row in rows])

    def parse(self, name: str, text: str) -> np.ndarray:
        asked = names_in(text)
        if unknown := [one for one in asked if one not in self.values]:
            raise unknown_value(name, unknown[0], self.values)
        return np.isin(self.values, asked)

    def check(self, name: str, values: np.ndarray) -> None:
        if not np.isin(values, (0, 1)).all():
            raise UserError(f"field {name!r} takes {self.takes}; got {values}")

    def text(self, value: np.ndarray) -> str | None:
        return SEPARATOR.join(np.array(self.values)[np.asarray(value)].tolist())

    def mirrored(self, values: Any) -> Any:
        return values

    def random(self, key: PRNGKey, num: int) -> Array:
        return jax.random.bernoulli(key, 0.5, (num, *self.shape))


def names_in(text: str) -> list[str]:
    """Returns the names in a text such as "action|comedy"."""
    return [name for name in map(str.strip, text.split(SEPARATOR)) if name]
