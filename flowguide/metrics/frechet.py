"""The Fréchet distance between two sets of features, from streamed moments. Float64 NumPy.

Any features work: Inception's give the FID, and those of a ``flowguide.metrics.judge.train_judge`` suit small
images. Distances are comparable only for the same feature function and sample size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Moments(NamedTuple):
    """First and second moments of the vectors so far; merging is associative and commutative.

    Attributes:
      count: number of vectors.
      mean: float64 ``(F,)``.
      scatter: float64 ``(F, F)``, Σ (x − mean)(x − mean)ᵀ.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray


def moments(batches: Iterable[ArrayLike]) -> Moments:
    """Returns the moments of all rows of ``batches``, each ``(n, F)``: ``moments(map(features, batches_of_images))``.

    Raises:
      ValueError: if there is no batch, or one is not finite or has another shape.
    """
    parts = map(_batch_moments, batches)
    first = next(parts, None)
    if first is None:
        raise ValueError("moments needs at least one batch of features (n, F); got none")
    return reduce(merge, parts, first)


def update(seen: Moments, batch: ArrayLike) -> Moments:
    """Returns the moments of ``seen`` and the rows of ``batch``, ``(n, F)``; raises ValueError as ``moments``."""
    return merge(seen, _batch_moments(batch))


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of both sets together (Chan, Golub & LeVeque 1979, eq. 2.1, for vectors).

    Unlike E[xxᵀ] − E[x]E[x]ᵀ this loses no digits when means are large.

    Raises:
      ValueError: if the features differ in length.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"cannot merge moments of features of lengths {len(a.mean)} and {len(b.mean)}")
    count = a.count + b.count
    if count == 0:
        return a
    difference = b.mean - a.mean
    mean = a.mean + difference * (b.count / count)
    scatter = a.scatter + b.scatter + np.outer(difference, difference) * (a.count * b.count / count)
    return Moments(count, mean, scatter)


def combine(own: Moments, total: Callable[[np.ndarray], np.ndarray]) -> Moments:
    """Returns the moments of the vectors of all processes together, in every process. Collective.

    Args:
      own: moments of this process, whose count may be 0.
      total: sums a float64 array over processes, such as ``flowguide.processes.total``.
    """
    count = total(np.asarray(own.count, np.float64))
    mean = total(own.count * own.mean) / max(count, 1)
    shift = own.mean - mean
    return Moments(int(count), mean, total(own.scatter + own.count * np.outer(shift, shift)))


def covariance(m: Moments) -> np.ndarray:
    """Returns the unbiased covariance, float64 ``(F, F)``, which is singular for count ≤ F.

    Raises:
      ValueError: if there are fewer than two vectors.
    """
    if m.count < 2:
        raise ValueError(f"a covariance needs at least 2 vectors; got {m.count}")
    return m.scatter / (m.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns the squared Fréchet distance of two Gaussians with these moments (Heusel et al. 2017, eq. 6).

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), the number reported as FID. With R = Σ^½, the eigenvalues of Σ₁Σ₂ are
    those of the symmetric R₁Σ₂R₁ = (R₂R₁)ᵀ(R₂R₁), so the trace of its root is the sum of the singular values of R₂R₁.
    This takes no root of rounding errors, so singular covariances need no special case.

    The bias falls as 1/count: compare distances only at equal counts.

    Raises:
      ValueError: if either has fewer than two vectors, or the features differ in length.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"cannot compare features of lengths {len(a.mean)} and {len(b.mean)}")
    ca, cb = covariance(a), covariance(b)
    cross = np.linalg.svd(_matrix_sqrt(cb) @ _matrix_sqrt(ca), compute_uv=False).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(ca) + np.trace(cb) - 2 * cross
    return max(float(distance), 0.0)  # rounding can make the distance of equal sets negative


def _matrix_sqrt(c: np.ndarray) -> np.ndarray:
    """Returns the symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(c)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _batch_moments(batch: ArrayLike) -> Moments:
    x = np.asarray(batch, np.float64)
    if x.ndim != 2:
        raise ValueError(f"features must have shape (n, F); got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features must be finite; got nan or infinity")
    if len(x) == 0:
        return Moments(0, np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1])))
    mean = x.mean(0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)
