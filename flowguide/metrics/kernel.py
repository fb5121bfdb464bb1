"""KID, the kernel distance of two feature sets. Float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowguide.errors import UserError
from flowguide.metrics.checks import feature_sets


class KID(NamedTuple):
    """KID over random subsets.

    Attributes:
      mean: its mean, an unbiased estimate that may be negative if the sets have the same law.
      std: its standard deviation, from subset to subset.
    """

    mean: float
    std: float


def kid(reference: ArrayLike, samples: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> KID:
    """Returns the squared MMD with the kernel (xᵀy/F + 1)³ (Bińkowski et al. 2018, arXiv 1801.01401).

    Unlike the Fréchet distance it is unbiased, so that sets of any size compare. Each subset of ``size`` rows a side,
    drawn without replacement, gives one unbiased estimate (Gretton et al. 2012, eq. 3). The defaults are those of the
    published numbers; the draws are not.

    Args:
      reference: features of real examples ``(N, F)``.
      samples: features of samples ``(M, F)``.
      subsets: number of subsets.
      size: rows of each set in a subset.
      seed: of the subsets.

    Raises:
      UserError: if the sets do not fit together, or have fewer than ``size`` rows.
    """
    if subsets < 1 or size < 2:
        raise UserError(f"kid needs at least 1 subset of at least 2 rows; got subsets={subsets}, size={size}")
    x, y = feature_sets("kid", reference, samples)
    if min(len(x), len(y)) < size:
        raise UserError(f"kid draws subsets of size={size} from each set; got {len(x)} and {len(y)} rows: lower size")
    rng = np.random.default_rng(seed)

    def estimate() -> float:
        a, b = (s[rng.choice(len(s), size, replace=False)].astype(np.float64) for s in (x, y))
        within = sum(k.sum() - np.trace(k) for k in (_kernel(a, a), _kernel(b, b))) / (size * (size - 1))
        return float(within - 2 * _kernel(a, b).mean())

    estimates = [estimate() for _ in range(subsets)]
    return KID(float(np.mean(estimates)), float(np.std(estimates)))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    k = a @ b.T / a.shape[1] + 1
    return k * k * k  # NumPy's power is several times slower
