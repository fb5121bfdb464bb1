"""Calibration of posteriors: whether the truth lies in their samples as often as they say. NumPy.

Draw θ from the prior, simulate x, sample the posterior given x. Each function turns N such trials into N ranks in 0..L,
which are uniform if the posterior is right. ``uniformity`` tests them and says what is wrong; ``coverage`` gives the
curve. ``pictures.save_ranks`` and ``pictures.save_coverage`` draw both.

```python
samples = np.stack([model.given(x=x).sample(200) for x in xs])  # (N, L, d) for theta (N, d)
uniformity(sbc_ranks(theta, samples), draws=200)
uniformity(tarp_ranks(theta, samples), draws=200)
```

``sbc_ranks`` looks at each parameter alone; ``tarp_ranks`` and ``density_ranks`` see all of them together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowguide.errors import UserError


class Uniformity(NamedTuple):
    """How far ranks are from uniform; each ``()``, or ``(d,)`` for ranks ``(N, d)``.

    Attributes:
      distance: largest distance of the distribution function of the ranks from that of uniform ones.
      band: what it stays below with the probability asked for, in all d together, if the ranks are uniform.
      shift: of their mean, in standard errors; for ``sbc_ranks``, positive if posteriors lie too low, for
        ``density_ranks``, if they are too narrow.
      spread: of their variance, in standard errors; for ``sbc_ranks`` and ``tarp_ranks``, positive (ranks like ∪) if
        posteriors are too narrow, and negative (ranks like ∩) if they are too wide. ``tarp_ranks`` have no direction:
        posteriors at the wrong place look too narrow.
    """

    distance: np.ndarray
    band: float
    shift: np.ndarray
    spread: np.ndarray

    @property
    def uniform(self) -> bool:
        """Whether all distances are within the band."""
        return bool(np.all(self.distance <= self.band))


class Coverage(NamedTuple):
    """How often regions hold the truth, beside the probability they claim; each ``(L + 2,)``.

    Attributes:
      credibility: what the posterior claims, from 0 to 1.
      expected: the share of trials whose region of that credibility held the truth.
      low: the band of ``expected`` at each credibility, if the posterior is right.
      high: its upper end.
    """

    credibility: np.ndarray
    expected: np.ndarray
    low: np.ndarray
    high: np.ndarray


def sbc_ranks(theta: ArrayLike, samples: ArrayLike) -> np.ndarray:
    """Returns the rank of each parameter among its posterior samples, int ``(N, d)`` in 0..L.

    Simulation-based calibration (Talts et al. 2018, arXiv 1804.06788, Algorithm 1), with the parameters themselves as
    test quantities. Samples must be independent: thin those of a Markov chain.

    Args:
      theta: parameters drawn from the prior ``(N, d)``.
      samples: of the posterior given the x simulated from each, ``(N, L, d)``.

    Raises:
      UserError: if shapes do not match, or a number is not finite.
    """
    theta, samples = _checked(theta, samples)
    return np.sum(samples < theta[:, None], axis=1)


def tarp_ranks(
    theta: ArrayLike, samples: ArrayLike, *, references: ArrayLike | None = None, seed: int = 0
) -> np.ndarray:
    """Returns for each trial how many samples are closer to a random point than the truth is, int ``(N,)`` in 0..L.

    Tests of accuracy with random points (Lemos et al. 2023, arXiv 2302.03026, Algorithm 2): the ball around the point
    through the truth is a credible region, whose credibility is the share of samples inside. Distances are Euclidean,
    with each parameter in units of its range in ``theta``.

    Args:
      theta: as in ``sbc_ranks``.
      samples: as in ``sbc_ranks``.
      references: the random points ``(N, d)``, which may depend on x but not on θ; by default uniform in the range of
        ``theta``.
      seed: of these.

    Raises:
      UserError: as ``sbc_ranks``.
    """
    theta, samples = _checked(theta, samples)
    low, high = theta.min(0), theta.max(0)
    scale = np.where(high > low, high - low, 1.0)
    if references is None:
        points = np.random.default_rng(seed).uniform(low, low + scale, theta.shape)
    else:
        points = np.asarray(references, np.float64)
    if points.shape != theta.shape:
        raise UserError(f"expected one reference for each theta, {theta.shape}; got {points.shape}")
    truth = np.linalg.norm((theta - points) / scale, axis=-1)
    return np.sum(np.linalg.norm((samples - points[:, None]) / scale, axis=-1) < truth[:, None], axis=1)


def density_ranks(log_theta: ArrayLike, log_samples: ArrayLike) -> np.ndarray:
    """Returns for each trial how many samples have a higher density than the truth, int ``(N,)`` in 0..L.

    The region of highest density through the truth has the share of those samples as its credibility (Hermans et al.
    2022, arXiv 2110.06257, §2).

    Args:
      log_theta: log-density of the true parameters under the posterior of their x, ``(N,)``.
      log_samples: log-densities of its samples ``(N, L)``.

    Raises:
      UserError: if shapes do not match, or a number is NaN.
    """
    truth, samples = np.asarray(log_theta, np.float64), np.asarray(log_samples, np.float64)
    if truth.ndim != 1 or samples.ndim != 2 or len(samples) != len(truth) or not samples.size:
        raise UserError(f"expected log-densities (N,) and (N, L); got {truth.shape} and {samples.shape}")
    if np.isnan(truth).any() or np.isnan(samples).any():
        raise UserError("log-densities are nan: leave those trials out")
    return np.sum(samples > truth[:, None], axis=1)


def uniformity(ranks: ArrayLike, draws: int, *, level: float = 0.99) -> Uniformity:
    """Returns how far ranks are from uniform on 0..L, with the band that uniform ones stay in.

    The band is √(log(2d/(1 − level))/(2N)), by the inequality of Dvoretzky, Kiefer & Wolfowitz with the constant of
    Massart (1990) in each of d columns; it holds for any N and L.

    Args:
      ranks: int ``(N,)`` or ``(N, d)``.
      draws: L, the samples of each trial.
      level: probability that uniform ranks stay in the band, in all columns.

    Raises:
      UserError: if a rank is not in 0..L, or the level not between 0 and 1.
    """
    ranks = _checked_ranks(ranks, draws)
    _check_level(level)
    num, columns = len(ranks), ranks.size // len(ranks)
    below = np.stack([np.mean(ranks < k, axis=0) for k in range(1, draws + 1)])
    claimed = np.arange(1, draws + 1) / (draws + 1)
    distance = np.abs(below - claimed.reshape(-1, *(1,) * (ranks.ndim - 1))).max(0)
    centred = (np.arange(draws + 1) + 0.5) / (draws + 1) - 0.5  # of every possible rank
    values = centred[ranks]
    return Uniformity(
        distance,
        float(np.sqrt(np.log(2 * columns / (1 - level)) / (2 * num))),
        np.mean(values, axis=0) / np.sqrt(np.var(centred) / num),
        (np.mean(values**2, axis=0) - np.var(centred)) / np.sqrt(np.var(centred**2) / num),
    )


def coverage(ranks: ArrayLike, draws: int, *, level: float = 0.99) -> Coverage:
    """Returns the expected coverage of the credible regions that ``tarp_ranks`` or ``density_ranks`` count.

    A curve of ``density_ranks`` below the diagonal says that posteriors are too narrow, one above, too wide. A curve of
    ``tarp_ranks`` is flatter than the diagonal at ½ for posteriors that are too narrow or at the wrong place, and
    steeper for those that are too wide.

    Args:
      ranks: int ``(N,)``.
      draws: L, the samples of each trial.
      level: of the band, which is binomial and holds at each credibility by itself.

    Raises:
      UserError: as ``uniformity``.
    """
    ranks = _checked_ranks(ranks, draws)
    _check_level(level)
    if ranks.ndim != 1:
        raise UserError(f"coverage takes the ranks of one quantity, (N,); got {ranks.shape}: pass a column")
    credibility = np.arange(draws + 2) / (draws + 1)
    expected = np.array([np.mean(ranks < k) for k in range(draws + 2)])
    low, high = (np.array(a) for a in zip(*(binomial_band(len(ranks), p, level) for p in credibility), strict=True))
    return Coverage(credibility, expected, low / len(ranks), high / len(ranks))


def binomial_band(num: int, p: float, level: float) -> tuple[int, int]:
    """Returns the (1 ∓ level)/2 quantiles of a binomial count of ``num`` trials."""
    if p in (0.0, 1.0):
        return round(p * num), round(p * num)
    k = np.arange(num + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num + 1)))])
    cdf = np.cumsum(np.exp(factorial[-1] - factorial - factorial[::-1] + k * np.log(p) + (num - k) * np.log1p(-p)))
    low, high = np.searchsorted(cdf, [(1 - level) / 2, (1 + level) / 2])
    return int(low), min(int(high), num)


def _checked(theta: ArrayLike, samples: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    theta, samples = np.asarray(theta, np.float64), np.asarray(samples, np.float64)
    expected = (len(theta), *samples.shape[1:2], *theta.shape[1:]) if theta.ndim == 2 else None
    if samples.ndim != 3 or samples.shape != expected or not samples.size:
        raise UserError(f"expected theta (N, d) and samples (N, L, d); got {theta.shape} and {samples.shape}")
    if not (np.isfinite(theta).all() and np.isfinite(samples).all()):
        raise UserError("theta and samples must be finite; got nan or infinity: leave those trials out")
    return theta, samples


def _checked_ranks(ranks: ArrayLike, draws: int) -> np.ndarray:
    ranks = np.asarray(ranks)
    if ranks.dtype.kind not in "iu" or ranks.ndim not in (1, 2) or not ranks.size:
        raise UserError(f"expected whole ranks (N,) or (N, d); got {ranks.dtype} {ranks.shape}")
    if ranks.min() < 0 or ranks.max() > draws:
        raise UserError(f"ranks are from 0 to draws = {draws}; got {ranks.min()} to {ranks.max()}")
    return ranks


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"level is a probability between 0 and 1; got {level}")
