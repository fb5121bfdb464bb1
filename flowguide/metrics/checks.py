"""What every comparison of two feature sets asks of its arguments."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flowguide.errors import UserError


def feature_sets(
    metric: str, reference: ArrayLike, samples: ArrayLike, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets as arrays ``(N, F)`` and ``(M, F)`` of their own dtype, without a copy of arrays.

    Raises:
      UserError: if a set is not ``(N, F)``, the sets differ in F, one has fewer than ``least`` rows, or a number is not
        finite.
    """
    x, y = np.asarray(reference), np.asarray(samples)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.shape[1]:
        raise UserError(f"{metric} compares features (N, F) and (M, F) of the same F > 0; got {x.shape} and {y.shape}")
    if min(len(x), len(y)) < least:
        raise UserError(f"{metric} needs at least {least} rows in each set; got {len(x)} and {len(y)}: add examples")
    for name, a in (("reference", x), ("samples", y)):
        if not np.isfinite(a).all():
            raise UserError(
                f"{metric} compares finite features; got nan or infinity in the {name}: leave those rows out"
            )
    return x, y


def probabilities(metric: str, values: ArrayLike) -> np.ndarray:
    """Returns class probabilities as an array ``(N, K)``, N > 0, of their own dtype.

    Raises:
      UserError: if they are not ``(N, K)``, or a row is not a distribution to 1e-3.
    """
    p = np.asarray(values)
    if p.ndim != 2 or not p.size:
        raise UserError(f"{metric} takes class probabilities (N, K); got {p.shape}")
    sums = p.sum(1, dtype=np.float64)
    if not (np.abs(sums - 1) < 1e-3).all() or not (p >= 0).all():  # a nan fails both
        row = int(np.argmax(~(np.abs(sums - 1) < 1e-3) | ~(p >= 0).all(1)))
        raise UserError(
            f"{metric} takes rows that are ≥ 0 and sum to 1; got the sum {sums[row]:g} in row {row}: softmax?"
        )
    return p
