"""What every field type provides, so that no other file needs to know which types there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

from flowguide.errors import DataError, UserError, hint, listed, shown
from flowguide.schema.arrays import as_array
from flowguide.typing import Array, PRNGKey


class Column(NamedTuple):
    """A column of stored data, described without any library of data sets. Field types say whether they can hold it.

    Attributes:
      name: of the column.
      dtype: NumPy dtype of a value; None for text.
      shape: of one value; None marks an axis of varying length.
      classes: names of the classes, for class labels.
      vocabulary: the ``Tokens`` field that the data set states for a text.
    """

    name: str
    dtype: Any
    shape: tuple[int | None, ...] = ()
    classes: tuple[str, ...] | None = None
    vocabulary: Field | None = None


class Field(Protocol):
    """One named part of a condition. Implementations are NamedTuples of their settings, such as ``Label(values)``.

    Attributes:
      kind: the word for this type in ``info.json``.
      shape: of one value.
      dtype: of a value.
      takes: what a value may be, in words, for error messages.
    """

    kind: str
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def takes(self) -> str: ...

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Field | None:
        """Returns the field that holds a stored column, or None. ``known`` is the field a trained model has for it."""
        ...

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Field:
        """Rebuilds the field from ``to_json``'s settings; raises ValueError for settings that cannot be."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as JSON, without ``kind``."""
        ...

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        """Converts stored values to an array ``(N, *shape)``; raises DataError for values out of range."""
        ...

    def parse(self, name: str, text: str) -> np.ndarray:
        """Converts the text of a prompt to one value; raises UserError and says what the field takes."""
        ...

    def check(self, name: str, values: np.ndarray) -> None:
        """Raises UserError if any of the numbers ``(..., *shape)`` is no value of this field."""
        ...

    def text(self, value: np.ndarray) -> str | None:
        """Returns one value as a prompt would write it; None for values that prompts leave out."""
        ...

    def mirrored(self, values: Any) -> Any:
        """Returns the values ``(B, *shape)`` that go with examples mirrored left to right. Works inside ``jit``."""
        ...

    def random(self, key: PRNGKey, num: int) -> Array:
        """Draws ``num`` made-up values ``(num, *shape)``."""
        ...


Fields: TypeAlias = Mapping[str, Field]


def blank(field: Field) -> np.ndarray:
    """Returns zeros of one value's shape and dtype, as the value of an absent field."""
    return np.zeros(field.shape, field.dtype)


def spec(field: Field, batch: int) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a batch of values."""
    return jax.ShapeDtypeStruct((batch, *field.shape), field.dtype)


def value(name: str, given: Any, field: Field) -> np.ndarray:
    """Converts one value of a field: text as in a prompt, or a number or array of the field's shape.

    Raises:
      UserError: for an unknown value, a wrong shape, or numbers that are out of range or not finite.
    """
    if isinstance(given, Mapping):  # columns by name
        given = "; ".join(f"{key}:{each}" for key, each in given.items())
    if isinstance(given, str | np.str_):
        return field.parse(name, str(given))
    try:
        a = as_array(name, given)
    except DataError:
        a = np.asarray(None)
    number = np.integer if np.issubdtype(field.dtype, np.integer) else np.number
    is_number = np.issubdtype(a.dtype, number) or (a.dtype == np.bool_ and a.ndim > 0)  # masks are classes 0 and 1
    if a.shape != field.shape or not is_number or np.iscomplexobj(a):
        raise UserError(f"field {name!r} takes {field.takes}; got {shown(given)}")
    field.check(name, a)
    return a.astype(field.dtype)


def check_index(name: str, field: Field, values: np.ndarray, count: int) -> None:
    """Raises UserError unless all values are from 0 to ``count`` - 1."""
    outside = (values < 0) | (values >= count)
    if outside.any():
        raise UserError(f"field {name!r} takes {field.takes}; got {values[outside].flat[0]}")


def unknown_value(name: str, text: str, values: Sequence[str]) -> UserError:
    """Returns the error for a name that is none of the classes ``values`` of a field."""
    return UserError(f"unknown value {text!r:.100} of {name!r}{hint(text, values)}: there are {listed(values)}")


def check_setting(name: str, got: Any, *, texts: bool = False, least: int = 1) -> None:
    """Raises ValueError for a setting in JSON that is not a list of texts, or not a whole number from ``least``."""
    if texts:
        if not (isinstance(got, tuple) and all(isinstance(word, str) for word in got)):
            raise ValueError(f"{name} is {got!r:.60}, not a list of texts")
    elif not (isinstance(got, int) and not isinstance(got, bool) and least <= got < 2**31):
        raise ValueError(f"{name} is {got!r:.60}, not a whole number, below 2^31")
