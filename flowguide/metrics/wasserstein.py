"""The sliced Wasserstein distance of two sets of vectors. Float64 NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flowguide.errors import UserError
from flowguide.metrics.checks import feature_sets


def sliced_wasserstein(
    reference: ArrayLike, samples: ArrayLike, *, power: float = 1, directions: int = 256, seed: int = 0
) -> float:
    """Returns (mean over directions of W_pᵖ)^(1/p), p = ``power`` (Bonneel et al. 2015, J. Math. Imaging Vis. 51).

    W_p of two projections is exact, by their quantile functions. Only equal laws have distance 0, and no kernel or
    Gaussian is assumed: it suits vectors of up to some tens of numbers, in their own units. Scale the columns first if
    their units differ. The result for F = 1 is W_p itself.

    Args:
      reference: ``(N, F)``.
      samples: ``(M, F)``.
      power: p ≥ 1.
      directions: number of random directions, uniform on the sphere.
      seed: of the directions.

    Raises:
      UserError: if the sets do not fit together, or p < 1.
    """
    if not power >= 1 or directions < 1:
        raise UserError(f"sliced_wasserstein needs power ≥ 1 and directions ≥ 1; got {power} and {directions}")
    x, y = (a.astype(np.float64) for a in feature_sets("sliced_wasserstein", reference, samples))
    axes = np.random.default_rng(seed).normal(size=(x.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    # Both quantile functions are constant between levels i/N and j/M; in units of 1/(NM) the levels are integers.
    levels = np.union1d(np.arange(len(x)) * len(y), np.arange(len(y)) * len(x))
    widths = np.diff(levels, append=len(x) * len(y)) / (len(x) * len(y))
    gaps = np.sort(x @ axes, 0)[levels // len(y)] - np.sort(y @ axes, 0)[levels // len(x)]
    return float((widths @ np.abs(gaps) ** power).mean() ** (1 / power))
