"""Class labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide.errors import DataError
from flowguide.schema.fields.field import Column, Field, check_index, check_setting, unknown_value
from flowguide.typing import Array, PRNGKey


class Label(NamedTuple):
    """A field with one of ``len(values)`` classes; examples hold its index, int32 ``(B,)``."""

    values: tuple[str, ...]

    kind = "label"
    dtype = np.int32

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def takes(self) -> str:
        return f"a name or a number from 0 to {len(self.values) - 1}"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Label | None:
        return None if column.classes is None else cls(column.classes)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Label:
        field = cls(**content)
        check_setting("values", field.values, texts=True)
        return field

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        labels = np.asarray(rows, np.int32)
        if (labels < 0).any():
            raise DataError(
                f"got examples without {name!r}, expected a label for each: choose another split or fields=()"
            )
        if (labels >= len(self.values)).any():
            raise DataError(
                f"got {name}={labels.max()}, expected labels below {len(self.values)}: prepare the data again"
            )
        return labels

    def parse(self, name: str, text: str) -> np.ndarray:
        if text in self.values:
            return np.array(self.values.index(text), np.int32)
        # Python refuses to convert thousands of digits, and no label has ten.
        if text.isdecimal() and len(text) < 10 and int(text) < len(self.values):
            return np.array(int(text), np.int32)
        raise unknown_value(name, text, self.values)

    def check(self, name: str, values: np.ndarray) -> None:
        check_index(name, self, values, len(self.values))

    def text(self, value: np.ndarray) -> str | None:
        return self.values[int(value)]

    def mirrored(self, values: Any) -> Any:
        return values

    def random(self, key: PRNGKey, num: int) -> Array:
        return jax.random.randint(key, (num,), 0, len(self.values))
