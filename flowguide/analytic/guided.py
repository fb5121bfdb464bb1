"""Exact moments of guided sampling between Gaussians: CFG by ODE and SDE, and the tilted distribution.

Data x1 ~ N(m_u, v_u) without and N(m_c, v_c) with the condition (u may also be a negative condition, or whatever the
guided velocity starts from). The guided process dx = [u + ηκs]dt + √(2ηκ)dW, with u and s mixed as
(1 − γ)·unconditional + γ·conditional, is linear. In y = x/α and r = σ²/α² all paths coincide, so nothing below depends
on the path as long as it starts from pure noise (α(0) = 0). For d dimensions with commuting covariances the formulas
hold for each common eigenvector: pass arrays.

Runs on the host, in float64 numpy. η = 0 is the probability-flow ODE and η = 1 the memoryless SDE; η → ∞ samples the
tilted distribution p(x)^(1−γ)·p(x|c)^γ, and no finite η does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from flowguide.paths import Path


class Moments(NamedTuple):
    """Mean and variance, float64, of the broadcast shape of the inputs."""

    mean: np.ndarray
    variance: np.ndarray


def guided_moments(
    gamma: ArrayLike,
    mean_null: ArrayLike,
    variance_null: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    *,
    eta: float = 0.0,
) -> Moments:
    """Returns the mean and variance that CFG with scale γ samples by ODE (η = 0) or SDE (η > 0).

    With z = 1 − v_c/v_u and Euler's integral of the hypergeometric function,

        variance = v_c·₂F₁(1, (1+η)(1−γ); 1+η; z)
        mean = m_u + γ(m_c − m_u)·₂F₁(1, (1+η)(1−γ)/2; (3+η)/2; z).

    For the ODE the variance is v_c(v_c/v_u)^(γ−1), and for η = 1 it is v_c[1 − (v_c/v_u)^(2γ−1)]/((2γ−1)z): with
    v_u = 2, v_c = 1 these are 2^(1−γ) and (2 − 2^(2−2γ))/(2γ−1) (Bradley & Nakkiran 2024, Theorem 1). The general form
    solves the linear moment equations in r.

    Raises:
      ValueError: if a variance is not positive, or η is negative or infinite.
    """
    arrays = np.broadcast_arrays(*(np.asarray(a, float) for a in (gamma, mean_null, variance_null, mean, variance)))
    g, m_u, v_u, m_c, v_c = arrays
    if not (v_u > 0).all() or not (v_c > 0).all():
        raise ValueError(f"variances must be positive; got {v_u} and {v_c}")
    if not 0 <= eta < np.inf:
        raise ValueError(f"eta must be 0 or more, and finite; got {eta}: for the limit use tilted_moments")
    z = 1 - v_c / v_u
    shape = _hypergeometric(0.5 * (1 + eta) * (1 - g), 0.5 * (1 + eta), z)
    return Moments(m_u + g * (m_c - m_u) * shape, v_c * _hypergeometric((1 + eta) * (1 - g), eta, z))


def tilted_moments(
    gamma: float, mean_null: ArrayLike, covariance_null: ArrayLike, mean: ArrayLike, covariance: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean ``(d,)`` and covariance ``(d, d)`` of p(x)^(1−γ)·p(x|c)^γ for Gaussians, normalised.

    The precision is P = (1 − γ)Σ_u^{-1} + γΣ_c^{-1}, the mean P^{-1}[(1 − γ)Σ_u^{-1}m_u + γΣ_c^{-1}m_c]. Scalars are
    treated as d = 1.

    Raises:
      ValueError: if P is not positive definite, so that there is no such distribution; gives the interval of valid γ.
    """
    m_u, m_c = (np.atleast_1d(np.asarray(a, float)) for a in (mean_null, mean))
    s_u, s_c = (np.linalg.inv(np.atleast_2d(np.asarray(a, float))) for a in (covariance_null, covariance))
    precision = (1 - gamma) * s_u + gamma * s_c
    if np.linalg.eigvalsh(precision).min() <= 0:
        low, high = existence(np.linalg.inv(s_u), np.linalg.inv(s_c))
        raise ValueError(
            f"p(x)^(1−γ)·p(x|c)^γ cannot be normalised at γ = {gamma:g}: these Gaussians need {low:g} < γ < {high:g}"
        )
    covariance = np.linalg.inv(precision)
    return covariance @ ((1 - gamma) * s_u @ m_u + gamma * s_c @ m_c), covariance


def existence(covariance_null: ArrayLike, covariance: ArrayLike) -> tuple[float, float]:
    """Returns the open interval of γ for which p(x)^(1−γ)·p(x|c)^γ exists, for Gaussian covariances ``(d, d)`` or ().

    P = Σ_u^{-1} + γ(Σ_c^{-1} − Σ_u^{-1}) ≻ 0, decided by the eigenvalues λ of Σ_uΣ_c^{-1}: 1 + γ(λ − 1) > 0 for all.
    """
    s_u, s_c = (np.atleast_2d(np.asarray(a, float)) for a in (covariance_null, covariance))
    root = np.linalg.cholesky(s_u)
    change = np.linalg.eigvalsh(root.T @ np.linalg.solve(s_c, root)) - 1
    low = max((-1 / c for c in change if c > 0), default=-np.inf)
    high = min((-1 / c for c in change if c < 0), default=np.inf)
    return float(low), float(high)


def tail_precision(covariances: Sequence[ArrayLike], weights: Sequence[float], directions: int = 4096) -> float:
    """Whether Π p_i(x)^{w_i} can be normalised for Gaussian mixtures p_i: yes if above 0, no if below, undecided at 0.

    Far out in direction v, −log p_i grows as ½r²·min_k vᵀΣ_k^{-1}v: the widest component dominates. The result is the
    minimum over v of Σ w_i·min_k vᵀΣ_{ik}^{-1}v: exact for Gaussians, where it is the smallest eigenvalue of
    Σ w_iΣ_i^{-1}, and for d = 1; otherwise the smallest value found from ``directions`` random starts.

    For p(x)^(1−γ)·p(x|c)^γ with p(x) the marginal of p(x, c) it is positive for all γ ≥ 0, as p(x) ≥ p(c)·p(x|c). It
    can fail for γ < 0, negative conditions, and distributions that do not have a common joint.

    Args:
      covariances: for each distribution, those of its components ``(K_i, d, d)``; or ``(d, d)``; or, for d = 1,
        variances ``(K_i,)``.
      weights: w_i.
      directions: random starts of the search.

    Raises:
      ValueError: unless there is one weight per distribution.
    """
    if len(covariances) != len(weights):
        raise ValueError(
            f"expected one weight per distribution; got {len(covariances)} distributions and {len(weights)} weights"
        )
    arrays = [np.asarray(c, float) for c in covariances]
    arrays = [a[:, None, None] if a.ndim == 1 else a.reshape(-1, *a.shape[-2:]) for a in map(np.atleast_1d, arrays)]
    precisions = [np.linalg.inv(a) for a in arrays]

    def tail(v: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the value at v, and the quadratic form of the components that dominate there."""
        widest = [p[np.argmin(np.einsum("i,kij,j->k", v, p, v))] for p in precisions]
        form = np.sum([w * p for w, p in zip(weights, widest, strict=True)], axis=0)
        return float(v @ form @ v), form

    d = arrays[0].shape[-1]
    starts = np.random.default_rng(0).standard_normal((1 if d == 1 else directions, d))
    found = np.inf
    for v in starts / np.linalg.norm(starts, axis=1, keepdims=True):
        value, form = tail(v)
        while True:  # move to the minimum of the form, as long as the value decreases there
            better, next_form = tail(np.linalg.eigh(form)[1][:, 0])
            if better >= value - 1e-12:
                break
            value, form = better, next_form
        found = min(found, value)
    return found


def scheduled_variance(
    gamma: Callable[[np.ndarray], ArrayLike],
    path: Path,
    variance_null: float,
    variance: float,
    *,
    breaks: Sequence[float] = (),
    nodes: int = 64,
) -> float:
    """Returns the variance that the ODE samples with a schedule γ(t): v_c·exp ∫(γ(t) − 1) d log R, t from 0 to 1.

    R = (v_c + r)/(v_u + r), r = σ²/α². For γ inside [t1, t2] and 1 outside it is v_c[R(t2)/R(t1)]^(γ−1).

    Args:
      gamma: t ``(n,)`` -> γ.
      path: the path, which matters here.
      variance_null: v_u.
      variance: v_c.
      breaks: times at which γ jumps.
      nodes: number of Gauss-Legendre nodes per piece.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    ends = [0.0, *sorted(t for t in breaks if 0 < t < 1), 1.0]
    total = 0.0
    for start, end in pairwise(ends):
        t = start + (end - start) * (points + 1) / 2
        with jax.enable_x64(True):
            a, b, da, db = (np.asarray(f(jnp.asarray(t))) for f in path)
        # dr/dt = −2σΔ/α³, written in S = α²v + σ² so that nothing is singular at t = 0
        slope = -2 * a * b * (da * b - a * db) * (variance_null - variance)
        slope = slope / ((a**2 * variance + b**2) * (a**2 * variance_null + b**2))
        total += float(np.sum(weights * (np.asarray(gamma(t), float) - 1) * slope)) * (end - start) / 2
    return variance * float(np.exp(total))


def _hypergeometric(b: np.ndarray, k: float, z: np.ndarray) -> np.ndarray:
    """₂F₁(1, b; 1 + k; z) for z < 1, k ≥ 0: ∫_0^1 (1 − z(1 − w^{1/k}))^{−b} dw (Euler's integral, w = (1 − s)^k)."""
    if k == 0:
        return (1 - z) ** -b
    w, one_minus_w, weights = _tanh_sinh()
    # Near w = 1 only 1 − w has full precision.
    power = np.exp(np.where(w < 0.5, np.log(w), np.log1p(-np.minimum(one_minus_w, 0.5))) / k)
    z, b = z[..., None], b[..., None]
    return np.sum(weights * (1 - z * (1 - power)) ** -b, -1)


def _tanh_sinh(count: int = 400, reach: float = 4.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes w, 1 − w and weights of the tanh-sinh rule on [0, 1] (Takahasi & Mori 1974), for any endpoint behaviour."""
    s, step = np.linspace(-reach, reach, count, retstep=True)
    u = np.pi / 2 * np.sinh(s)
    w, rest = 1 / (1 + np.exp(-2 * u)), 1 / (1 + np.exp(2 * u))
    return w, rest, step * np.pi * np.cosh(s) * w * rest
