"""Probability paths x_t = α(t)·x1 + σ(t)·x0 from noise (t = 0) to data (t = 1), and conversions between predictions.

On any such path the velocity u, the score s = ∇log p_t and the two posterior means x̂1 = E[x1|x_t] and
x̂0 = E[x0|x_t] are affine functions of each other (Lipman et al. 2023, §4; Albergo et al. 2023, §2). With
Δ = α̇σ − ασ̇:

    x_t = α·x̂1 + σ·x̂0          u = α̇·x̂1 + σ̇·x̂0          s = −x̂0/σ

    x̂1 = (σu − σ̇x)/Δ           x̂0 = (α̇x − αu)/Δ           s = (αu − α̇x)/(σΔ)

Conversions at the endpoints: u → x̂1 and u → x̂0 are regular on all of [0, 1]. x̂0 → u and s → u are 0/0 at t = 0;
u → s and x̂1 → u are 0/0 at t = 1. There the input does not determine the output, and no formula can recover it; these
functions return finite numbers, not the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowguide.typing import Array

Coefficient = Callable[[Array], Array]

# The vp schedule is singular at t = 1 (σ̇ → −∞), so it is frozen from this t on, where σ = 1e-3.
VP_LAST = 1.0 - 1e-5


class Path(NamedTuple):
    """The coefficients of x_t = α(t)·x1 + σ(t)·x0 and their derivatives, each a function of t of any shape.

    Attributes:
      alpha: α, the signal coefficient: 0 (or nearly) at t = 0 and 1 at t = 1.
      sigma: σ, the noise coefficient: 1 at t = 0 and 0 (or nearly) at t = 1.
      d_alpha: dα/dt.
      d_sigma: dσ/dt.
    """

    alpha: Coefficient
    sigma: Coefficient
    d_alpha: Coefficient
    d_sigma: Coefficient


def path(alpha: Coefficient, sigma: Coefficient) -> Path:
    """Builds a path from its two coefficients (elementwise functions of t); derivatives by forward-mode autodiff."""

    def derivative(f: Coefficient) -> Coefficient:
        return lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),))[1]

    return Path(alpha, sigma, derivative(alpha), derivative(sigma))


def linear() -> Path:
    """α = t, σ = 1 − t: rectified flow and conditional optimal transport (Liu et al. 2023; Lipman et al. 2023)."""
    return Path(lambda t: t, lambda t: 1 - t, jnp.ones_like, lambda t: -jnp.ones_like(t))


def trig() -> Path:
    """α = sin(πt/2), σ = cos(πt/2): variance preserving (Albergo & Vanden-Eijnden 2023)."""
    h = math.pi / 2
    return Path(
        lambda t: jnp.sin(h * t),
        lambda t: jnp.sin(h * (1 - t)),  # in floating point cos(πt/2) is not 0 at t = 1; this form is
        lambda t: h * jnp.sin(h * (1 - t)),
        lambda t: -h * jnp.sin(h * t),
    )


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Path:
    """The variance-preserving diffusion with linear β (Song et al. 2021, Appendix C), reversed in time to end at data.

    α = exp(−½∫_t^1 β), σ = √(1 − α²), with β falling from ``beta_max`` at t = 0 to ``beta_min`` at t = 1. The
    velocity has no limit at t = 1, so the coefficients are frozen beyond t = 1 − 1e-5 (where σ = 1e-3). At t = 0, α is
    0.0066 with the defaults, not 0.
    """

    def remaining(t: Array) -> Array:  # diffusion time s = 1 − t
        return 1 - jnp.minimum(t, VP_LAST)

    def log_alpha(t: Array) -> Array:
        s = remaining(t)
        return -0.5 * (beta_min * s + 0.5 * (beta_max - beta_min) * s**2)

    def alpha(t: Array) -> Array:
        return jnp.exp(log_alpha(t))

    def sigma(t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * log_alpha(t)))

    def d_alpha(t: Array) -> Array:
        return 0.5 * (beta_min + (beta_max - beta_min) * remaining(t)) * alpha(t)

    def d_sigma(t: Array) -> Array:
        return -alpha(t) * d_alpha(t) / sigma(t)

    return Path(alpha, sigma, d_alpha, d_sigma)


PATHS: dict[str, Callable[[], Path]] = {"linear": linear, "trig": trig, "vp": vp}


def interpolate(p: Path, t: Array, x0: Array, x1: Array) -> Array:
    """Returns x_t = α(t)·x1 + σ(t)·x0; t is () or ``(B,)``, x0 and x1 ``(B, *D)``."""
    t = _over(t, x1)
    return p.alpha(t) * x1 + p.sigma(t) * x0


def conditional_velocity(p: Path, t: Array, x0: Array, x1: Array) -> Array:
    """Returns α̇·x1 + σ̇·x0, the time derivative of ``interpolate`` and the regression target (Lipman et al. 2023)."""
    t = _over(t, x1)
    return p.d_alpha(t) * x1 + p.d_sigma(t) * x0


def velocity_to_x1(p: Path, t: Array, x: Array, u: Array) -> Array:
    """Converts the velocity to E[x1|x_t]; regular on all of [0, 1]."""
    t = _over(t, x)
    return (p.sigma(t) * u - p.d_sigma(t) * x) / wronskian(p, t)


def velocity_to_x0(p: Path, t: Array, x: Array, u: Array) -> Array:
    """Converts the velocity to E[x0|x_t]; regular on all of [0, 1]."""
    t = _over(t, x)
    return (p.d_alpha(t) * x - p.alpha(t) * u) / wronskian(p, t)


def velocity_to_score(p: Path, t: Array, x: Array, u: Array) -> Array:
    """Converts the velocity to ∇log p_t. 0/0 at t = 1: an SDE should use ``velocity_to_scaled_score`` there."""
    t = _over(t, x)
    return _divide(p.alpha(t) * u - p.d_alpha(t) * x, p.sigma(t) * wronskian(p, t))


def velocity_to_scaled_score(p: Path, t: Array, x: Array, u: Array) -> Array:
    """Returns κ∇log p_t = u − (α̇/α)x with κ = σΔ/α, which stays finite at t = 1 (it is 0/0 at t = 0)."""
    t = _over(t, x)
    return u - _divide(p.d_alpha(t) * x, p.alpha(t))


def x1_to_velocity(p: Path, t: Array, x: Array, x1: Array, floor: float = 0.0) -> Array:
    """Converts E[x1|x_t] to the velocity (σ̇/σ)x + (Δ/σ)x̂1. 0/0 at t = 1.

    It divides by max(σ, ``floor``): with a floor the velocity is too small where σ is smaller, and bounded at t = 1. On
    the linear path this is (x̂1 − x)/max(1 − t, ``floor``), exactly (Li & He 2025, arXiv 2511.13720).
    """
    t = _over(t, x)
    return _divide(p.d_sigma(t) * x + wronskian(p, t) * x1, jnp.maximum(p.sigma(t), floor))


def x0_to_velocity(p: Path, t: Array, x: Array, x0: Array) -> Array:
    """Converts E[x0|x_t] to the velocity (α̇/α)x − (Δ/α)x̂0. 0/0 at t = 0."""
    t = _over(t, x)
    return _divide(p.d_alpha(t) * x - wronskian(p, t) * x0, p.alpha(t))


def score_to_velocity(p: Path, t: Array, x: Array, score: Array) -> Array:
    """Converts the score to the velocity (α̇/α)x + κs. 0/0 at t = 0."""
    t = _over(t, x)
    return _divide(p.d_alpha(t) * x + p.sigma(t) * wronskian(p, t) * score, p.alpha(t))


def wronskian(p: Path, t: Array) -> Array:
    """Returns Δ = α̇σ − ασ̇, which is positive; 1 on the linear path."""
    return p.d_alpha(t) * p.sigma(t) - p.alpha(t) * p.d_sigma(t)


def _divide(numerator: Array, denominator: Array) -> Array:
    """Divides, keeping the denominator (α, σ or σΔ, never negative) off zero so that the endpoints stay finite."""
    return numerator / jnp.maximum(denominator, jnp.finfo(denominator.dtype).tiny ** 0.25)


def _over(t: Array, x: Array) -> Array:
    """Reshapes t () or (B,) to broadcast against x (B, *D)."""
    t = jnp.asarray(t, x.dtype)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t
