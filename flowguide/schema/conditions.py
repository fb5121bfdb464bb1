"""Converts a condition in any form that a user may give to the condition of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from flowguide.condition import Condition
from flowguide.errors import UserError, listed, shown
from flowguide.schema import prompts
from flowguide.schema.arrays import as_array
from flowguide.schema.fields import Field, Fields, blank, value

# A prompt, a label, values by field, an array of the values of the one field; or a list of such, one a sample.
Cond: TypeAlias = str | int | Mapping[str, Any] | np.ndarray | jax.Array | Sequence[Any] | Condition

_FORMS = (
    'a prompt "hat=red", a label, an array of labels, a dict {"hat": value or array}, a list of such, or a Condition'
)


def conditions(cond: Cond, fields: Fields, num: int) -> Condition:
    """Returns the condition of ``num`` samples, as NumPy arrays (a ``Condition`` is returned with the arrays it has).

    Args:
      cond: the same for all samples: a prompt, a label, or a dict of values by field. One for each sample: a list of
        these, arrays ``(num, ...)`` in the dict, an array of values of the only field, or a Condition. Fields that
        are not named are ∅.
      fields: of the data.
      num: number of samples.

    Raises:
      UserError: for an unknown field or value, a wrong number of conditions, or an object that is no condition.
    """
    if isinstance(cond, Condition):
        return _ready(cond, fields, num)
    if isinstance(cond, str):
        return prompts.condition([cond] * num, fields)
    if not isinstance(cond, Sequence):
        return _by_field(_named(cond, fields), fields, num)
    if len(cond) != num:
        raise UserError(f"got {len(cond)} conditions for {num} samples: give one for all, or one for each")
    rows = [conditions(each, fields, 1) for each in cond]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def negative_list(negative: Cond | None) -> tuple[Cond, ...]:
    """Returns the negative conditions as a tuple, from one condition or a list of them."""
    if negative is None:
        return ()
    if isinstance(negative, str | Condition) or not isinstance(negative, Sequence):
        return (negative,)
    return tuple(negative)


def sample_count(cond: Cond, num: int | None, default: int, fields: Fields) -> int:
    """Returns ``num``; if it is None, one sample for each condition, or ``default`` for a single prompt."""
    if num is not None:
        return num
    if isinstance(cond, Condition):
        return _batch(cond) or default
    if isinstance(cond, Sequence):
        return default if isinstance(cond, str) else len(cond)
    named = {name: a for name, a in _named(cond, fields).items() if name in fields}
    lengths = [len(a) for name, a in named.items() if _one_each(_with_last_axis(a, fields[name]), fields[name])]
    return max(lengths, default=default)


def rows(values: Mapping[str, Any], fields: Fields) -> tuple[dict[str, Any], ...]:
    """Returns one dict of values by field for each row of those that have rows; the others are the same in all.

    Raises:
      UserError: as ``conditions``, and if there is no row.
    """
    count = sample_count(values, None, 0, fields) or 1
    conditions(values, fields, count)
    values = {name: _with_last_axis(a, fields[name]) for name, a in values.items()}
    return tuple({n: a[i] if _one_each(a, fields[n]) else a for n, a in values.items()} for i in range(count))


def _named(cond: Any, fields: Fields) -> Mapping[str, Any]:
    """Returns values by field; anything but a dict is the value of the only field."""
    if isinstance(cond, Mapping):
        return cond
    if not isinstance(cond, int | float | np.generic | np.ndarray | jax.Array):
        raise UserError(f"got {shown(cond)}, expected {_FORMS}")
    if len(fields) != 1:
        raise UserError(f"got {shown(cond)}, and {_there_are(fields)}: say which, as a prompt or a dict")
    return dict.fromkeys(fields, cond)


def _with_last_axis(given: Any, field: Field) -> Any:
    """Returns an array with the last axis that may be left out: of pictures ``(..., H, W)``, of numbers () or (N,)."""
    shape = field.shape
    if shape[-1:] != (1,) or isinstance(given, str | Mapping):
        return given
    try:
        got = np.shape(given)
    except ValueError:  # lists of different lengths
        return given
    if len(shape) == 1:
        left_out = len(got) < 2 and got != shape
    else:
        left_out = got[-len(shape) :] != shape and got[1 - len(shape) :] == shape[:-1]
    return np.asarray(given)[..., None] if left_out else given


def _one_each(given: Any, field: Field) -> bool:
    """Whether a value in a dict has one entry for each sample, rather than one for all."""
    try:
        return not isinstance(given, str) and np.ndim(given) == len(field.shape) + 1
    except ValueError:  # lists of different lengths
        return False


def _by_field(given: Mapping[str, Any], fields: Fields, num: int) -> Condition:
    for name in given:
        prompts.check_name(name, fields)
    values = {name: np.broadcast_to(blank(f), (num, *f.shape)) for name, f in fields.items()}
    present = {name: np.full(num, name in given) for name in fields}
    for name, asked in given.items():
        asked = _with_last_axis(asked, fields[name])
        values[name] = _column(name, asked, fields[name], num)
    return Condition(values, present)


def _column(name: str, asked: Any, field: Field, num: int) -> np.ndarray:
    """Returns the values of a field ``(num, ...)``."""
    if _one_each(asked, field):
        rows = [value(name, each, field) for each in as_array(name, asked)]
    else:
        rows = [value(name, asked, field)] * num
    if len(rows) != num:
        raise UserError(f"got {len(rows)} values of {name!r} for {num} samples: give one for all, or one for each")
    return np.stack(rows)


def _ready(c: Condition, fields: Fields, num: int) -> Condition:
    """Returns a Condition after checking its fields, shapes and values."""
    if len(fields) == 1 and not isinstance(c.value, Mapping):
        (name,) = fields
        c = Condition({name: c.value}, {name: c.present})
    if not isinstance(c.value, Mapping) or not isinstance(c.present, Mapping) or set(c.value) != set(c.present):
        raise UserError(f"a Condition has a value and a presence by field, and {_there_are(fields)}; got {shown(c)}")
    if set(c.value) != set(fields):
        raise UserError(f"got a Condition of {listed(c.value) or 'no fields'}, and {_there_are(fields)}")
    if fields and _batch(c) != num:
        raise UserError(f"got {_batch(c)} conditions for {num} samples: give one for all, or one for each")
    for name, field in fields.items():
        expected, got = (num, *field.shape), np.shape(c.value[name])
        if got != expected or np.shape(c.present[name]) != (num,):
            raise UserError(f"the values of {name!r} must have shape {expected} and their presence {(num,)}; got {got}")
        field.check(name, np.asarray(c.value[name])[np.asarray(c.present[name])])
    return c


def _batch(c: Condition) -> int:
    """Returns the batch size; 0 without fields."""
    leaves = jax.tree.leaves(c.present)
    return len(leaves[0]) if leaves and np.ndim(leaves[0]) else 0


def _there_are(fields: Fields) -> str:
    return f"the data have the fields {listed(fields)}" if fields else "the data have no fields"
