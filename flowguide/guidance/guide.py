"""Guided velocities: evaluates the conditional velocity and its references, and combines them by a rule.

A guided velocity is a velocity, so solvers need not know about guidance. Methods differ in where the references come
from (the null condition, a negative one, another network) and in the rule that combines them; this module evaluates
them, and only those that are needed. A rule with memory, or reused references, give a ``StatefulVelocity``, which
``solve`` also accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flowguide import condition
from flowguide.condition import Condition
from flowguide.guidance import rules, schedules
from flowguide.guidance.rules import StatefulRule
from flowguide.solvers.solver import Solver, StatefulVelocity, evaluation_times, over
from flowguide.typing import Array, CondVelocity, PyTree, Rule, Schedule, Velocity

Passes = Literal["together", "apart"]

_Evaluate: TypeAlias = Callable[[Array, Array], tuple[Array, tuple[Array, ...]]]  # t, x -> v, references


class Terms(IntEnum):
    """Which velocities a rule needs at some t."""

    CONDITIONAL = 0  # only the conditional velocity, which is the guided one
    ALL = 1
    REFERENCES = 2  # only the references: the conditional velocity has no weight


class Reference(NamedTuple):
    """A reference velocity: a network (often the guided one itself) under some condition.

    Attributes:
      velocity: of the network.
      condition: batch B.
      told: (t ``(B,)``, condition) -> the time and the condition that the network gets in their place; None for these
        themselves.
    """

    velocity: CondVelocity
    condition: Condition
    told: Callable[[Array, Condition], tuple[Array, Condition]] | None = None


class Guidance(NamedTuple):
    """Everything that turns a conditional velocity into a guided one.

    Attributes:
      references: the velocities that the rule gets in addition to the conditional one.
      rule: combines them.
      terms: t () or ``(B,)`` -> ``Terms`` as int32 (), what the rule needs at t.
      interval: the rule is applied for start ≤ t ≤ stop; at other times the guided velocity is the conditional one
        (Kynkäänniemi et al. 2024, with t = 0 at noise). Both may be traced. None for all times.
    """

    references: tuple[Reference, ...]
    rule: Rule | StatefulRule
    terms: Callable[[Array], Array]
    interval: tuple[Array | float, Array | float] | None = None


def inside(guidance: Guidance, t: Array) -> Array:
    """Whether t is in the guidance interval; bool of the shape of t."""
    if guidance.interval is None:
        return jnp.ones(jnp.shape(t), bool)
    start, stop = guidance.interval
    return (t >= start) & (t <= stop)


def needed(guidance: Guidance, t: Array) -> Array:
    """Returns the ``Terms`` that are evaluated at t () or ``(B,)``, int32 (): those of the rule inside the interval."""
    on, terms = inside(guidance, t), guidance.terms(t)
    # If a batch of times lies on both sides of an edge, some samples need the conditional velocity.
    terms = jnp.where(jnp.all(on), terms, jnp.minimum(terms, Terms.ALL))
    return jnp.where(jnp.any(on), terms, Terms.CONDITIONAL)


def evaluations_at(guidance: Guidance, t: Array) -> Array:
    """Returns the network evaluations per sample at t, int32 (): 1, 1 + n or n for n references."""
    n = len(guidance.references)
    return jnp.array([1, 1 + n, n], jnp.int32)[needed(guidance, t)]


def terms_where(
    conditional: Sequence[tuple[Schedule, float]] = (), references: Sequence[tuple[Schedule, float]] = ()
) -> Callable[[Array], Array]:
    """Returns ``Guidance.terms`` of a rule from the schedule values at which a velocity has no weight.

    Args:
      conditional: schedules and values; if every schedule has its value, the rule returns the conditional velocity.
      references: the same; if every schedule has its value, the rule does not use the conditional velocity.

    An empty sequence means that the rule has no such case.
    """

    def all_equal(pairs: Sequence[tuple[Schedule, float]], t: Array) -> Array:
        equal = [jnp.all(schedule(t) == value) for schedule, value in pairs]
        return jnp.all(jnp.array(equal)) if equal else jnp.bool_(False)

    def terms(t: Array) -> Array:
        others = jnp.where(all_equal(references, t), Terms.REFERENCES, Terms.ALL)
        return jnp.where(all_equal(conditional, t), Terms.CONDITIONAL, others)

    return terms


def against(reference: Reference, rule: Rule | StatefulRule, gamma: Schedule) -> Guidance:
    """Returns guidance by a rule with one reference that gives the conditional velocity where γ(t) = 1."""
    return Guidance((reference,), rule, terms_where(conditional=[(gamma, 1.0)]))


def always(references: Sequence[Reference], rule: Rule | StatefulRule) -> Guidance:
    """Returns guidance by a rule that needs all velocities at all times."""
    return Guidance(tuple(references), rule, lambda t: jnp.int32(Terms.ALL))


def classifier_free(
    velocity: CondVelocity,
    c: Condition,
    gamma: Array | float | Schedule,
    *,
    negative: Sequence[Condition] = (),
    gamma_negative: Array | float | Schedule | None = None,
    interval: tuple[float, float] | None = None,
    phi: float = 0.0,
) -> Guidance:
    """Classifier-free guidance of ``velocity`` towards ``c``, away from ``negative``.

    Args:
      velocity: one network for u(t, x, c) and u(t, x, ∅).
      c: the condition to follow, batch B. Only its structure is used here.
      gamma: the scale γ, () or ``(B,)``, or a schedule γ(t); an array may be traced. 0 is unconditional, 1 conditional,
        above 1 guided.
      negative: conditions to avoid, each of batch B.
      gamma_negative: weight γ_n of the negative conditions, u_∅ + γ(u_c − u_∅) − γ_n·Σ(u_d − u_∅). With None, the one
        negative condition replaces ∅ instead, (1 − γ)u_d + γu_c.
      interval: guide for t between these two times, both included; the conditional velocity is used elsewhere.
      phi: strength of the rescaling of Lin et al. 2024; 0 for none.

    Raises:
      ValueError: if several negative conditions are given without ``gamma_negative``, or ``gamma_negative`` without
        any.
    """

    if gamma_negative is None and len(negative) > 1:
        raise ValueError(
            f"only one negative condition can replace the null condition; got {len(negative)}: give gamma_negative"
        )
    if gamma_negative is not None and not negative:
        raise ValueError("gamma_negative is given, but no negative condition: give negative, or leave it out")

    g = gamma if callable(gamma) else schedules.constant(gamma)
    null = Reference(velocity, condition.null(c))
    avoided = tuple(Reference(velocity, d) for d in negative)
    if gamma_negative is None:
        references, rule, conditional = avoided or (null,), rules.cfg(g), [(g, 1.0)]
    else:
        n = gamma_negative if callable(gamma_negative) else schedules.constant(gamma_negative)
        references, rule, conditional = (null, *avoided), rules.cfg_negative(g, n), [(g, 1.0), (n, 0.0)]
    guidance = Guidance(references, rule, terms_where(conditional, references=[(g, 0.0)]), interval)
    return rescaled(guidance, phi) if phi else guidance


def rescaled(guidance: Guidance, phi: Array | float) -> Guidance:
    """Returns the guidance with its result rescaled by φ (``rules.rescale``).

    The rescaled rule uses the standard deviation of the conditional velocity, so it needs that velocity at any weight.
    """
    rule = rules.rescale(guidance.rule, phi=phi)
    return guidance._replace(rule=rule, terms=lambda t: jnp.minimum(guidance.terms(t), Terms.ALL))


def on_channels(guidance: Guidance, count: int) -> Guidance:
    """Returns the guidance of the first ``count`` channels (``rules.first_channels``).

    The others are those of the conditional velocity, so it is needed at any weight.
    """
    rule = rules.first_channels(guidance.rule, count=count)
    return guidance._replace(rule=rule, terms=lambda t: jnp.minimum(guidance.terms(t), Terms.ALL))


def compose(
    velocity: CondVelocity,
    c: Condition,
    gamma: Array | float | Schedule,
    others: Sequence[tuple[Condition, Array | float | Schedule]],
) -> Guidance:
    """u_∅ + γ(u_c − u_∅) + Σ γ_i(u_i − u_∅): AND for positive, NOT for negative weights (Liu et al. 2022, eq. 11).

    A product of p(c_i|x) if the conditions are independent given x; the same condition twice counts twice.

    Args:
      velocity: one network for all conditions.
      c: the first condition, batch B.
      gamma: its weight.
      others: the other conditions, batch B each, with their weights, () or ``(B,)`` or schedules.
    """
    weights = [w if callable(w) else schedules.constant(w) for w in (gamma, *(w for _, w in others))]
    references = (Reference(velocity, condition.null(c)), *(Reference(velocity, d) for d, _ in others))
    conditional = [(w, float(i == 0)) for i, w in enumerate(weights)]
    return Guidance(references, rules.composed(weights), terms_where(conditional, references=[(weights[0], 0.0)]))


def guide(
    velocity: CondVelocity, c: Condition, guidance: Guidance, passes: Passes = "together", reuse: int = 1
) -> Velocity | StatefulVelocity:
    """Returns the guided velocity, a function of t () or ``(B,)`` and x ``(B, *D)``.

    Only what is ``needed`` at t is computed, by a ``lax.switch``. This only saves work if its index is a scalar, so do
    not vmap over t; a batch of times evaluates whatever any of its members needs.

    A rule with memory pauses in a step that starts outside the interval, or whose terms are CONDITIONAL: its memory
    does not advance, and ``StatefulRule.pause`` determines what is kept.

    Args:
      velocity: the conditional velocity u(t (B,), x, c).
      c: the condition to follow, batch B.
      guidance: references and rule.
      passes: "together" evaluates v and the references of the same network in one call on an (1 + n)-fold batch, best
        for small batches; "apart" makes 1 + n calls and needs less memory.
      reuse: evaluate the references only in every ``reuse``-th guided step; in between, reuse their last difference
        from the conditional velocity (Castillo et al. 2023, arXiv 2312.12487, omit or reuse guidance).

    Returns:
      A velocity; if the rule has memory or ``reuse`` is above 1, a ``StatefulVelocity`` for ``solve``.

    Raises:
      ValueError: if ``passes`` is unknown, or ``reuse`` is below 1.
      TypeError: if c is not a ``Condition``.
    """
    check_passes(passes)
    condition.check_condition(c)
    if reuse < 1:
        raise ValueError(f"reuse is a number of steps, 1 (no reuse) or more; got {reuse}")
    conditional, references = condition.bind(velocity, c), guidance.references

    def everything(t: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
        v, *refs = evaluate((Reference(velocity, c), *references), t, x, passes)
        return v, tuple(refs)

    def without(t: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
        refs = evaluate(references, t, x, passes)
        return jnp.zeros_like(refs[0]), refs

    def only_inside(t: Array, guided: Array, v: Array) -> Array:
        guided = guided.astype(v.dtype)
        # For a scalar t the switch already decides this.
        return jnp.where(over(inside(guidance, t), v), guided, v) if jnp.ndim(t) else guided

    if not isinstance(guidance.rule, StatefulRule) and reuse == 1:
        rule = guidance.rule

        def branch(evaluate: _Evaluate) -> Velocity:
            def combined(t: Array, x: Array) -> Array:
                v, refs = evaluate(t, x)
                return only_inside(t, rule(t, x, v, refs), v)

            return combined

        branches = (conditional, branch(everything), branch(without))
        return lambda t, x: jax.lax.switch(needed(guidance, t), branches, t, x)

    return _remembering(guidance, reuse, conditional, everything, without, only_inside)


def _remembering(
    guidance: Guidance,
    reuse: int,
    conditional: Velocity,
    everything: _Evaluate,
    without: _Evaluate,
    only_inside: Callable[[Array, Array, Array], Array],
) -> StatefulVelocity:
    """Returns the guided velocity of a rule with memory, or one that reuses references, from the parts of ``guide``."""
    references, stateful = guidance.references, rules.remember(guidance.rule)

    def init(x: Array) -> PyTree:
        return stateful.init(x), jnp.int32(0), tuple(jnp.zeros_like(x) for _ in references if reuse > 1)

    def apply(memory: PyTree, t: Array, x: Array) -> tuple[Array, PyTree]:
        past, count, kept = memory

        def alone(t: Array, x: Array) -> tuple[Array, PyTree]:
            return conditional(t, x), (stateful.pause(past), count, kept)

        def again(t: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
            v = conditional(t, x)
            return v, tuple(v - difference for difference in kept)

        def sometimes(t: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
            return jax.lax.cond(count % reuse == 0, everything, again, t, x)

        def branch(evaluate: _Evaluate) -> Callable[[Array, Array], tuple[Array, PyTree]]:
            def guided(t: Array, x: Array) -> tuple[Array, PyTree]:
                v, refs = evaluate(t, x)
                new = [(v - ref).astype(old.dtype) for ref, old in zip(refs, kept, strict=True)] if reuse > 1 else ()
                u, remembered = stateful.apply(past, t, x, v, refs)
                return only_inside(t, u, v), (remembered, count + 1, tuple(new))

            return guided

        if reuse > 1:  # the stored difference needs both velocities, whatever their weights
            return jax.lax.cond(needed(guidance, t) == Terms.CONDITIONAL, alone, branch(sometimes), t, x)
        return jax.lax.switch(needed(guidance, t), (alone, branch(everything), branch(without)), t, x)

    return StatefulVelocity(init, apply)


def evaluate(references: Sequence[Reference], t: Array, x: Array, passes: Passes = "together") -> tuple[Array, ...]:
    """Evaluates the velocities of all references at t () or ``(B,)`` and x ``(B, *D)``.

    "together" calls each network once, with one copy of x per condition; "apart" once per condition.
    """
    times = jnp.broadcast_to(t, x.shape[:1])
    told = [(times, r.condition) if r.told is None else r.told(times, r.condition) for r in references]
    if passes == "apart":
        return tuple(r.velocity(own_t, x, own_c) for r, (own_t, own_c) in zip(references, told, strict=True))
    found: list[Array | None] = [None] * len(references)
    for first in references:
        own = [i for i, r in enumerate(references) if r.velocity is first.velocity and found[i] is None]
        if not own:
            continue
        ts, cs = jnp.concatenate([told[i][0] for i in own]), condition.concatenate(*(told[i][1] for i in own))
        split = jnp.split(first.velocity(ts, jnp.concatenate([x] * len(own)), cs), len(own))
        for i, u in zip(own, split, strict=True):
            found[i] = u
    return tuple(u for u in found if u is not None)


def check_passes(passes: str) -> None:
    """Raises ``ValueError`` unless ``passes`` is "together" or "apart"."""
    if passes not in ("together", "apart"):
        raise ValueError(f'passes must be "together" or "apart"; got {passes!r}')


def network_evaluations(solver: Solver, guidance: Guidance, ts: Array, reuse: int = 1) -> Array:
    """Returns the network evaluations per sample, int32 (), of ``solve`` over ``ts`` with ``guide(..., reuse=reuse)``.

    Each stage costs ``evaluations_at`` its time; a stage that reuses its references costs 1.
    """
    at = evaluation_times(solver, ts)
    if reuse == 1:
        return jnp.sum(jax.vmap(partial(evaluations_at, guidance))(at), dtype=jnp.int32)
    # Every stage evaluates the conditional velocity; its step decides whether the references are evaluated too.
    active = jax.vmap(partial(needed, guidance))(at) != Terms.CONDITIONAL
    stages = [len(solver.first or solver.nodes), *[len(solver.nodes)] * (len(ts) - 2)]
    starts = jnp.cumsum(jnp.array([0, *stages[:-1]]))
    guided_before = jnp.cumsum(active[starts]) - active[starts]
    fresh = jnp.repeat(guided_before % reuse == 0, jnp.array(stages), total_repeat_length=sum(stages))
    return jnp.int32(active.size + len(guidance.references) * jnp.sum(active & fresh))
