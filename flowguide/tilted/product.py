"""Target distributions: products of powers Π p_t(x|c_i)^{w_i} of distributions with known velocities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.core import Tracer

from flowguide import condition, paths
from flowguide.condition import Condition
from flowguide.guidance import Reference
from flowguide.guidance.rules import inner
from flowguide.paths import Path
from flowguide.solvers.solver import over
from flowguide.solvers.stochastic import is_one
from flowguide.typing import Array, CondVelocity


class Product(NamedTuple):
    """Π p(x|c_i)^{w_i}, unnormalised.

    Attributes:
      factors: velocity and condition of each factor; the conditions have one batch size G.
      weights: w_i of each, () or ``(G,)``, of any sign.
      total: W = Σ w_i, () or ``(G,)``, positive. The float 1.0 if it is 1 by construction, which saves work.
    """

    factors: tuple[Reference, ...]
    weights: tuple[Array | float, ...]
    total: Array | float


def powered(velocity: CondVelocity, c: Condition, gamma: Array | float, *, against: Condition | None = None) -> Product:
    """p(x)^(1−γ)·p(x|c)^γ, which guidance is often said to sample.

    Args:
      velocity: one network for u(t, x, c) and u(t, x, ∅).
      c: the condition, batch G.
      gamma: γ, () or ``(G,)``; may be traced.
      against: a condition d that replaces ∅: p(x|d)^(1−γ)·p(x|c)^γ.
    """
    base = condition.null(c) if against is None else against
    return Product((Reference(velocity, base), Reference(velocity, c)), (1 - gamma, gamma), 1.0)


def composed(velocity: CondVelocity, like: Condition, others: Sequence[tuple[Condition, Array | float]]) -> Product:
    """p(x)·Π (p(x|c_i)/p(x))^{w_i}: AND for positive, NOT for negative weights (Du et al. 2023, arXiv 2302.11552).

    Args:
      velocity: one network for all conditions.
      like: any condition with the same fields, batch G; ∅ is its null.
      others: the conditions, batch G each, with their weights w_i, () or ``(G,)``.
    """
    rest = 1 - sum(w for _, w in others)
    factors = Reference(velocity, condition.null(like)), *(Reference(velocity, c) for c, _ in others)
    return Product(factors, (rest, *(w for _, w in others)), 1.0)


def product(factors: Sequence[Reference], weights: Sequence[Array | float]) -> Product:
    """Any product of powers; if Σ w_i ≠ 1, sampling starts from N(0, I/Σ w_i) instead of the noise of the paths.

    Raises:
      ValueError: unless there is one weight per factor, and the weights, if their values are known, have a positive
        sum.
    """
    if len(factors) != len(weights) or not factors:
        raise ValueError(f"expected one weight per factor; got {len(factors)} factors and {len(weights)} weights")
    total = sum(weights[1:], weights[0])
    if not isinstance(total, Tracer) and not jnp.all(jnp.asarray(total) > 0):
        raise ValueError(
            f"the weights of a product must sum to more than 0, else it is not a distribution at t = 0; got a sum of "
            f"{total}: raise a weight, or add p(x)"
        )
    return Product(tuple(factors), tuple(weights), total)


def mix(p: Product, us: Sequence[Array]) -> Array:
    """Σ w_i·u_i ``(B, *D)``: the guided velocity from those of the factors; weights () or ``(B,)``."""
    return sum((_by(w, u) for w, u in zip(p.weights, us, strict=True)), jnp.zeros_like(us[0])).astype(us[0].dtype)


def weight_rate(path: Path, p: Product, t: Array, x: Array, us: Sequence[Array]) -> Array:
    """d log W/dt ``(B,)`` along dx = [Σ w_i·u_i + D·S]dt + √(2D)dW, for any D, with S = Σ w_i·s_i.

    The Feynman-Kac corrector (Skreta et al. 2025, arXiv 2503.02819, Proposition 3.1 for two scores) in velocities:
    (Σ w_i·u_i)·S − Σ w_i·u_i·s_i, in which all divergences have cancelled. In terms of the differences δ_i = u_i − u_0,

        (|Σ w_i·δ_i|² − Σ w_i|δ_i|²)/κ + (W − 1)·(u_0·S + s_0·Σ w_i·δ_i),      κ = σΔ/α,

    where the first term is γ(γ − 1)·|u_c − u_∅|²/κ for guidance, and the second is 0 unless W = Σ w_i ≠ 1. At t = 1,
    where 1/κ is infinite and exact velocities coincide, it is 0. Computed in float32 or wider.

    Args:
      path: the path.
      p: the product, its weights () or ``(B,)``.
      t: time ().
      x: the state ``(B, *D)``.
      us: the velocity of each factor at (t, x).
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x, base, *rest = (a.astype(dtype) for a in (x, *us))
    t = jnp.asarray(t, dtype)
    differences = [u - base for u in rest]
    along = sum((_by(w, d) for w, d in zip(p.weights[1:], differences, strict=True)), jnp.zeros_like(base))
    square = _dot(along, along) - sum(w * _dot(d, d) for w, d in zip(p.weights[1:], differences, strict=True))
    kappa_alpha = path.sigma(t) * paths.wronskian(path, t)  # κ·α, which is 0 only at t = 1
    inside = kappa_alpha > 0
    rate = square * path.alpha(t) / jnp.where(inside, kappa_alpha, 1.0)
    if not is_one(p.total):
        s = paths.velocity_to_score(path, t, x, base)
        change = along * over(path.alpha(t) / jnp.where(inside, kappa_alpha, 1.0), along)  # Σ w_i(s_i − s_0)
        score = _by(p.total, s) + change
        rate = rate + (p.total - 1) * (_dot(base, score) + _dot(s, along))
    return jnp.where(inside, rate, 0.0)


def _by(weight: Array | float, x: Array) -> Array:
    return over(jnp.asarray(weight, x.dtype), x) * x


def _dot(a: Array, b: Array) -> Array:
    return inner(a, b).reshape(a.shape[0])
