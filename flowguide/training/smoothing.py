"""Smooths a small set of examples: training adds normal noise to each, of a size that the examples themselves choose.

A network learns a small set by heart: it draws its examples, and gives new ones little density. With noise it learns
the kernel density of the set, as well as it can.
"""

from __future__ import annotations

import jax
import numpy as np
from scipy.special import logsumexp

from flowguide.training.step import Draw
from flowguide.typing import Array, PRNGKey

LARGEST = 2000  # examples; the distances of all pairs are in memory, and a larger set needs little noise
WIDTHS = np.geomspace(0.01, 1.5, 60)


def bandwidth(x: np.ndarray) -> float:
    """Returns the standard deviation of normal noise with which examples explain each other best.

    It maximises the leave-one-out likelihood of a kernel density, Σ_i log Σ_{j≠i} N(x_i; x_j, h²I) (Habbema et al.
    1974; Duin 1976), over ``WIDTHS``. It is 0 if no width does, and if more than a tenth of the examples are copies:
    then their numbers are classes or ratings, which noise would change into others.

    Args:
      x: examples as the network sees them ``(N, ...)``, standardised, N > 1.
    """
    size = len(x)
    x = np.unique(np.asarray(x, np.float64).reshape(size, -1), axis=0)
    if len(x) < max(3, 0.9 * size):
        return 0.0
    norms = np.sum(x * x, axis=1)
    squared = np.maximum(norms[:, None] + norms - 2 * x @ x.T, 0)
    np.fill_diagonal(squared, np.inf)
    d = x.shape[1]
    likelihood = [np.sum(logsumexp(-squared / (2 * h * h), axis=1) - d * np.log(h)) for h in WIDTHS]
    best = int(np.argmax(likelihood))
    return float(WIDTHS[best]) if 0 < best < len(WIDTHS) - 1 else 0.0


def jittered(draw: Draw, std: float) -> Draw:
    """Returns ``draw`` with normal noise of standard deviation ``std`` added to what the network sees."""
    if not std:
        return draw

    def drawn(keys: PRNGKey, x: Array, coins: Array | None) -> Array:
        x1 = draw(keys, x, coins)
        own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 4)
        return x1 + std * jax.vmap(lambda key: jax.random.normal(key, x1.shape[1:]))(own)

    return drawn
