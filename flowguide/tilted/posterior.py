"""log p(c|x_t)/p(c) from velocities, along any trajectory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowguide.guidance.posterior import log_ratio
from flowguide.paths import Path
from flowguide.typing import Array, Velocity


def log_posterior_ratio(path: Path, ts: Array, xs: Array, one: Velocity, other: Velocity) -> Array:
    """Returns log p_t(x_t|c) − log p_t(x_t) = log p(c|x_t)/p(c) at every node of a trajectory, ``(N + 1, B)``.

    It sums the log-ratios of the transition densities of the memoryless processes under c and under ∅ over the steps
    that were taken, as ``guidance.feedback`` and ``guidance.dynamic_negative`` do step by step. The trajectory may have
    any drift, guided or not, but must have the noise of these processes: D_t = κ, that is η = 1.

    Args:
      path: the path.
      ts: nodes ``(N + 1,)``, increasing from 0.
      xs: states at the nodes ``(N + 1, B, *D)``: ``solve(euler_maruyama(path, keys), ..., trajectory=True)``.
      one: the velocity under c.
      other: the velocity under ∅, or another condition.
    """

    def body(level: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
        t, t_next, x, x_next = at
        gained, _ = log_ratio(path, (t, x, one(t, x), other(t, x)), t_next, x_next)
        level = level + gained.astype(level.dtype)
        return level, level

    start = jnp.zeros(xs.shape[1], xs.dtype)
    _, levels = jax.lax.scan(body, start, (ts[:-1], ts[1:], xs[:-1], xs[1:]))
    return jnp.concatenate([start[None], levels])
