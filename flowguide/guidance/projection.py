"""Rules that project the reference or the difference, or scale its frequencies separately."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flowguide import paths
from flowguide.guidance.rules import AnyRule, StatefulRule, around, data_difference, inner, norm, only
from flowguide.paths import Path
from flowguide.solvers.solver import over
from flowguide.typing import Array, PyTree, Rule, Schedule


def zero_star(rule: AnyRule) -> AnyRule:
    """CFG-Zero*: scales the reference to the best fit of v (Fan et al. 2025, arXiv 2503.18886).

    The reference becomes ``s*·u_ref``, ``s* = ⟨v, u_ref⟩/‖u_ref‖²``, per sample, in velocities. In one dimension it is
    v, so there is no guidance left.
    """

    def before(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> tuple[Array, ...]:
        ref = only(refs, "zero_star")
        return (ref * (inner(v, ref) / (inner(ref, ref) + 1e-8)),)

    return around(rule, before=before)


def tangential(rule: AnyRule) -> AnyRule:
    """TCFG: keeps only the component of the reference along the direction it shares with v (Kwon et al. 2025).

    That direction is the first right singular vector of [v; u_ref], per sample; with q the first eigenvector of their 2
    × 2 Gram matrix, u_ref' = q₂(q₁v + q₂u_ref). In one dimension it is u_ref, which gives plain CFG. (arXiv
    2503.18137.)
    """

    def before(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> tuple[Array, ...]:
        ref = only(refs, "tangential")
        angle = 0.5 * jnp.arctan2(2 * inner(v, ref), inner(v, v) - inner(ref, ref))
        q1, q2 = jnp.cos(angle), jnp.sin(angle)
        return (q2 * (q1 * v + q2 * ref),)

    return around(rule, before=before)


def projected(
    gamma: Schedule, path: Path, *, parallel: float = 0.0, largest: float = jnp.inf, momentum: float = 0.0
) -> Rule | StatefulRule:
    """Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, APG), on data predictions D.

    g = D_v − D_ref (+ momentum·g of the previous step), shortened to ``largest`` if longer; its component along D_v,
    which causes oversaturation, is multiplied by ``parallel``, and D = D_v + (γ − 1)g'. With 1, ∞ and 0 this is CFG;
    with parallel = 0 in one dimension it is v. The paper's values for SDXL: parallel 0, largest 15, momentum −0.5.

    Args:
      gamma: the scale γ(t).
      path: the path.
      parallel: η of the paper.
      largest: r of the paper, in units of the data; the norm is over the whole sample.
      momentum: β of the paper; if not 0, the rule has memory.
    """

    def guided(t: Array, x: Array, v: Array, g: Array) -> Array:
        d = paths.velocity_to_x1(path, t, x, v)
        if largest < jnp.inf:
            g = g * jnp.minimum(1.0, largest / jnp.maximum(norm(g), jnp.finfo(g.dtype).tiny))
        along = d * (inner(g, d) / jnp.maximum(inner(d, d), jnp.finfo(d.dtype).tiny))
        return v + (over(gamma(t), v) - 1) * data_difference(path, t, g + (parallel - 1) * along)

    def difference(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        ref = only(refs, "projected")
        return paths.velocity_to_x1(path, t, x, v) - paths.velocity_to_x1(path, t, x, ref)

    if momentum == 0:
        return lambda t, x, v, refs: guided(t, x, v, difference(t, x, v, refs))

    def apply(memory: PyTree, t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> tuple[Array, PyTree]:
        g = difference(t, x, v, refs) + momentum * memory
        return guided(t, x, v, g), g.astype(memory.dtype)

    return StatefulRule(jnp.zeros_like, apply)


def perpendicular(gamma: Schedule, gamma_negative: Schedule) -> Rule:
    """Perp-Neg: u_∅ + γ(v − u_∅) − γ_n·Σ_d(u_d − u_∅)_⊥ (Armandpour et al. 2023, arXiv 2304.04968).

    Only the component of each negative difference perpendicular to v − u_∅ counts, per sample and in velocities, so
    that what c and d have in common is not removed. References: the null velocity, then one for each d. In the paper
    the negative part is also multiplied by γ. In one dimension there is no perpendicular component: plain CFG.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        null, *negatives = refs
        towards = v - null
        square = jnp.maximum(inner(towards, towards), jnp.finfo(v.dtype).tiny)
        away = sum((u - null) - towards * (inner(u - null, towards) / square) for u in negatives)
        return null + over(gamma(t), v) * towards - over(gamma_negative(t), v) * away

    return rule


def frequencies(gammas: Sequence[Schedule]) -> Rule:
    """Frequency-decoupled guidance, with one scale per pyramid level (Sadat et al. 2025, arXiv 2506.19713, FDG).

    v + Σ_l (γ_l − 1)·L_l(v − u_ref) with the levels L_l of the Laplacian pyramid, the finest first; the pyramid is
    linear, so equal scales give CFG. For images ``(B, H, W, C)`` whose sides allow that many halvings. The paper uses
    [10, 5], from fine to coarse.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        levels = laplacian(v - only(refs, "frequencies"), len(gammas))
        return v + sum((over(g(t), v) - 1) * level for g, level in zip(gammas, levels, strict=True))

    return rule


def laplacian(x: Array, count: int) -> list[Array]:
    """Returns the levels of the Laplacian pyramid of images ``(B, H, W, C)``, each at full size; they sum to x.

    Raises:
      ValueError: if x is not a batch of images, or a side is too small for that many halvings.
    """
    if x.ndim != 4 or min(x.shape[1:3]) < 2 ** (count - 1):
        raise ValueError(
            f"{count} levels need images (B, H, W, C) with sides of {2 ** (count - 1)} or more; got {x.shape}"
        )
    levels, rest = [], x
    for level in range(1, count):
        small = (x.shape[0], *(-(-side // 2**level) for side in x.shape[1:3]), x.shape[3])
        coarse = jax.image.resize(jax.image.resize(rest, small, "linear"), x.shape, "linear")
        levels.append(rest - coarse)
        rest = coarse
    return [*levels, rest]
