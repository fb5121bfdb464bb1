"""Guidance scales over time, γ(t); any function of t will do, these are the usual ones.

A scale is () or, for one of each sample's own, ``(B,)``; t is () or ``(B,)``. t = 0 is noise and t = 1 data: papers on
diffusion often count the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax.scipy.special import betaln

from flowguide.paths import Path
from flowguide.typing import Array, Schedule


def constant(gamma: Array | float) -> Schedule:
    """γ at all times."""
    gamma = jnp.asarray(gamma, jnp.float32)
    return lambda t: gamma


def within(schedule: Schedule, start: Array | float, stop: Array | float, outside: float = 1.0) -> Schedule:
    """A schedule for start ≤ t ≤ stop, and ``outside`` elsewhere (Kynkäänniemi et al. 2024, in our time).

    The scale outside is 1, plain conditional sampling, unless a weight that rests at 0 is scheduled.
    """
    return lambda t: jnp.where((t >= start) & (t <= stop), schedule(t), outside)


def interval(gamma: Array | float, start: Array | float, stop: Array | float, outside: float = 1.0) -> Schedule:
    """γ for start ≤ t ≤ stop and ``outside`` elsewhere: see ``within``."""
    return within(constant(gamma), start, stop, outside)


def linear(gamma: Array | float) -> Schedule:
    """1 + 2(γ − 1)t: of mean γ, from 1 at noise to 2γ − 1 at data (Wang et al. 2024, arXiv 2404.13040, "linear")."""
    return _shaped(gamma, lambda t: 2 * t)


def cosine(gamma: Array | float) -> Schedule:
    """1 + (γ − 1)(1 − cos πt): of mean γ, from 1 at noise to 2γ − 1 at data (Wang et al. 2024, "cosine")."""
    return _shaped(gamma, lambda t: 1 - jnp.cos(math.pi * t))


def power(gamma: Array | float, exponent: float = 2.0) -> Schedule:
    """1 + (γ − 1)(k + 1)t^k: of mean γ; k = 0 is constant and k = 1 linear."""
    return _shaped(gamma, lambda t: (exponent + 1) * jnp.power(t, exponent))


def beta(gamma: Array | float, a: float = 2.0, b: float = 2.0) -> Schedule:
    """γ·t^{a−1}(1 − t)^{b−1}/B(a, b): a Beta density of mean γ over [0, 1] (Malarz et al. 2025, β-CFG).

    For a, b > 1 it is 0 at both ends, where sampling is then *unconditional*, not conditional.
    """
    norm = jnp.exp(betaln(a, b))
    gamma = jnp.asarray(gamma, jnp.float32)
    return lambda t: gamma * jnp.power(t, a - 1) * jnp.power(1 - t, b - 1) / norm


def plus_plus(path: Path, ts: Array, strength: Array | float) -> Schedule:
    """The scale at which a first-order step on this grid is CFG++'s (Chung et al. 2024, arXiv 2406.08070).

    CFG++ renoises with the unconditional noise: x' = α'(D_∅ + λ(D_c − D_∅)) + σ'E[x0|x_t, ∅]. That is the ``ddim`` step
    (Euler's on the linear path) with γ = λα'/(α' − ασ'/σ): λ at the ends, and about λ·t/dt between. There is no limit
    of small steps: with the number of steps its strength grows. Other solvers than ``ddim`` make something else of it.

    Args:
      path: the path.
      ts: the grid ``(N + 1,)`` of the solve, increasing.
      strength: λ in [0, 1], () or ``(B,)``; 0.6 is theirs.
    """
    strength, ts = jnp.asarray(strength, jnp.float32), jnp.asarray(ts)

    def schedule(t: Array) -> Array:
        i = jnp.clip(jnp.searchsorted(ts, t, side="right") - 1, 0, len(ts) - 2)
        start, end = ts[i], ts[i + 1]
        gain = path.alpha(end) - path.alpha(start) * path.sigma(end) / path.sigma(start)
        return strength * path.alpha(end) / gain

    return schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "power": power,
    "beta": beta,
}


def _shaped(gamma: Array | float, shape: Callable[[Array], Array]) -> Schedule:
    """1 + (γ − 1)·shape(t)."""
    gamma = jnp.asarray(gamma, jnp.float32)
    return lambda t: 1 + (gamma - 1) * shape(jnp.asarray(t))
