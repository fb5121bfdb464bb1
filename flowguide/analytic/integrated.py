"""Moments of guided sampling of Gaussians without a closed form, by integrating the equations of mean and covariance.

This covers covariances that do not commute, schedules γ(t), and starts at t > 0 or from a distribution other than
N(0, I): the guided process is still linear, so its mean and covariance obey ordinary differential equations. Runs on
the host, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from flowguide import paths
from flowguide.paths import Path

NEAR_NOISE = 1e-6  # t where a solve from pure noise starts; up to it the expansion at t = 0 is exact to 1e-12


def integrated_moments(
    gamma: float | Callable[[float], float | np.ndarray],
    path: Path,
    mean_null: ArrayLike,
    covariance_null: ArrayLike,
    mean: ArrayLike,
    covariance: ArrayLike,
    *,
    eta: float = 0.0,
    start: float = 0.0,
    start_mean: ArrayLike | None = None,
    start_covariance: ArrayLike | None = None,
    breaks: Sequence[float] = (),
    tolerance: float = 1e-9,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean ``(d,)`` and covariance ``(d, d)`` that CFG with scale γ(t) samples.

    In y = x/α and r = σ²/α² the process dx = [u + ηκs]dt + √(2ηκ)dW (ODE for η = 0, SDE for η > 0) has, with
    w = (1 − γ, γ), k = (1 + η)/2 and M = Σw_i(Σ_i + rI)^{-1}, the moments

        dE[y]/dr = k·Σw_i(Σ_i + rI)^{-1}(E[y] − m_i),        dC/dr = k(MC + CM) − ηI.

    They are integrated in the angle θ = atan(α/σ), r = cot²θ, and z = x/√(α² + σ²), where nothing is infinite at noise
    or data. ``guided_moments`` is the closed form for constant γ, commuting covariances and a start from noise.

    Args:
      gamma: γ, or t -> γ.
      path: the path, which matters if γ varies or the start is not at noise.
      mean_null: m_u ``(d,)``; scalars are treated as d = 1.
      covariance_null: Σ_u ``(d, d)``.
      mean: m_c ``(d,)``.
      covariance: Σ_c ``(d, d)``.
      eta: strength of the noise, as in ``solvers.memoryless``.
      start: t where sampling starts.
      start_mean: mean of x at ``start``; by default 0.
      start_covariance: covariance of x at ``start``; by default the identity, as samplers draw it for any σ(start).
      breaks: times at which γ jumps.
      tolerance: relative and absolute tolerance of the integration.

    Raises:
      ValueError: if η is negative, the start is not in [0, 1), or the shapes do not fit.
    """
    from scipy.integrate import solve_ivp  # JAX needs scipy too

    if not 0 <= eta < np.inf or not 0 <= start < 1:
        raise ValueError(f"expected eta >= 0 and 0 <= start < 1; got eta = {eta} and start = {start}")
    m_u, s_u, m_c, s_c = _as_moments(mean_null, covariance_null, mean, covariance)
    d, eye = len(m_u), np.eye(len(m_u))
    scale = gamma if callable(gamma) else lambda t: gamma

    at = _angles(path)

    def slope(s: float, state: np.ndarray) -> np.ndarray:
        """d/ds with t = 1 − s²: near data the angle of the vp path changes like the square root of 1 − t."""
        t = 1 - s * s
        sin, cos, turn, _ = at(t)
        m, c = state[:d], state[d:].reshape(d, d)
        a_u, a_c = (np.linalg.inv(cos**2 * eye + sin**2 * cov) for cov in (s_u, s_c))
        g = float(scale(t))
        pull = (1 - g) * a_u + g * a_c
        target = (1 - g) * a_u @ m_u + g * a_c @ m_c
        cot = cos / sin
        dm = cot * m - (1 + eta) * (cot * pull @ m - cos * target)
        dc = cot * (2 * c - (1 + eta) * (pull @ c + c @ pull) + 2 * eta * eye)
        return -2 * s * turn * np.concatenate([dm, dc.reshape(-1)])

    m0 = np.zeros(d) if start_mean is None else np.atleast_1d(np.asarray(start_mean, float))
    c0 = eye if start_covariance is None else np.atleast_2d(np.asarray(start_covariance, float))
    sin, _, _, radius = at(start)
    m0, c0 = m0 / radius, c0 / radius**2
    if sin == 0:  # cot θ = ∞: take the first step by the expansion, which adds sin θ·Σw_im_i to z
        start = NEAR_NOISE
        m0 = m0 + at(start)[0] * ((1 - scale(start)) * m_u + scale(start) * m_c)
    state = np.concatenate([m0, c0.reshape(-1)])
    ends = [start, *sorted(t for t in breaks if start < t < 1), 1.0]
    for a, b in pairwise(np.sqrt(1 - np.asarray(ends))):
        state = solve_ivp(slope, (a, b), state, method="DOP853", rtol=tolerance, atol=tolerance).y[:, -1]
    return state[:d], state[d:].reshape(d, d)


def _as_moments(*moments: ArrayLike) -> tuple[np.ndarray, ...]:
    """Returns means ``(d,)`` and covariances ``(d, d)``, given in turn, as float64.

    Raises:
      ValueError: if their shapes do not fit.
    """
    found = [
        np.atleast_2d(np.asarray(a, float)) if i % 2 else np.atleast_1d(np.asarray(a, float))
        for i, a in enumerate(moments)
    ]
    d = len(found[0])
    if any(a.shape != ((d, d) if i % 2 else (d,)) for i, a in enumerate(found)):
        got = ", ".join(str(a.shape) for a in found)
        raise ValueError(f"expected means (d,) and covariances (d, d) with the same d; got shapes {got}")
    return tuple(found)


def _angles(path: Path) -> Callable[[float], list[float]]:
    """Returns a function of t that gives sin θ, cos θ, dθ/dt and √(α² + σ²), in float64."""

    @jax.jit
    def angle(t: jax.Array) -> tuple[jax.Array, ...]:
        """Returns sin θ, cos θ, dθ/dt and √(α² + σ²)."""
        a, b = path.alpha(t), path.sigma(t)
        radius = jnp.hypot(a, b)
        return a / radius, b / radius, paths.wronskian(path, t) / radius**2, radius

    def at(t: float) -> list[float]:
        with jax.enable_x64(True):
            return [float(value) for value in angle(jnp.asarray(t))]

    return at
