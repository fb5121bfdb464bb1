"""Guided velocities: the one place where a rule meets the velocities it combines.

A guided velocity is a velocity: solvers never know. The methods differ in where the references come from (the null
condition, a negative one, another network) and in the rule that combines them; this file only evaluates them, and
evaluates no more than is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from flowguide import condition
from flowguide.condition import Condition
from flowguide.guidance import rules, schedules
from flowguide.solvers.solver import Solver, evaluation_times
from flowguide.typing import Array, CondVelocity, Rule, Velocity

Passes = Literal["together", "apart"]


class Reference(NamedTuple):
    """Where a reference velocity comes from: a network (often the guided one itself) under some condition."""

    velocity: CondVelocity
    condition: Condition


class Guidance(NamedTuple):
    """All that turns a conditional velocity into a guided one.

    Attributes:
      references: what the rule is given beside the conditional velocity.
      rule: combines them.
      active: t () or ``(B,)`` -> bool (), whether the rule does anything at t. Where it is False the references are
        not evaluated, and the velocity is the conditional one.
    """

    references: tuple[Reference, ...]
    rule: Rule
    active: Callable[[Array], Array]


def classifier_free(
    velocity: CondVelocity,
    c: Condition,
    gamma: Array | float,
    *,
    negative: Sequence[Condition] = (),
    gamma_negative: Array | float | None = None,
    interval: tuple[float, float] | None = None,
    phi: float = 0.0,
) -> Guidance:
    """Classifier-free guidance of ``velocity`` towards ``c``, away from ``negative``.

    Args:
      velocity: one network that holds u(t, x, c) and u(t, x, ∅).
      c: the condition to follow, batch B. Only its structure is used here.
      gamma: the scale γ, () or ``(B,)``; an array may be traced. 0 is unconditional, 1 conditional, more is guided.
      negative: conditions to avoid, each of batch B.
      gamma_negative: weight γ_n of the negative conditions, u_∅ + γ(u_c − u_∅) − γ_n·Σ(u_d − u_∅). None lets the one
        negative condition replace ∅ instead, (1 − γ)u_d + γu_c.
      interval: guide only for t between these two times, inclusive.
      phi: strength of the rescaling of Lin et al. 2024; 0 for none.

    Raises:
      ValueError: if several negative conditions are to replace the one ∅, or a weight has nothing to weigh.
    """

    def scheduled(weight: Array | float, rest: float) -> Callable[[Array], Array]:
        return schedules.constant(weight) if interval is None else schedules.interval(weight, *interval, rest)

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
        references, rule = avoided or (null,), rules.cfg(g)

        def active(t: Array) -> Array:
            return jnp.any(g(t) != 1)
    else:
        n = scheduled(gamma_negative, 0.0)
        references, rule = (null, *avoided), rules.cfg_negative(g, n)

        def active(t: Array) -> Array:
            return jnp.any(g(t) != 1) | jnp.any(n(t) != 0)

    if phi:
        rule = rules.rescale(rule, phi)
    return Guidance(references, rule, active)


def guide(velocity: CondVelocity, c: Condition, guidance: Guidance, passes: Passes = "together") -> Velocity:
    """The guided velocity, a function of t () or ``(B,)`` and x ``(B, *D)``.

    Where ``guidance.active`` is False the references are not computed: a ``lax.cond`` around them. It only saves
    work while its predicate is a scalar, so do not vmap over t; a batch of times runs the references when any of
    its members needs them.

    Args:
      velocity: the conditional velocity u(t (B,), x, c).
      c: the condition to follow, batch B.
      guidance: references and rule.
      passes: "together" evaluates v and the references on the same network as one call on an (1 + n)-fold batch,
        best for small batches; "apart" makes 1 + n calls, and needs less memory.

    Raises:
      ValueError: for another word in ``passes``.
    """
    if passes not in ("together", "apart"):
        raise ValueError(f'passes must be "together" or "apart"; got {passes!r}')

    def evaluate(t: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
        if passes == "apart":
            return condition.bind(velocity, c)(t, x), tuple(condition.bind(*r)(t, x) for r in guidance.references)
        shared = [i for i, r in enumerate(guidance.references) if r.velocity is velocity]
        batch, copies = x.shape[0], 1 + len(shared)
        cs = condition.concatenate(c, *(guidance.references[i].condition for i in shared))
        ts = jnp.tile(jnp.broadcast_to(t, (batch,)), copies)
        v, *found = jnp.split(velocity(ts, jnp.concatenate([x] * copies), cs), copies)
        own = dict(zip(shared, found, strict=True))
        refs = (own[i] if i in own else condition.bind(*r)(t, x) for i, r in enumerate(guidance.references))
        return v, tuple(refs)

    def guided(t: Array, x: Array) -> Array:
        v, refs = evaluate(t, x)
        return guidance.rule(t, x, v, refs).astype(v.dtype)

    return lambda t, x: jax.lax.cond(guidance.active(t), guided, condition.bind(velocity, c), t, x)


def network_evaluations(solver: Solver, guidance: Guidance, ts: Array) -> Array:
    """Network evaluations a sample, int32 (), of ``solve`` over ``ts``: 1 a stage, or 1 + references while active."""
    active = jax.vmap(guidance.active)(evaluation_times(solver, ts))
    return active.size + jnp.sum(active) * len(guidance.references)
