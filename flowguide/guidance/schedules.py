"""Guidance schedules γ(t): constant, interval, linear, cosine, power, Beta, exponential.

Any function of t works as a schedule. It returns () or, if each sample has its own scale, ``(B,)``; t is () or
``(B,)``. t = 0 is noise and t = 1 data, while papers on diffusion often use the opposite convention.
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


def within(schedule: Schedule, start: Array | float, stop: Array | float, *, outside: float = 1.0) -> Schedule:
    """The schedule for start ≤ t ≤ stop, and ``outside`` elsewhere (Kynkäänniemi et al. 2024, with t = 0 at noise).

    The default outside is 1, conditional sampling; for a weight whose neutral value is 0, such as γ_n, pass 0.
    """
    return lambda t: jnp.where((t >= start) & (t <= stop), schedule(t), outside)


def interval(gamma: Array | float, start: Array | float, stop: Array | float, *, outside: float = 1.0) -> Schedule:
    """γ for start ≤ t ≤ stop and ``outside`` elsewhere: see ``within``."""
    return within(constant(gamma), start, stop, outside=outside)


def linear(gamma: Array | float) -> Schedule:
    """1 + 2(γ − 1)t: mean γ, from 1 at noise to 2γ − 1 at data (Wang et al. 2024, arXiv 2404.13040, "linear")."""
    return _shaped(gamma, lambda t: 2 * t)


def cosine(gamma: Array | float) -> Schedule:
    """1 + (γ − 1)(1 − cos πt): mean γ, from 1 at noise to 2γ − 1 at data (Wang et al. 2024, "cosine")."""
    return _shaped(gamma, lambda t: 1 - jnp.cos(math.pi * t))


def power(gamma: Array | float, *, exponent: float = 2.0) -> Schedule:
    """1 + (γ − 1)(k + 1)t^k: mean γ; k = 0 is constant and k = 1 linear."""
    return _shaped(gamma, lambda t: (exponent + 1) * jnp.power(t, exponent))


def beta(gamma: Array | float, *, a: float = 2.0, b: float = 2.0) -> Schedule:
    """γ·t^{a−1}(1 − t)^{b−1}/B(a, b): a Beta density with mean γ over [0, 1] (Malarz et al. 2025, β-CFG).

    For a, b > 1 it is 0 at both ends, where sampling is then *unconditional*, not conditional.
    """
    norm = jnp.exp(betaln(a, b))
    gamma = jnp.asarray(gamma, jnp.float32)
    return lambda t: gamma * jnp.power(t, a - 1) * jnp.power(1 - t, b - 1) / norm


def exponential(gamma: Array | float, *, rate: float = math.log(2)) -> Schedule:
    """γ·λe^{λt}/(e^λ − 1), λ = ``rate``: mean γ, and e^λ times as much at data as at noise (Gao et al. 2026, C²FG).

    Eq. 14 of the paper (arXiv 2603.08155) is ω₀·e^{λ(1 − τ)} in its time τ = 1 − t: γ = ω₀(e^λ − 1)/λ. The default λ is
    that for DiT, with ω₀ = 1, which is γ = 1.44.

    Raises:
      ValueError: if ``rate`` is 0 or not finite.
    """
    if rate == 0 or not math.isfinite(rate):
        raise ValueError(f"expected a finite rate other than 0; got {rate}: for a constant γ use constant")
    gamma, scale = jnp.asarray(gamma, jnp.float32), rate / math.expm1(rate)
    return lambda t: gamma * scale * jnp.exp(rate * jnp.asarray(t))


def plus_plus(strength: Array | float, path: Path, ts: Array) -> Schedule:
    """The scale at which a first-order step on this grid is a CFG++ step (Chung et al. 2024, arXiv 2406.08070).

    CFG++ renoises with the unconditional noise: x' = α'(D_∅ + λ(D_c − D_∅)) + σ'E[x0|x_t, ∅]. That is the ``ddim`` step
    (Euler's on the linear path) with γ = λα'/(α' − ασ'/σ): λ at the ends, and about λ·t/dt in between. It has no limit
    for small steps: its strength grows with the number of steps. With solvers other than ``ddim`` it is not CFG++.

    Args:
      strength: λ in [0, 1], () or ``(B,)``; the paper uses 0.6.
      path: the path.
      ts: the grid ``(N + 1,)`` of the solve, increasing.
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
    "exponential": exponential,
}


def _shaped(gamma: Array | float, shape: Callable[[Array], Array]) -> Schedule:
    """1 + (γ − 1)·shape(t)."""
    gamma = jnp.asarray(gamma, jnp.float32)
    return lambda t: 1 + (gamma - 1) * shape(jnp.asarray(t))
