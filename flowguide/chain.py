"""Discrete variance-preserving chains (DDPM), and the steps of a path that have their noise.

Step k = 0 … N − 1 of a chain has x = α·x1 + σ·x0 with α = √ᾱ_k, σ = √(1 − ᾱ_k), ᾱ_k = Π_{i≤k}(1 − β_i) (Ho et al.
2020, eq. 4); N − 1 is the noisiest. Two paths with the same ratio α/σ see the same examples, up to a factor (Karras et
al. 2022, Appendix B). On the linear path the step k is at the time t = α/(α + σ), and its x is (α + σ)x_t.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.paths import Path
from flowguide.typing import Array

SMALLEST = 1e-12  # α and σ are not taken to be smaller, so that their logarithms are finite


class Chain(NamedTuple):
    """A chain of N steps; hashable.

    Attributes:
      signal: ᾱ of each step, decreasing.
    """

    signal: tuple[float, ...]


class Level(NamedTuple):
    """Where a time of a path is on a chain.

    Attributes:
      step: k, float32 of the shape of t: a whole number at the chain's own times, in [0, N − 1].
      alpha: √ᾱ at k.
      sigma: √(1 − ᾱ) at k.
      scale: x of the chain over x of the path, 1/√(α(t)² + σ(t)²). Beyond the ends of the chain it still gives x of the
        chain the variance 1, if the data have it.
    """

    step: Array
    alpha: Array
    sigma: Array
    scale: Array


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Chain:
    """Returns the chain with β equally spaced from ``beta_start`` to ``beta_end`` (Ho et al. 2020, §4).

    Raises:
      ValueError: if there are less than 2 steps, or a β is not between 0 and 1.
    """
    if steps < 2:
        raise ValueError(f"a chain has 2 steps or more; got steps={steps}: use 1000")
    if not (0 < beta_start < 1 and 0 < beta_end < 1):
        raise ValueError(f"beta_start and beta_end must be between 0 and 1; got {beta_start} and {beta_end}")
    return Chain(tuple(np.cumprod(1 - np.linspace(beta_start, beta_end, steps)).tolist()))


def level(chain: Chain, path: Path, t: Array) -> Level:
    """Returns where on the chain the noise is that of the path at t, of any shape.

    Between two steps, k is interpolated in log ᾱ, as in DPM-Solver (Lu et al. 2022a, Appendix D): the noise of the
    chain in continuous time with constant β within a step. Beyond its ends, k is that of the end.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    ratio = jnp.log(jnp.maximum(alpha, SMALLEST)) - jnp.log(jnp.maximum(sigma, SMALLEST))
    known = np.log(chain.signal[::-1])  # increasing
    log_signal = jnp.clip(-jax.nn.softplus(-2 * ratio), known[0], known[-1])
    step = jnp.interp(log_signal, jnp.asarray(known, log_signal.dtype), jnp.arange(len(known) - 1.0, -1.0, -1.0))
    scale = 1 / jnp.sqrt(alpha**2 + sigma**2)
    return Level(step, jnp.exp(log_signal / 2), jnp.sqrt(-jnp.expm1(log_signal)), scale)


def times(chain: Chain) -> np.ndarray:
    """Returns the time of each step on the linear path, α/(α + σ), float64 ``(N,)``, decreasing."""
    signal = np.asarray(chain.signal)
    alpha, sigma = np.sqrt(signal), np.sqrt(1 - signal)
    return alpha / (alpha + sigma)
