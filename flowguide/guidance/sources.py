"""Guidance without a reference velocity at (t, x): classifier gradients, look-ahead, annealed conditions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flowguide import condition, paths
from flowguide.condition import Condition
from flowguide.guidance.schedules import constant
from flowguide.paths import Path
from flowguide.solvers.solver import over
from flowguide.typing import Array, CondVelocity, PRNGKey, Schedule, Velocity


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
        bits = jax.lax.bitcast_convert_type(t.astype(jnp.float32), jnp.uint32)
        own = jax.vmap(jax.random.fold_in)(jnp.tile(keys, len(t) // len(keys)), bits)

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
