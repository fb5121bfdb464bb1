"""Metrics that count neighbours: precision and recall, density and coverage, authenticity.

Each example of a set owns the ball around it that reaches its k-th neighbour in that set; the balls together stand for
where the set has mass. Distances are Euclidean. They are computed in float64 in blocks of ``block``², so that 50,000
features of length 2,048 take the memory of a few blocks beside their own. Whoever lies on the surface of a ball, to
rounding, is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from flowguide.errors import UserError
from flowguide.metrics.checks import feature_sets

BLOCK = 2048
# Relative to |x|² + |y|², well above the rounding errors of |x − y|² = |x|² + |y|² − 2xᵀy.
ROUNDING = 1e-12


class PrecisionRecall(NamedTuple):
    """Improved precision and recall, from 0 to 1.

    Attributes:
      precision: share of samples in a ball of the reference: are samples realistic?
      recall: share of the reference in a ball of the samples: are all kinds of example sampled?
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density and coverage.

    Attributes:
      density: mean number of the reference's balls around a sample, over k; about 1 for the same law, and more if
        samples crowd where the reference is dense.
      coverage: share of the reference's balls with a sample in them; 1 − 2⁻ᵏ for the same law and N = M large.
    """

    density: float
    coverage: float


class Neighbourhoods(NamedTuple):
    """A reference set with its balls, to be compared with many sets of samples; of ``neighbourhoods``.

    Attributes:
      features: ``(N, F)``.
      squared: squared distances of each row to its k nearest others, the nearest first, float64 ``(N, k)``.
    """

    features: np.ndarray
    squared: np.ndarray


# A reference set, in any form.
Reference: TypeAlias = ArrayLike | Neighbourhoods


def neighbourhoods(reference: ArrayLike, *, k: int = 5, block: int = BLOCK) -> Neighbourhoods:
    """Returns a reference set with its k neighbours, which the metrics otherwise compute anew in every call.

    Args:
      reference: features of real examples ``(N, F)``, N > k.
      k: as many as the metrics need: 3 for ``precision_recall``, 5 for ``density_coverage``, 1 for ``authenticity``.
      block: as in ``precision_recall``.

    Raises:
      UserError: if the set has no more than k rows, or is not a set of features.
    """
    x, _ = _checked("neighbourhoods", reference, reference, k, block)
    return Neighbourhoods(x, _nearest(x, k, block, _centre(x)))


def precision_recall(reference: Reference, samples: ArrayLike, *, k: int = 3, block: int = BLOCK) -> PrecisionRecall:
    """Returns improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, eqs. 1 and 2).

    Both depend on the sizes of the sets: compare numbers at equal N and M. Published ImageNet numbers have N = 10,000,
    M = 50,000 and k = 3.

    Args:
      reference: features of real examples ``(N, F)``, or their ``neighbourhoods``.
      samples: features of samples ``(M, F)``.
      k: the neighbour that a ball reaches.
      block: rows of each set in memory at a time; changes no result.

    Raises:
      UserError: if the sets do not fit together, or have no more than k rows.
    """
    x, y = _checked("precision_recall", reference, samples, k, block)
    centre = _centre(x)
    radii_x, radii_y = _radii(reference, x, k, block), _nearest(y, k, block, centre)[:, -1]
    x_hit, y_hit = np.zeros(len(x), bool), np.zeros(len(y), bool)
    for i, j, lower in _pairs(x, y, block, centre):
        x_hit[i] |= (lower <= radii_y[j]).any(1)
        y_hit[j] |= (lower <= radii_x[i, None]).any(0)
    return PrecisionRecall(float(y_hit.mean()), float(x_hit.mean()))


def density_coverage(reference: Reference, samples: ArrayLike, *, k: int = 5, block: int = BLOCK) -> DensityCoverage:
    """Returns density and coverage (Naeem et al. 2020, arXiv 2002.09797, §3).

    Only the reference has balls, so that an outlier among the samples cannot claim much of the reference as recalled.
    The arguments and errors are those of ``precision_recall``.
    """
    x, y = _checked("density_coverage", reference, samples, k, block)
    centre, radii = _centre(x), _radii(reference, x, k, block)
    total, covered = 0, np.zeros(len(x), bool)
    for i, _, lower in _pairs(x, y, block, centre):
        inside = lower <= radii[i, None]
        total += int(inside.sum())
        covered[i] |= inside.any(1)
    return DensityCoverage(total / (k * len(y)), float(covered.mean()))


def authenticity(train: Reference, samples: ArrayLike, *, block: int = BLOCK) -> float:
    """Returns the share of samples that are not copies of training examples (Alaa et al. 2022, arXiv 2102.08921).

    A sample counts as a copy if it is no further from its nearest training example than that example is from its own
    nearest training example. Copies alone give 0. New draws of the same law do not give 1: compare with
    ``authenticity(train, held_out)``, the value that a model without memory would have.

    Args:
      train: features of the training examples ``(N, F)``, N > 1, or their ``neighbourhoods``.
      samples: features of samples ``(M, F)``.
      block: as in ``precision_recall``.

    Raises:
      UserError: if the sets do not fit together.
    """
    x, y = _checked("authenticity", train, samples, 1, block, least=1)
    centre, radii = _centre(x), _radii(train, x, 1, block)
    distance, nearest = np.full(len(y), np.inf), np.zeros(len(y), int)
    for i, j, lower in _pairs(x, y, block, centre):
        first = lower.argmin(0)
        closest = lower[first, np.arange(lower.shape[1])]
        closer = closest < distance[j]
        distance[j] = np.where(closer, closest, distance[j])
        nearest[j] = np.where(closer, first + i.start, nearest[j])
    return float((distance > radii[nearest]).mean())


def _checked(
    metric: str, reference: Reference, samples: ArrayLike, k: int, block: int, least: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(reference, Neighbourhoods):
        if reference.squared.shape[1] < k:
            had = reference.squared.shape[1]
            raise UserError(f"{metric} needs k={k} neighbours; got neighbourhoods of {had}: give neighbourhoods k={k}")
        reference = reference.features
    if k < 1 or block < 1:
        raise UserError(f"{metric} needs k ≥ 1 and block ≥ 1; got k={k}, block={block}")
    x, y = feature_sets(metric, reference, samples, least or k + 1)
    if len(x) <= k:
        raise UserError(f"{metric} needs more than k={k} rows in the reference; got {len(x)}")
    return x, y


def _centre(x: np.ndarray) -> np.ndarray:
    """The origin at the mean keeps |x|² small, and with it the rounding errors of distances."""
    return x.mean(0, dtype=np.float64)


def _radii(reference: Reference, x: np.ndarray, k: int, block: int) -> np.ndarray:
    """Returns the squared distance of each row of a reference x to its k-th neighbour, float64 ``(N,)``."""
    known = isinstance(reference, Neighbourhoods)
    return (reference.squared if known else _nearest(x, k, block, _centre(x)))[:, k - 1]


def _nearest(x: np.ndarray, k: int, block: int, centre: np.ndarray) -> np.ndarray:
    """Returns the squared distances of each row to its k nearest among the others, increasing, float64 ``(N, k)``."""
    smallest = np.full((len(x), k + 1), np.inf)  # the row itself is one of them

    def see(rows: slice, distances: np.ndarray) -> None:
        both = np.concatenate([smallest[rows], distances], 1)
        smallest[rows] = np.partition(both, k, axis=1)[:, : k + 1]

    for i in _slices(len(x), block):
        rows = _part(x, i, centre)
        for j in _slices(i.stop, block):  # the other half follows by symmetry
            distances = _squared_distances(rows, _part(x, j, centre))
            if i == j:
                np.fill_diagonal(distances, 0)
            else:
                see(j, distances.T)
            see(i, distances)
    return np.sort(smallest, axis=1)[:, 1:]


def _pairs(x: np.ndarray, y: np.ndarray, block: int, centre: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yields (rows of x, rows of y, the lower ends, after rounding, of their squared distances) block by block."""
    for i in _slices(len(x), block):
        rows = _part(x, i, centre)
        for j in _slices(len(y), block):
            yield i, j, _squared_distances(rows, _part(y, j, centre), ROUNDING)


def _squared_distances(a: np.ndarray, b: np.ndarray, less: float = 0.0) -> np.ndarray:
    norms = np.sum(a * a, 1)[:, None] + np.sum(b * b, 1)
    return np.maximum((1 - less) * norms - 2 * (a @ b.T), 0)


def _slices(length: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, length)) for start in range(0, length, block)]


def _part(x: np.ndarray, rows: slice, centre: np.ndarray) -> np.ndarray:
    return x[rows].astype(np.float64) - centre
