"""A batch of stored examples."""

from __future__ import annotations

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Examples as stored, and their conditions; arrays of NumPy or JAX.

    Attributes:
      x: ``(B, *shape)`` in the dtype of the kind of example: uint8 for images, float32 for vectors.
      value: conditions by field, ``(B, *field.shape)`` each.
      index: int32 ``(B,)``, the place of each example in the global batch, from which training derives its draws; None
        where nothing is drawn.
    """

    x: Any
    value: dict[str, Any]
    index: Any = None
