"""Guidance rules: how the conditional velocity and its references become one velocity.

A rule is a function (t, x, v, refs) -> guided velocity. v is the conditional velocity and refs a tuple of reference
velocities of its shape; where the references come from is no business of a rule (see ``guide``).
"""

from __future__ import annotations

import jax.numpy as jnp

from flowguide.solvers.solver import over
from flowguide.typing import Array, Rule, Schedule


def cfg(gamma: Schedule) -> Rule:
    """Classifier-free guidance (1 − γ)·u_ref + γ·v, with one reference (Ho & Salimans 2022, eq. 6, w = γ − 1).

    With the null velocity for reference this is plain CFG; with that of a negative condition, the negative
    prompt that *replaces* ∅. At γ = 1 it is v, and at γ = 0 the reference, exactly.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        (ref,) = refs
        g = over(gamma(t), v)
        return (1 - g) * ref + g * v

    return rule


def cfg_negative(gamma: Schedule, gamma_negative: Schedule) -> Rule:
    """CFG with negative conditions of a weight of their own: u_∅ + γ(v − u_∅) − γ_n·Σ_d(u_d − u_∅).

    References: the null velocity, then that of each negative condition d. With one d and γ_n = γ − 1 this equals
    ``cfg`` with d in the place of ∅. The sum over several d is composition by Liu et al. 2022, eq. 11.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        null, *negatives = refs
        g, n = over(gamma(t), v), over(gamma_negative(t), v)
        return (1 - g + n * len(negatives)) * null + g * v - n * sum(negatives)

    return rule


def rescale(rule: Rule, phi: Array | float = 0.7) -> Rule:
    """Pulls the standard deviation of a rule's result back to that of v (Lin et al. 2024, eqs. 14-16).

    φ·w·std(v)/std(w) + (1 − φ)·w for w the rule's result, each sample with its own std over all its axes; φ = 0
    changes nothing, φ = 1 rescales fully. Here the std is that of velocities; in another space it is another rule.
    """

    def rescaled(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        guided = rule(t, x, v, refs)
        axes = tuple(range(1, v.ndim))
        std = jnp.std(guided, axis=axes, keepdims=True)
        # A constant velocity has nothing to rescale.
        ratio = jnp.where(std > 0, jnp.std(v, axis=axes, keepdims=True) / jnp.where(std > 0, std, 1), 1)
        return guided * (phi * ratio + 1 - phi)

    return rescaled
