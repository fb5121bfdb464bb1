"""Guidance rules: combine the conditional velocity and its references into one velocity.

A rule is a function (t, x, v, refs) -> guided velocity. v is the conditional velocity and refs a tuple of reference
velocities of its shape; ``guide`` evaluates them. A rule with memory is a ``StatefulRule``. This module has the affine
rules and the wrappers that modify the result of any rule; the rules that change the reference or the difference are in
``projection``, ``magnitude`` and ``posterior``. Rules compose like functions:

    rescale(zero_star(cfg(gamma)), phi=0.7)

Rule constructors take the scale γ first, then other schedules, then the path; numbers are keyword-only.

Affine rules give the same result in velocities, scores, noise and data predictions. Norms, standard deviations,
projections and thresholds do not: each of those documents the space in which it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp

from flowguide import paths
from flowguide.paths import Path
from flowguide.solvers.solver import over
from flowguide.typing import Array, PyTree, Rule, Schedule


class StatefulRule(NamedTuple):
    """A rule with memory of earlier steps.

    Attributes:
      init: x -> memory.
      apply: (memory, t, x, v, refs) -> (guided velocity, memory).
      pause: memory -> memory, after a step in which the rule was not applied (outside the interval, for example). By
        default the memory is kept.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array, Array, Array, tuple[Array, ...]], tuple[Array, PyTree]]
    pause: Callable[[PyTree], PyTree] = lambda memory: memory


# What wraps a rule returns the kind that it got, where that is known.
AnyRule = TypeVar("AnyRule", Rule, StatefulRule, Rule | StatefulRule)


def remember(rule: Rule | StatefulRule) -> StatefulRule:
    """Returns the rule as a ``StatefulRule``, with empty memory if it has none."""
    if isinstance(rule, StatefulRule):
        return rule
    return StatefulRule(lambda x: (), lambda memory, t, x, v, refs: (rule(t, x, v, refs), memory))


def around(
    rule: AnyRule,
    *,
    before: Callable[[Array, Array, Array, tuple[Array, ...]], tuple[Array, ...]] | None = None,
    after: Callable[[Array, Array, Array, Array], Array] | None = None,
) -> AnyRule:
    """Wraps a rule to change its references before, or its result after; its memory, if any, is kept.

    Args:
      rule: with or without memory.
      before: (t, x, v, refs) -> refs.
      after: (t, x, v, guided) -> guided.
    """

    def apply(memory: PyTree, t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> tuple[Array, PyTree]:
        refs = refs if before is None else before(t, x, v, refs)
        guided, memory = stateful.apply(memory, t, x, v, refs)
        return (guided if after is None else after(t, x, v, guided)), memory

    stateful = remember(rule)
    if isinstance(rule, StatefulRule):
        return StatefulRule(rule.init, apply, rule.pause)
    # A plain rule, as the type variable is then.
    return lambda t, x, v, refs: apply((), t, x, v, refs)[0]  # pyright: ignore[reportReturnType]


def only(refs: tuple[Array, ...], what: str) -> Array:
    """Returns the single reference of a rule that takes one.

    Raises:
      ValueError: if there is not exactly one reference.
    """
    if len(refs) != 1:
        raise ValueError(f"{what} takes one reference velocity; got {len(refs)}: combine several with ``composed``")
    return refs[0]


def cfg(gamma: Schedule) -> Rule:
    """Classifier-free guidance (1 − γ)·u_ref + γ·v, with one reference (Ho & Salimans 2022, eq. 6, w = γ − 1).

    With the null velocity as reference this is plain CFG; with that of a negative condition, the negative prompt that
    *replaces* ∅; with that of a weaker network, autoguidance (Karras et al. 2024, eq. 3). At γ = 1 it is exactly v, and
    at γ = 0 exactly the reference.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        ref, g = only(refs, "cfg"), over(gamma(t), v)
        return (1 - g) * ref + g * v

    return rule


def cfg_negative(gamma: Schedule, gamma_negative: Schedule) -> Rule:
    """CFG with separately weighted negative conditions: u_∅ + γ(v − u_∅) − γ_n·Σ_d(u_d − u_∅).

    References: the null velocity, then that of each negative condition d. With one d and γ_n = γ − 1 this equals
    ``cfg`` with d in place of ∅. The sum over several d is the composition of Liu et al. 2022, eq. 11.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        null, *negatives = refs
        g, n = over(gamma(t), v), over(gamma_negative(t), v)
        return (1 - g + n * len(negatives)) * null + g * v - n * sum(negatives)

    return rule


def composed(weights: Sequence[Schedule]) -> Rule:
    """u_∅ + γ_0(v − u_∅) + Σ γ_i(u_i − u_∅), weights of any sign (Liu et al. 2022, eq. 11).

    References: the null velocity, then one for each further weight.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        null, *others = refs
        if 1 + len(others) != len(weights):
            raise ValueError(f"expected a reference for ∅ and for each of {len(weights) - 1} weights; got {len(refs)}")
        return null + sum(over(w(t), v) * (u - null) for w, u in zip(weights, (v, *others), strict=True))

    return rule


def perturbed(gamma: Schedule, strength: Schedule) -> Rule:
    """u_∅ + γ(v − u_∅) + s(v − u_p): CFG, plus guidance away from a perturbed copy of the network.

    The perturbation can be skipped layers (Hyung et al. 2024, STG), identity attention (Ahn et al. 2024, PAG) or
    blurred queries (Hong 2024, SEG). References: the null velocity, then the perturbed conditional one.
    """

    def rule(t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> Array:
        null, worse = refs
        return null + over(gamma(t), v) * (v - null) + over(strength(t), v) * (v - worse)

    return rule


def rescale(rule: AnyRule, *, phi: Array | float = 0.7) -> AnyRule:
    """Rescales the standard deviation of a rule's result towards that of v (Lin et al. 2024, eqs. 14-16).

    φ·w·std(v)/std(w) + (1 − φ)·w, where w is the rule's result and std is per sample, over all its axes; φ = 0 changes
    nothing, φ = 1 rescales fully. The std is that of velocities; in another space this is a different rule.
    """

    def after(t: Array, x: Array, v: Array, guided: Array) -> Array:
        axes = tuple(range(1, v.ndim))
        std = jnp.std(guided, axis=axes, keepdims=True)
        # A velocity with std 0 is left as it is.
        ratio = jnp.where(std > 0, jnp.std(v, axis=axes, keepdims=True) / jnp.where(std > 0, std, 1), 1)
        return guided * (phi * ratio + 1 - phi)

    return around(rule, after=after)


def renormalise(rule: AnyRule) -> AnyRule:
    """Shortens a result that is longer than v to the norm of v, per sample and in velocities; never lengthens it."""

    def after(t: Array, x: Array, v: Array, guided: Array) -> Array:
        return guided * jnp.minimum(1.0, norm(v) / jnp.maximum(norm(guided), jnp.finfo(guided.dtype).tiny))

    return around(rule, after=after)


def threshold(rule: AnyRule, path: Path, *, percentile: float = 99.5, largest: float = 1.0) -> AnyRule:
    """Dynamic thresholding of the data prediction (Saharia et al. 2022, Imagen, §2.3).

    D = E[x1|x_t] of the guided velocity is clipped to [−s, s], where s is the percentile of |D|, per sample, and if s
    exceeds ``largest``, D is scaled down by largest/s. For data in [−largest, largest].
    """

    def after(t: Array, x: Array, v: Array, guided: Array) -> Array:
        d = paths.velocity_to_x1(path, t, x, guided)
        axes = tuple(range(1, d.ndim))
        s = jnp.maximum(jnp.percentile(jnp.abs(d), percentile, axis=axes, keepdims=True), largest)
        return guided + data_difference(path, t, jnp.clip(d, -s, s) * (largest / s) - d)

    return around(rule, after=after)


def zero_init(rule: AnyRule, *, until: Array | float = 0.04) -> AnyRule:
    """Sets the velocity to 0 for t < ``until`` (Fan et al. 2025, CFG-Zero*, where it is 4 % of the steps).

    The paper finds that the first velocities of a network are its worst. With few steps this makes samples worse.
    """
    return around(rule, after=lambda t, x, v, guided: over(jnp.asarray(t >= until, guided.dtype), guided) * guided)


def first_channels(rule: AnyRule, *, count: int) -> AnyRule:
    """Applies a rule to the first ``count`` channels of the last axis; the others keep v.

    The rule sees those channels of x, v and the references alone, so its norms, projections and memory are theirs. The
    rule of DiT and SiT, which guide 3 of 4 (Peebles & Xie 2023, released code).

    Raises:
      ValueError: in use, if x has less channels.
    """
    stateful = remember(rule)

    def init(x: Array) -> PyTree:
        return stateful.init(x[..., :count])

    def apply(memory: PyTree, t: Array, x: Array, v: Array, refs: tuple[Array, ...]) -> tuple[Array, PyTree]:
        if not 1 <= count <= x.shape[-1]:
            raise ValueError(f"there are {x.shape[-1]} channels to guide, the last axis; got {count}")
        first = tuple(ref[..., :count] for ref in refs)
        guided, memory = stateful.apply(memory, t, x[..., :count], v[..., :count], first)
        return jnp.concatenate([guided.astype(v.dtype), v[..., count:]], axis=-1), memory

    if isinstance(rule, StatefulRule):
        return StatefulRule(init, apply, rule.pause)
    return lambda t, x, v, refs: apply((), t, x, v, refs)[0]  # pyright: ignore[reportReturnType]


def norm(x: Array) -> Array:
    """Euclidean norm of each sample, ``(B, 1, ..)``; its gradient at 0 is 0."""
    square = inner(x, x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def inner(x: Array, y: Array) -> Array:
    """Inner product of each pair of samples, ``(B, 1, ..)``."""
    return jnp.sum(x * y, axis=tuple(range(1, x.ndim)), keepdims=True)


def data_difference(path: Path, t: Array, difference: Array) -> Array:
    """Converts a difference of data predictions to one of velocities, by the factor Δ/σ; 0 where σ = 0."""
    sigma = path.sigma(t)
    safe = jnp.where(sigma == 0, 1.0, sigma)
    return over(jnp.where(sigma == 0, 0.0, paths.wronskian(path, t) / safe), difference) * difference
