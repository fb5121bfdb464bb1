"""Guidance scales over time, γ(t)."""

from __future__ import annotations

import jax.numpy as jnp

from flowguide.typing import Array, Schedule


def constant(gamma: Array | float) -> Schedule:
    """γ at all times; γ is () or, for a scale of each sample's own, ``(B,)``."""
    gamma = jnp.asarray(gamma, jnp.float32)
    return lambda t: gamma


def interval(gamma: Array | float, start: Array | float, stop: Array | float, outside: float = 1.0) -> Schedule:
    """γ for start ≤ t ≤ stop and ``outside`` elsewhere (Kynkäänniemi et al. 2024, in our time).

    The scale outside is 1, plain conditional sampling, unless a weight that rests at 0 is scheduled.
    """
    gamma = jnp.asarray(gamma, jnp.float32)
    return lambda t: jnp.where((t >= start) & (t <= stop), gamma, outside)
