"""The known part of the example: the pixels around a hole, the columns of a table that were measured."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.errors import UserError, hint, listed
from flowguide.schema import files
from flowguide.schema.examples import Examples, Records, Vectors, examples_from_json, examples_to_json
from flowguide.schema.fields.aligned import check_array, random_array
from flowguide.schema.fields.field import Column, Field
from flowguide.typing import Array, PRNGKey


class Known(NamedTuple):
    """A field with the known entries of the example, float32 ``(B, *shape)``; NaN marks the unknown ones.

    Data sets do not store it. Training draws a random part of each example (``part``), so one model learns to complete
    any part from any other. The network concatenates the known values, and where they are, with x.

    Attributes:
      array: the kind of example.
    """

    array: Examples

    kind = "known"
    dtype = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of a table, if the examples have them."""
        return self.array.names if isinstance(self.array, Vectors | Records) and len(self.shape) == 1 else ()

    @property
    def takes(self) -> str:
        if isinstance(self.array, Records):
            return f"name:value; name:value of {listed(self.names, 5)}, or an array with NaN where unknown"
        if len(self.shape) == 1:
            by_name = f" or name:number; name:number of {listed(self.names, 5)}," if self.names else ""
            return f"{self.shape[0]} numbers, ? for those unknown,{by_name} or an array with NaN where unknown"
        return f"{files.takes(self.array)}, transparent where unknown, or an array {self.shape} with NaN there"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Known | None:
        return None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Known:
        return cls(examples_from_json(content["array"]))

    def to_json(self) -> dict[str, Any]:
        return {"array": examples_to_json(self.array)}

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        return np.asarray(rows, np.float32).reshape(-1, *self.shape)

    def parse(self, name: str, text: str) -> np.ndarray:
        if len(self.shape) > 1:
            values, alpha = files.read(name, text, self.array)
            hidden = np.zeros(values.shape, bool) if alpha is None else np.broadcast_to(alpha == 0, values.shape)
            found: Any = np.where(hidden, np.nan, values.astype(np.float32))
            self.check(name, found)
            return found
        found = parse_row(f"field {name!r}", text, self)
        self.check(name, found)
        return found

    def check(self, name: str, values: np.ndarray) -> None:
        if isinstance(self.array, Records):
            self.array.check(values)
        check_array(name, np.where(np.isnan(values), 0.0, values), self.array, self.takes)

    def text(self, value: np.ndarray) -> str | None:
        if len(self.shape) > 1:
            return None
        if self.names:
            shown = self.array.text if isinstance(self.array, Records) else lambda _, number: f"{number:g}"
            pairs = zip(self.names, value.tolist(), strict=True)
            return "; ".join(f"{name}:{shown(name, number)}" for name, number in pairs if number == number)
        return " ".join("?" if number != number else f"{number:g}" for number in value.tolist())

    def mirrored(self, values: Any) -> Any:
        return self.array.mirrored(values)

    def random(self, key: PRNGKey, num: int) -> Array:
        return self.part(jax.random.split(key, num), self.array.to_model(random_array(key, num, self.array)))

    def part(self, keys: PRNGKey, x1: Array) -> Array:
        """Returns values of this field for training: a random part of each example.

        Half of the parts are single entries (whole pixels), each known with a probability that is itself uniform, so
        that every share is equally likely. If the example has spatial axes, the other half are boxes, or all but a box,
        whose extent along each axis is random or, with probability ½, everything.

        Args:
          keys: typed keys ``(B,)``.
          x1: examples as the network sees them, ``(B, *shape)``.
        """
        stored = jnp.asarray(self.array.to_output(x1)).astype(jnp.float32)
        known = jax.vmap(lambda key: _random_part(key, self.shape))(keys)
        return jnp.where(known, stored, jnp.nan)


def parse_row(what: str, text: str, field: Known) -> np.ndarray:
    """Returns the known numbers of a row, ``field.shape``, NaN elsewhere: "alcohol:13.2; ash:2.4" or "13.2 ? 2.4".

    Args:
      what: takes them, for messages.
      text: as in a prompt.
      field: of examples of one axis.

    Raises:
      UserError: for unknown columns, and what is no number.
    """
    words = _by_column(what, text, field.names) if ":" in text else dict(enumerate(text.split()))
    if ":" not in text and (len(words) != math.prod(field.shape) or isinstance(field.array, Records)):
        raise UserError(f"{what} takes {field.takes}; got {text!r:.100}")
    found: Any = np.full(field.shape, np.nan, np.float32)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        for place, word in words.items():
            found[place] = _entry(what, word, field.names[place] if field.names else "", field)
    return found


def _entry(what: str, word: str, column: str, field: Known) -> float:
    if isinstance(field.array, Records):
        return field.array.parse(column, word)
    try:
        return np.nan if word == "?" else float(word)
    except ValueError:
        got = f"{column}:{word}" if column else word
        raise UserError(f"{what} takes {field.takes}; got {got!r:.100}") from None


def _by_column(what: str, text: str, names: tuple[str, ...]) -> dict[int, str]:
    # A semicolon starts a new column only if a colon follows, so that names of classes may have semicolons.
    pairs = [_split(pair, names) for pair in re.split(r";(?=[^;:]*:)", text)]
    words = dict(pairs)
    if unknown := [key for key in words if key not in names]:
        near, known = hint(unknown[0], names), listed(names) or "none"
        raise UserError(f"{what} has no column {unknown[0]!r:.100}{near}: there are {known}")
    if len(words) < len(pairs):
        raise UserError(f"{what} got a column twice in {text!r:.100}: give it once")
    return {names.index(key): word for key, word in words.items()}


def _split(pair: str, names: tuple[str, ...]) -> tuple[str, str]:
    """Returns the column and the value of "column:value", of which each may have colons of its own."""
    ends = [i for i, letter in enumerate(pair) if letter == ":"]
    end = next((i for i in reversed(ends) if pair[:i].strip() in names), pair.rfind(":"))
    return pair[: max(end, 0)].strip(), pair[end + 1 :].strip()


def _random_part(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Returns which entries of an example are known, bool, broadcastable to ``shape``."""
    entries = shape if len(shape) == 1 else (*shape[:-1], 1)
    scatter_key, rate_key, box_key, kind_key = jax.random.split(key, 4)
    rate = jax.random.uniform(rate_key)
    scattered = (jax.random.uniform(scatter_key, (math.prod(entries),)) < rate).reshape(entries)
    if len(shape) == 1:
        return scattered
    inside = jnp.ones(entries, bool)
    for axis, side in enumerate(shape[:-1]):
        ends_key, whole_key = jax.random.split(jax.random.fold_in(box_key, axis))
        first, last = jnp.sort(jax.random.uniform(ends_key, (2,), maxval=side))
        whole = jax.random.bernoulli(whole_key)
        place = jnp.arange(side).reshape(-1, *(1,) * (len(shape) - 1 - axis)) + 0.5
        inside &= whole | ((place >= first) & (place < last))
    scatters, inverts = jax.random.bernoulli(kind_key, 0.5, (2,))
    return jnp.where(scatters, scattered, inside ^ inverts)
