"""Rows of a table, with columns of numbers and columns of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.errors import UserError, hint, listed
from flowguide.kinds import fits
from flowguide.schema.examples.example import check_shape, mirrored_where
from flowguide.schema.standard import check_standard, restored, standardised
from flowguide.typing import Array, PRNGKey

BOOLEAN = ("False", "True")  # classes of a column of booleans


class Records(NamedTuple):
    """float32 ``(C,)``: a number for each column of a table; for a column of classes, the index of its class.

    The network sees a column of K classes as K numbers, 1 for its class and 0 for the others, and what it draws is the
    class with the largest. All classes are then equally far from each other, whatever their order, and nothing has to
    be learned to encode them. The K numbers are centred and divided by one scale (``moments_of_classes``), with which a
    column of two classes weighs as much as the standardised number. A flow of these numbers has no density of the
    classes: their probabilities are integrals over the regions where one number is the largest (Hoogeboom et al. 2021,
    Argmax flows, bound them).

    Attributes:
      names: of the columns.
      classes: of each column, the names of its classes; empty for a column of numbers.
      mean: of each number that the network sees, subtracted; empty for zeros.
      scale: of each number that the network sees, divided by; empty for ones.
    """

    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    kind = "records"
    dtype = np.float32
    as_pictures = False
    variance = 1.0  # they are standardised

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.names),)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def model_shape(self) -> tuple[int, ...]:
        return (sum(len(classes) or 1 for classes in self.classes),)

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of the columns of classes."""
        return tuple(name for name, classes in zip(self.names, self.classes, strict=True) if classes)

    @property
    def about(self) -> str:
        """What the columns are, in words."""
        numbers = [name for name in self.names if name not in self.discrete]
        each = [f"{name} ({len(c)}: {listed(c, 5)})" for name, c in zip(self.names, self.classes, strict=True) if c]
        of_numbers = f"numbers, whole ones too: {listed(numbers)}; " if numbers else ""
        return f"{of_numbers}classes: {listed(each)}"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Records:
        examples = cls(**content)
        names, classes = examples.names, examples.classes
        if not fits(names, Sequence[str]) or len(set(names)) < len(names) or "" in names:
            raise ValueError(f"names are {names!r:.60}, not different texts")
        if not fits(classes, Sequence[Sequence[str]]) or len(classes) != len(names):
            raise ValueError(f"classes are {classes!r:.60}, not a list of texts for each of {len(names)} columns")
        if odd := [each for each in classes if len(each) == 1 or len(set(each)) < len(each)]:
            raise ValueError(f"classes are {odd[0]!r:.60}, not two different texts or more, or none")
        check_shape(examples.model_shape)
        check_standard(examples.model_shape[0], examples.mean, examples.scale)
        return examples

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) for name, value in self._asdict().items() if value or name in ("names", "classes")}

    def to_model(self, x: Any) -> Array:
        """Converts ``(..., C)``; a NaN, which is an unknown value, is NaN in all numbers of its column."""
        column, code = self._layout()
        spread = jnp.asarray(x).astype(jnp.float32)[..., column]
        seen = jnp.where((code < 0) | jnp.isnan(spread), spread, spread == code)
        return standardised(seen, self.mean, self.scale)

    def draw(self, keys: PRNGKey, x: Any, coins: Array | None = None) -> Array:
        return mirrored_where(coins, self.to_model(x), self.mirrored)

    def to_output(self, x: Any) -> Any:
        x = restored(x, self.mean, self.scale)
        columns = [x[..., at].argmax(axis=-1) if classes else x[..., at.start] for at, classes in self._columns()]
        stack = jnp.stack if isinstance(x, jax.Array) else np.stack
        return stack(columns, axis=-1).astype(np.float32)

    def named(self, x: Any) -> np.ndarray:
        """Converts outputs ``(..., C)`` to a structured array ``(...)`` with a field for each column.

        A field is float32 for numbers, text for classes, and bool for the classes "False" and "True".
        """
        x = np.asarray(x)
        values = [np.array(self._values(classes)) for classes in self.classes]
        kinds = [(name, a.dtype if a.size else np.float32) for name, a in zip(self.names, values, strict=True)]
        found = np.empty(x.shape[:-1], np.dtype(kinds))
        for i, name in enumerate(self.names):
            found[name] = values[i][x[..., i].astype(int)] if values[i].size else x[..., i]
        return found

    def mirrored(self, x: Array) -> Array:
        raise ValueError("flip mirrors images, and these examples are rows of a table: set flip to False")

    def parse(self, column: str, text: str) -> float:
        """Converts the text of one value to its number, or to the index of its class; "?" and "nan" are NaN, unknown.

        Raises:
          UserError: for an unknown class, or no number.
        """
        classes = self.classes[self.names.index(column)]
        if text in classes:
            return classes.index(text)
        if text in ("?", "nan"):
            return np.nan
        if classes:
            raise UserError(
                f"unknown value {text!r:.100} of {column!r}{hint(text, classes)}: there are {listed(classes)}"
            )
        try:
            return float(text)
        except ValueError:
            raise UserError(f"column {column!r} takes a number; got {text!r:.100}") from None

    def text(self, column: str, value: float) -> str:
        """Returns one value as ``parse`` takes it."""
        classes = self.classes[self.names.index(column)]
        return classes[int(value)] if classes else f"{value:g}"

    def check(self, values: np.ndarray) -> None:
        """Raises UserError if one of the values ``(..., C)`` is no index of a class of its column; NaN is allowed."""
        for i, (name, classes) in enumerate(zip(self.names, self.classes, strict=True)):
            a = values[..., i]
            bad = ~np.isnan(a) & ~np.isin(a, np.arange(len(classes)))
            if classes and bad.any():
                raise UserError(
                    f"column {name!r} takes the number of a class, from 0 to {len(classes) - 1}, or its name; got "
                    f"{a[bad].flat[0]:g}"
                )

    @staticmethod
    def _values(classes: tuple[str, ...]) -> tuple[Any, ...]:
        return (False, True) if classes == BOOLEAN else classes

    def _columns(self) -> Iterator[tuple[slice, tuple[str, ...]]]:
        """Yields where each column is in what the network sees, and its classes."""
        start = 0
        for classes in self.classes:
            stop = start + (len(classes) or 1)
            yield slice(start, stop), classes
            start = stop

    def _layout(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each number that the network sees its column, and the class that it stands for, -1 for none."""
        sizes = [len(classes) or 1 for classes in self.classes]
        codes = [np.arange(len(classes)) if classes else [-1] for classes in self.classes]
        return np.repeat(np.arange(len(sizes)), sizes), np.concatenate(codes)
