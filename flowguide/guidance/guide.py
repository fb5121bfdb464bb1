"""Guided velocities: the one place where a rule meets the velocities it combines.

A guided velocity is a velocity: solvers never know. The methods differ in where the references come from (the null
condition, a negative one, another network) and in the rule that combines them; this file only evaluates them, and
evaluates no more than is needed. A rule with memory, or references that are reused, make a ``StatefulVelocity``, which
``solve`` takes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from flowguide import condition
from flowguide.condition import Condition
from flowguide.guidance import rules, schedules
from flowguide.guidance.rules import StatefulRule
from flowguide.solvers.solver import Solver, StatefulVelocity, evaluation_times
from flowguide.typing import Array, CondVelocity, PyTree, Rule, Schedule, Velocity

Passes = Literal["together", "apart"]


class Terms(IntEnum):
    """Which velocities a rule needs at some t."""

    CONDITIONAL = 0  # the guided velocity is the conditional one
    ALL = 1
    REFERENCES = 2  # the conditional one has no weight


class Reference(NamedTuple):
    """Where a reference velocity comes from: a network (often the guided one itself) under some condition."""

    velocity: CondVelocity
    condition: Condition


class Guidance(NamedTuple):
    """All that turns a conditional velocity into a guided one.

    Attributes:
      references: what the rule is given beside the conditional velocity.
      rule: combines them.
      terms: t () or ``(B,)`` -> ``Terms`` as int32 (), what is evaluated at t.
    """

    references: tuple[Reference, ...]
    rule: Rule | StatefulRule
    terms: Callable[[Array], Array]


def against(reference: Reference, rule: Rule | StatefulRule, gamma: Schedule) -> Guidance:
    """Guidance by a rule of one reference that is the conditional velocity where γ(t) = 1."""

    def terms(t: Array) -> Array:
        return jnp.where(jnp.any(gamma(t) != 1), Terms.ALL, Terms.CONDITIONAL)

    return Guidance((reference,), rule, terms)


def always(references: Sequence[Reference], rule: Rule | StatefulRule) -> Guidance:
    """Guidance by a rule that needs everything at all times."""
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
      velocity: one network that holds u(t, x, c) and u(t, x, ∅).
      c: the condition to follow, batch B. Only its structure is used here.
      gamma: the scale γ, () or ``(B,)``, or a schedule γ(t); an array may be traced. 0 is unconditional, 1 conditional,
        more is guided.
      negative: conditions to avoid, each of batch B.
      gamma_negative: weight γ_n of the negative conditions, u_∅ + γ(u_c − u_∅) − γ_n·Σ(u_d − u_∅). None lets the one
        negative condition replace ∅ instead, (1 − γ)u_d + γu_c.
      interval: guide only for t between these two times, inclusive.
      phi: strength of the rescaling of Lin et al. 2024; 0 for none.

    Raises:
      ValueError: if several negative conditions are to replace the one ∅, or a weight has nothing to weigh.
    """

    def scheduled(weight: Array | float | Schedule, rest: float) -> Schedule:
        weight = weight if callable(weight) else schedules.constant(weight)
        return weight if interval is None else schedules.within(weight, *interval, rest)

    if gamma_negative is None and len(negative) > 1:
        raise ValueError(
            f"only one negative condition can replace the null condition; got {len(negative)}: give gamma_negative"
        )
    if gamma_negative is not None and not negative:
        raise ValueError("gamma_negative weighs negative conditions, and there is none: give negative")

    g = scheduled(gamma, 1.0)
    null = Reference(velocity, condition.null(c))
    avoided = tuple(Reference(velocity, d) for d in negative)
    if gamma_negative is None:
        references, rule, n = avoided or (null,), rules.cfg(g), schedules.constant(0.0)
    else:
        n = scheduled(gamma_negative, 0.0)
        references, rule = (null, *avoided), rules.cfg_negative(g, n)

    def terms(t: Array) -> Array:
        neutral, without = ~jnp.any(g(t) != 1) & ~jnp.any(n(t) != 0), ~jnp.any(g(t) != 0)
        return jnp.where(neutral, Terms.CONDITIONAL, jnp.where(without, Terms.REFERENCES, Terms.ALL))

    if phi:
        # The rescaled rule reads the spread of the conditional velocity, whatever its weight.
        rule = rules.rescale(rule, phi)
        return Guidance(references, rule, lambda t: jnp.minimum(terms(t), Terms.ALL))
    return Guidance(references, rule, terms)


def compose(
    velocity: CondVelocity, c: Condition, gamma: Array | float | Schedule, others: Sequence[tuple[Condition, Schedule]]
) -> Guidance:
    """u_∅ + γ(u_c − u_∅) + Σ γ_i(u_i − u_∅): AND for positive, NOT for negative weights (Liu et al. 2022, eq. 11).

    Products of p(c_i|x) where the conditions are independent given x; two times the same condition counts twice.

    Args:
      velocity: one network for all.
      c: the first condition, batch B.
      gamma: its weight.
      others: the other conditions, batch B each, with their weights, () or ``(B,)`` or schedules.
    """
    weights = [w if callable(w) else schedules.constant(w) for w in (gamma, *(w for _, w in others))]
    references = [Reference(velocity, condition.null(c)), *(Reference(velocity, d) for d, _ in others)]
    return always(references, rules.composed(weights))


def guide(
    velocity: CondVelocity, c: Condition, guidance: Guidance, passes: Passes = "together", reuse: int = 1
) -> Velocity | StatefulVelocity:
    """The guided velocity, a function of t () or ``(B,)`` and x ``(B, *D)``.

    What ``guidance.terms`` does not ask for is not computed: a ``lax.switch`` around it. It only saves work while its
    index is a scalar, so do not vmap over t; a batch of times evaluates all that any of its members needs.

    Args:
      velocity: the conditional velocity u(t (B,), x, c).
      c: the condition to follow, batch B.
      guidance: references and rule.
      passes: "together" evaluates v and the references on the same network as one call on an (1 + n)-fold batch,
        best for small batches; "apart" makes 1 + n calls, and needs less memory.
      reuse: the references are evaluated in every ``reuse``-th guided step alone; between, their last difference from
        the conditional velocity stands for them (guidance left out or reused: Castillo et al. 2023, arXiv 2312.12487).

    Returns:
      A velocity; where the rule has a memory or ``reuse`` is above 1, a ``StatefulVelocity`` for ``solve``.

    Raises:
      ValueError: for another word in ``passes``, or ``reuse`` below 1.
    """
    check_passes(passes)
    if reuse < 1:
        raise ValueError(f"reuse counts steps, from 1 (never) up; got {reuse}")
    conditional, references = condition.bind(velocity, c), guidance.references

    def everything(t: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
        v, *refs = evaluate((Reference(velocity, c), *references), t, x, passes)
        return v, tuple(refs)

    def without(t: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
        refs = evaluate(references, t, x, passes)
        return jnp.zeros_like(refs[0]), refs

    if not isinstance(guidance.rule, StatefulRule) and reuse == 1:
        rule = guidance.rule

        def branch(evaluate: Callable) -> Velocity:
            def combined(t: Array, x: Array) -> Array:
                v, refs = evaluate(t, x)
                return rule(t, x, v, refs).astype(v.dtype)

            return combined

        branches = (conditional, branch(everything), branch(without))
        return lambda t, x: jax.lax.switch(guidance.terms(t), branches, t, x)

    stateful = rules.remember(guidance.rule)

    def init(x: Array) -> PyTree:
        return stateful.init(x), jnp.int32(0), tuple(jnp.zeros_like(x) for _ in references if reuse > 1)

    def apply(memory: PyTree, t: Array, x: Array) -> tuple[Array, PyTree]:
        def alone(t: Array, x: Array) -> tuple[Array, PyTree]:
            return conditional(t, x), memory

        def guided(t: Array, x: Array) -> tuple[Array, PyTree]:
            past, count, kept = memory
            if reuse == 1:
                v, refs = everything(t, x)
            else:

                def again(t: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
                    v = conditional(t, x)
                    return v, tuple(v - difference for difference in kept)

                v, refs = jax.lax.cond(count % reuse == 0, everything, again, t, x)
                kept = tuple((v - ref).astype(old.dtype) for ref, old in zip(refs, kept, strict=True))
            u, past = stateful.apply(past, t, x, v, refs)
            return u.astype(v.dtype), (past, count + 1, kept)

        return jax.lax.cond(guidance.terms(t) == Terms.CONDITIONAL, alone, guided, t, x)

    return StatefulVelocity(init, apply)


def evaluate(references: Sequence[Reference], t: Array, x: Array, passes: Passes = "together") -> tuple[Array, ...]:
    """The velocities of all references at t () or ``(B,)`` and x ``(B, *D)``.

    "together" calls each network once, on as many copies of x as it has conditions; "apart" once for each condition.
    """
    if passes == "apart":
        return tuple(condition.bind(*r)(t, x) for r in references)
    found: list[Array | None] = [None] * len(references)
    for first in references:
        own = [i for i, r in enumerate(references) if r.velocity is first.velocity and found[i] is None]
        if not own:
            continue
        cs = condition.concatenate(*(references[i].condition for i in own))
        ts = jnp.tile(jnp.broadcast_to(t, x.shape[:1]), len(own))
        split = jnp.split(first.velocity(ts, jnp.concatenate([x] * len(own)), cs), len(own))
        for i, u in zip(own, split, strict=True):
            found[i] = u
    return tuple(u for u in found if u is not None)


def check_passes(passes: str) -> None:
    """Raises ``ValueError`` for another word than "together" and "apart"."""
    if passes not in ("together", "apart"):
        raise ValueError(f'passes must be "together" or "apart"; got {passes!r}')


def network_evaluations(solver: Solver, guidance: Guidance, ts: Array, reuse: int = 1) -> Array:
    """Network evaluations a sample, int32 (), of ``solve`` over ``ts`` with ``guide(..., reuse=reuse)``.

    Each stage costs 1, 1 + n or n, as ``guidance.terms`` says at its time.
    """
    n = len(guidance.references)
    terms = jax.vmap(guidance.terms)(evaluation_times(solver, ts))
    if not isinstance(guidance.rule, StatefulRule) and reuse == 1:
        return jnp.sum(jnp.array([1, 1 + n, n], jnp.int32)[terms])
    # A velocity with memory evaluates the conditional velocity always; which step a stage is of says if it is reused.
    active = terms != Terms.CONDITIONAL
    stages = [len(solver.first or solver.nodes), *[len(solver.nodes)] * (len(ts) - 2)]
    starts = jnp.cumsum(jnp.array([0, *stages[:-1]]))
    guided_before = jnp.cumsum(active[starts]) - active[starts]
    fresh = jnp.repeat(guided_before % reuse == 0, jnp.array(stages), total_repeat_length=sum(stages))
    return jnp.int32(active.size + n * jnp.sum(active & fresh))
