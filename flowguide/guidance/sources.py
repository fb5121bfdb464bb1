"""Guidance by something else than ∅ at (t, x): gradients, look-ahead, other conditions, other times."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flowguide import condition, paths
from flowguide.condition import Condition
from flowguide.guidance.guide import Reference
from flowguide.guidance.schedules import constant
from flowguide.paths import Path
from flowguide.solvers.solver import over
from flowguide.typing import Array, CondVelocity, PRNGKey, PyTree, Schedule, Velocity


def with_gradient(
    velocity: Velocity,
    log_probability: Callable[[Array, Array], Array],
    weight: Array | float | Schedule,
    path: Path,
    *,
    start: float = 0.02,
) -> Velocity:
    """Classifier guidance u + w·κ·∇_x log p_t(c|x), κ = σΔ/α (Dhariwal & Nichol 2021, Algorithm 1, in velocities).

    With the unconditional velocity u and the exact classifier of p_t it is CFG with scale w, as κ(s_c − s_∅) = u_c −
    u_∅. Any log-reward of x_t can replace the classifier, and any velocity, also a guided one, can replace u.

    Args:
      velocity: t, x -> u.
      log_probability: t ``(B,)``, x ``(B, *D)`` -> ``(B,)``, differentiable in x, each value from its own sample only.
      weight: w, () or ``(B,)``, or a schedule.
      path: the path.
      start: no gradient for t < start, where κ grows like 1/t and the output of a classifier on noise is mostly noise.
    """
    scale = weight if callable(weight) else constant(weight)

    def guided(t: Array, x: Array) -> Array:
        times = jnp.broadcast_to(t, x.shape[:1])
        gradient = jax.grad(lambda x: jnp.sum(log_probability(times, x)))(x)
        on = jnp.maximum(t, start)
        kappa = path.sigma(on) * paths.wronskian(path, on) / path.alpha(on)
        return velocity(t, x) + over(jnp.where(t < start, 0.0, kappa) * scale(t), x) * gradient

    return guided


def rectified(
    velocity: CondVelocity, c: Condition, strength: Array | float | Schedule, *, half_step: Array | float
) -> Velocity:
    """Rectified-CFG++ (Saini et al. 2025, arXiv 2510.07631): evaluates the guidance half a step ahead.

    ``u_c(t, x) + s(t)·[u_c − u_∅](t + h, x + h·u_c(t, x))``, clipped to t + h ≤ 1: as h → 0 it is CFG with γ = 1 + s.
    Three network evaluations, two of them in one call. The paper, its code and its blog differ in s and h; the code has
    a whole step, s = 4.5, 28 steps.

    Args:
      velocity: one network for c and ∅.
      c: the condition, batch B.
      strength: s, () or ``(B,)``, or a schedule.
      half_step: h, half a step of the grid used for sampling.
    """
    scale = strength if callable(strength) else constant(strength)
    both = condition.concatenate(c, condition.null(c))

    def guided(t: Array, x: Array) -> Array:
        u = condition.bind(velocity, c)(t, x)
        ahead = jnp.minimum(jnp.broadcast_to(t, x.shape[:1]) + half_step, 1.0)
        there = x + over(ahead - t, x) * u
        found, null = jnp.split(velocity(jnp.tile(ahead, 2), jnp.concatenate([there, there]), both), 2)
        return u + over(scale(t), u) * (found - null)

    return guided


def annealed(
    velocity: CondVelocity,
    keys: PRNGKey,
    *,
    noise: float = 0.25,
    late: float = 0.1,
    early: float = 0.4,
    mix: float = 1.0,
) -> CondVelocity:
    """CADS: noises vector conditions early in sampling, and less and less later (Sadat et al. 2023, arXiv 2310.17347).

    It makes samples more diverse at large scales. c̃ = √g·c + s·√(1 − g)·n, g = clip((t − late)/(early − late), 0, 1),
    then shifted and scaled towards the mean and standard deviation of c, by the fraction ``mix``. In the paper's time,
    1 − t, its τ₂ = 1 − late = 0.9 and τ₁ = 1 − early = 0.6. The noise n of a sample derives from its key and t. Labels
    and words are not changed.

    Args:
      velocity: u(t ``(B,)``, x, c).
      keys: typed keys, one per condition in the batch; if the batch is repeated ("together"), the keys repeat too.
      noise: s.
      late: below this t the condition is pure noise.
      early: from this t on the condition is unchanged.
      mix: ψ in [0, 1].

    Raises:
      ValueError: if not 0 <= late < early <= 1.
    """
    if not 0 <= late < early <= 1:
        raise ValueError(f"expected 0 <= late < early <= 1 (t = 0 is noise); got late={late} and early={early}")

    def guided(t: Array, x: Array, c: Condition) -> Array:
        g = jnp.clip((t - late) / (early - late), 0.0, 1.0)
        own = _at(jnp.tile(keys, len(t) // len(keys)), t)

        def anneal(value: Array) -> Array:
            if not jnp.issubdtype(value.dtype, jnp.floating):
                return value
            n = jax.vmap(lambda key: jax.random.normal(key, value.shape[1:], value.dtype))(own)
            noisy = over(jnp.sqrt(g), value) * value + noise * over(jnp.sqrt(1 - g), value) * n
            axes = tuple(range(1, value.ndim))
            mean, std = (f(noisy, axis=axes, keepdims=True) for f in (jnp.mean, jnp.std))
            was, spread = (f(value, axis=axes, keepdims=True) for f in (jnp.mean, jnp.std))
            # A vector of one number has no standard deviation to restore.
            restored = jnp.where(std > 0, (noisy - mean) / jnp.where(std > 0, std, 1) * spread + was, noisy)
            return jnp.where(over(g, value) == 1, value, mix * restored + (1 - mix) * noisy)

        return velocity(t, x, Condition(jax.tree.map(anneal, c.value), c.present))

    return guided


def independent(velocity: CondVelocity, c: Condition, keys: PRNGKey, draw: Callable[[PRNGKey], PyTree]) -> Reference:
    """Returns u(t, x, ĉ), ĉ drawn independently of x: for ICG, with ``cfg`` (Sadat et al. 2024, arXiv 2407.02687, §4).

    It takes the place of u(t, x, ∅), which the network need not know. In the paper, where w is our γ, a ĉ is drawn at
    every step; here that of a sample derives from its key and t, so it is the same whenever that t is evaluated again.
    Fields that c leaves out stay ∅. On average over ĉ the reference is the mean of the u(t, x, ĉ), which is not
    u(t, x, ∅): that weighs them by p(ĉ|x_t).

    As a function of t this velocity is not continuous: take a solver with steps of its own.

    Args:
      velocity: u(t ``(B,)``, x, c).
      c: the condition that is followed, batch B; ĉ has its fields, dtypes and ``present``.
      keys: typed keys ``(B,)``.
      draw: key () -> values of all fields, without a batch axis; uniform over classes in the paper.
    """

    def told(t: Array, c: Condition) -> tuple[Array, Condition]:
        drawn = jax.vmap(draw)(_at(keys, t))
        return t, Condition(jax.tree.map(lambda value, other: other.astype(value.dtype), c.value, drawn), c.present)

    return Reference(velocity, c, told)


def retimed(
    velocity: CondVelocity, c: Condition, keys: PRNGKey, *, noise: float = 0.3, exponent: float = 1.0
) -> Reference:
    """Returns u(t̃, x, c) at a perturbed time t̃: for TSG, with ``cfg`` (Sadat et al. 2024, arXiv 2407.02687, eq. 8).

    t̃ = t + s(1 − t)^α·n, n ~ N(0, 1), clipped to [0, 1]. It works for any network, also without ∅ or a condition. The
    paper, where w is our γ, perturbs the embedding e of its time τ = 1 − t instead, ẽ = e + sτ^α·n, with an s for each
    network that makes the noise about as large as e. Here s is in units of t, for networks whose embedding is their own
    affair, and 0.3 is about the standard deviation of t on [0, 1]. The n of a sample derives from its key and t.

    As a function of t this velocity is not continuous: take a solver with steps of its own.

    Args:
      velocity: u(t ``(B,)``, x, c).
      c: the condition that is followed, batch B.
      keys: typed keys ``(B,)``.
      noise: s, 0 or more.
      exponent: α, 0 or more: 0 for the same noise at all t, more for less of it near the data.

    Raises:
      ValueError: if ``noise`` or ``exponent`` is negative or not finite.
    """
    if not (0 <= noise < math.inf and 0 <= exponent < math.inf):
        raise ValueError(f"expected a finite noise and exponent of 0 or more; got noise={noise}, exponent={exponent}")

    def told(t: Array, c: Condition) -> tuple[Array, Condition]:
        n = jax.vmap(lambda key: jax.random.normal(key, (), t.dtype))(_at(keys, t))
        return jnp.clip(t + noise * (1 - t) ** exponent * n, 0.0, 1.0), c

    return Reference(velocity, c, told)


def _at(keys: PRNGKey, t: Array) -> PRNGKey:
    """Returns keys ``(B,)`` that depend on those given and on t ``(B,)``, to the bit."""
    bits = jax.lax.bitcast_convert_type(t.astype(jnp.float32), jnp.uint32)
    return jax.vmap(jax.random.fold_in)(keys, bits)
