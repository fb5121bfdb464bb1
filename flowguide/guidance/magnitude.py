"""Rules whose scale depends on the magnitude of the difference from the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowguide import paths
from flowguide.guidance.rules import inner, norm, only
from flowguide.paths import Path
from flowguide.solvers.solver import over
from flowguide.typing import Array, Rule, Schedule


def magnitude_aware(gamma: Schedule, *, alpha: float = 8.0) -> Rule:
    """MAMBO-G: CFG with γ_eff = 1 + (γ − 1)·exp(−α‖v − u_ref‖/‖u_ref‖), per sample (arXiv 2508.03442).

    Large differences, as at the start of sampling, are guided less. α = 0 is CFG; the paper uses γ = 10, α = 8.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        ref = only(refs, "magnitude_aware")
        ratio = norm(v - ref) / jnp.maximum(norm(ref), jnp.finfo(v.dtype).tiny)
        return v + (over(gamma(t), v) - 1) * jnp.exp(-alpha * ratio) * (v - ref)

    return rule


def beta_normalised(gamma: Schedule, path: Path, *, exponent: float = 1.0) -> Rule:
    """β-CFG: u_∅ + γ(t)·(v − u_∅)/‖e_v − e_∅‖^q, with e = E[x0|x_t] (Malarz et al. 2025, arXiv 2502.10574).

    γ(t) is the Beta density of ``schedules.beta`` and q is ``exponent``. The norm is over the whole sample, in units of
    noise, so the scale depends on the dimension; q = 0 is CFG with that schedule.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        ref = only(refs, "beta_normalised")
        tiny = jnp.finfo(v.dtype).eps
        length = norm(over(path.alpha(t) / paths.wronskian(path, t), v) * (v - ref))
        return ref + over(gamma(t), v) * (v - ref) / jnp.power(jnp.maximum(length, tiny), exponent)

    return rule


def contrastive(gamma: Schedule, gamma_negative: Schedule, path: Path, *, tau: float = 0.2) -> Rule:
    """Contrastive guidance (Chang et al. 2024, arXiv 2411.17077): weights that saturate.

    u_∅ + 2γ(v − u_∅)/(1 + e^{−τa}) − 2γ_n·Σ_d(u_d − u_∅)·e^{−τb}/(1 + e^{−τb}), with a and b the squared norms of the
    differences of the noise predictions: far from d it is not pushed away from d. References: the null velocity, then
    one for each d. At τ = 0 it is ``cfg_negative``; the norms are over the whole sample, so τ depends on the dimension.
    The paper uses one scale, γ = γ_n = 7.5, and τ = 0.2.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        null, *negatives = refs
        to_noise = over(jnp.square(path.alpha(t) / paths.wronskian(path, t)), v)

        def square(difference: Array) -> Array:
            return to_noise * inner(difference, difference)

        near = 2 * jax.nn.sigmoid(tau * square(v - null)) * (v - null)
        away = sum(2 * jax.nn.sigmoid(-tau * square(u - null)) * (u - null) for u in negatives)
        return null + over(gamma(t), v) * near - over(gamma_negative(t), v) * away

    return rule
