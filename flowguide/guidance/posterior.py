"""Rules that estimate during sampling how well x already fits a condition, and adapt the guidance to it.

Between two steps the memoryless process under condition i moves from x to x' with mean μ_i = α'·E[x1|x, i] +
σ'e^{−h}·E[x0|x, i] and variance v = σ'²(1 − e^{−2h}), h the step in λ = log(α/σ); from t = 0, e^{−h} = 0. The
log-ratios of these transition densities, for the steps actually taken, sum to an estimate of log p(i|x')/p(i).

Both rules pause where they are not applied (outside an interval, for example): the estimate is kept, and the first step
after the pause adds nothing to it, because its starting point was not recorded.
"""

from __future__ import annotations

import jax.numpy as jnp

from flowguide import paths
from flowguide.guidance.rules import StatefulRule, inner
from flowguide.guidance.schedules import constant
from flowguide.paths import Path
from flowguide.solvers.solver import over
from flowguide.typing import Array, PyTree, Schedule


def dynamic_negative(
    gamma: Schedule,
    strength: Array | float | Schedule,
    path: Path,
    *,
    prior: float = 0.01,
    tau: float = 0.2,
    offset: float = 0.0,
    largest: float = 0.8,
) -> StatefulRule:
    """Dynamic negative guidance (Koulischer et al. 2024, arXiv 2410.14398): avoids d in proportion to p(d|x_t).

    u_∅ + γ(v − u_∅) − λ·p/(1 − p)·(u_d − u_∅), where p estimates p(d|x_t), starting from ``prior``. With γ = 0, λ = 1
    it is the velocity of p(x|not d) if p is exact. References: the null velocity and that of d.

    Args:
      gamma: the scale γ(t) of the condition; 0 for none.
      strength: λ, () or ``(B,)``, or a schedule.
      path: the path.
      prior: p(d) before sampling.
      tau: temperature of the log-ratio of each step; 1 is the exact one.
      offset: added to the difference of the squared distances in each step, against drift.
      largest: upper bound on p; the lower bound is 1e-6.
    """
    scale = strength if callable(strength) else constant(strength)

    def init(x: Array) -> PyTree:
        return _seen_init(x), jnp.full(x.shape[:1], jnp.log(prior), x.dtype)

    def apply(memory: PyTree, t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> tuple[Array, PyTree]:
        if len(refs) != 2:
            raise ValueError(f"dynamic_negative takes two references, ∅ and one negative condition; got {len(refs)}")
        null, negative = refs
        seen, log_p = memory
        ratio, variance = log_ratio(path, seen, t, x)
        log_p = log_p + tau * ratio + offset / (2 * variance)
        log_p = jnp.clip(log_p, jnp.log(1e-6), jnp.log(largest))
        p = jnp.exp(log_p)
        away = over(scale(t) * p / (1 - p), v) * (negative - null)
        guided = null + over(gamma(t), v) * (v - null) - away
        return guided, (_see(t, x, negative, null, x.dtype), log_p.astype(x.dtype))

    return StatefulRule(init, apply, _pause)


def feedback(
    gamma: Schedule,
    path: Path,
    *,
    pi: float = 0.95,
    tau: float = 1.0,
    drift: float = 0.0,
    largest: float = 10.0,
) -> StatefulRule:
    """Feedback guidance (Koulischer et al. 2025, arXiv 2506.06085): γ_eff = p̂/(p̂ − (1 − π)) with p̂ ∝ p(c|x_t).

    It models the network as a mixture, π parts conditional and 1 − π unconditional, and inverts it, per sample: while x
    fits the condition less than expected, γ_eff rises, up to ``largest``. L = log p̂ starts at 0 and changes in each
    step by ``tau`` times the log-ratio plus ``drift``; it is clipped to between ln((1 − π)γ_max/(γ_max − 1)) and 3. π =
    1 is conditional sampling. Reference: the null velocity.

    Args:
      gamma: multiplies γ_eff − 1; the paper's rule has 1.
      path: the path.
      pi: π in (0, 1].
      tau: temperature of the log-ratio.
      drift: δ of the paper, ln(1.5(1 − π))/((1 − t0)·steps) with t0 = 0.5 there: if negative, it lets γ_eff grow.
      largest: γ_max.

    Raises:
      ValueError: if π or ``largest`` is out of range.
    """
    if not 0 < pi <= 1 or largest <= 1:
        raise ValueError(f"expected 0 < pi <= 1 and largest > 1; got pi = {pi} and largest = {largest}")
    lowest = -jnp.inf if pi == 1 else jnp.log((1 - pi) * largest / (largest - 1))

    def init(x: Array) -> PyTree:
        return _seen_init(x), jnp.zeros(x.shape[:1], x.dtype)

    def apply(memory: PyTree, t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> tuple[Array, PyTree]:
        if len(refs) != 1:
            raise ValueError(f"feedback takes one reference, the null velocity; got {len(refs)}")
        (null,) = refs
        seen, level = memory
        ratio, _ = log_ratio(path, seen, t, x)
        level = jnp.clip(level + jnp.where(seen[0] >= 0, tau * ratio + drift, 0.0), lowest, 3.0)
        extra = (1 - pi) / (jnp.exp(level) - (1 - pi))  # γ − 1
        extra = extra * gamma(t)
        return v + over(extra, v) * (v - null), (_see(t, x, v, null, x.dtype), level.astype(x.dtype))

    return StatefulRule(init, apply, _pause)


def log_ratio(path: Path, seen: tuple[Array, ...], t: Array, x: Array) -> tuple[Array, Array]:
    """Returns log N(x; μ_1, v) − log N(x; μ_0, v) ``(B,)`` of the step from ``seen`` to (t, x), and v ().

    ``seen`` is (t, x, velocity under condition 1, under condition 0) at the previous step; t < 0 means there is none.
    The ratio is then 0, and also where σ = 0.
    """
    t0, x0, one, other = seen
    known = t0 >= 0
    start = jnp.where(known, t0, 0.0)
    a, b, a1, b1 = path.alpha(start), path.sigma(start), path.alpha(t), path.sigma(t)
    fade = a * b1 / (b * a1)  # e^{−h}
    variance = b1**2 * (1 - fade**2)
    known = known & (variance > 0)

    def mean(u: Array) -> Array:
        d, e = paths.velocity_to_x1(path, start, x0, u), paths.velocity_to_x0(path, start, x0, u)
        return a1 * d + b1 * fade * e

    def square(u: Array) -> Array:
        return inner(x - mean(u), x - mean(u)).reshape(x.shape[0])

    safe = jnp.where(known, variance, 1.0)
    return jnp.where(known, (square(other) - square(one)) / (2 * safe), 0.0), jnp.where(known, variance, jnp.inf)


def _seen_init(x: Array) -> tuple[Array, ...]:
    return -jnp.ones((), x.dtype), *(jnp.zeros_like(x),) * 3


def _pause(memory: PyTree) -> PyTree:
    """Keeps the estimate and clears the recorded step: a step across the pause is not one step of the process."""
    seen, estimate = memory
    return (-jnp.ones_like(seen[0]), *seen[1:]), estimate


def _see(t: Array, x: Array, one: Array, other: Array, dtype: jnp.dtype) -> tuple[Array, ...]:
    return tuple(jnp.asarray(a, dtype) for a in (t, x, one, other))
