"""Arrays in any form in which a user has them: lists, JAX arrays, data frames, tensors."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flowguide.errors import DataError, one_line, shown

_NUMBER = (int, float, np.number, np.bool_)


def as_array(name: str, given: Any) -> np.ndarray:
    """Returns an array of numbers or of texts ``(...)``; numbers that only JAX knows become float32 and int32.

    Raises:
      DataError: if it cannot be one: its rows differ in shape, some entries are missing or masked, or it holds objects.
    """
    if np.ma.is_masked(given):
        raise DataError(f"got {name!r} with masked values: fill them in, or drop their rows")
    if isinstance(given, list | tuple) and len({isinstance(one, str) for one in given}) > 1:
        given = np.asarray([*given, None], object)[:-1]  # NumPy would make texts of what is beside texts
    try:
        a = np.asarray(given)
    except Exception as error:  # rows of different shapes, or whatever ``__array__`` raises: for a tensor on a GPU, say
        reason = "rows of different shapes" if "inhomogeneous" in str(error) else one_line(error)
        raise DataError(f"got {name!r}, which is no array ({reason}): give numbers of one shape, or texts") from error
    if a.dtype.kind == "V" and jax.numpy.issubdtype(a.dtype, np.number):  # bfloat16, int4
        a = a.astype(np.float32 if jax.numpy.issubdtype(a.dtype, np.floating) else np.int32)
    return _of_objects(name, a) if a.dtype == object else a


def _of_objects(name: str, a: np.ndarray) -> np.ndarray:
    """Returns an array of objects that are all texts, or all numbers, in a dtype of its own."""
    values = a.reshape(-1).tolist()
    if a.ndim == 0:
        raise DataError(f"got {name!r}, a {type(values[0]).__name__}: give an array of numbers, or texts")
    kind = str if any(isinstance(value, str) for value in values) else _NUMBER
    odd = [i for i, value in enumerate(values) if not isinstance(value, kind)]
    found = a if odd else np.array(a.tolist())
    if found.dtype == object:  # also of integers beyond 64 bits
        i = odd[0] if odd else int(np.argmax(np.abs(a.reshape(-1))))
        what = f"where row {i * len(a) // a.size} is {shown(values[i], 60)}" if values else "without values"
        raise DataError(f"got {name!r} {what}, expected numbers, or one text each: convert or drop it")
    return found
