"""Guidance methods by name, with their settings: what a command line chooses from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowguide import condition
from flowguide.condition import Condition
from flowguide.guidance import magnitude, posterior, projection, rules, schedules
from flowguide.guidance.guide import (
    Guidance,
    Reference,
    Terms,
    against,
    always,
    classifier_free,
    compose,
    rescaled,
    terms_where,
)
from flowguide.guidance.rules import StatefulRule
from flowguide.paths import Path
from flowguide.typing import Array, CondVelocity, Rule, Schedule


class GuidanceInputs(NamedTuple):
    """What is to be sampled, whatever the method.

    Attributes:
      velocity: one network that holds u(t, x, c) and u(t, x, ∅).
      c: the condition, batch B.
      gamma: γ(t).
      path: of the network.
      negatives: conditions to avoid, batch B each.
      gamma_negative: γ_n(t), their weight; None lets the one of them replace ∅.
      composed: further conditions with their weights, composed with c.
      ts: the grid of the solve; None if the solver chooses its steps.
      weak: a weaker network for the same conditions (weaker, or perturbed); None if there is none.
      interval: the times between which the method acts; None for all.
    """

    velocity: CondVelocity
    c: Condition
    gamma: Schedule
    path: Path
    negatives: tuple[Condition, ...] = ()
    gamma_negative: Schedule | None = None
    composed: tuple[tuple[Condition, Schedule], ...] = ()
    ts: Array | None = None
    weak: CondVelocity | None = None
    interval: tuple[float, float] | None = None


def build(name: str, inputs: GuidanceInputs, rescale: float = 0.0, **settings: Any) -> Guidance:
    """The guidance of a method, its result rescaled as far as ``rescale`` says (``rules.rescale``).

    Raises:
      ValueError: for a name or a setting that there is not, or what the method cannot combine; says what it can.
    """
    if name not in METHODS:
        raise ValueError(f"unknown guidance {name!r}: there are {', '.join(sorted(METHODS))}")
    takes = [p for p in inspect.signature(METHODS[name]).parameters if p != "inputs"]
    for setting in settings:
        if setting not in takes:
            raise ValueError(f"guidance {name!r} has no setting {setting!r}: it takes {', '.join(takes) or 'none'}")
    if inputs.composed and name != "cfg":
        raise ValueError(f"several conditions are composed by guidance 'cfg'; got {name!r}")
    guidance = METHODS[name](inputs, **settings)._replace(interval=inputs.interval)
    return rescaled(guidance, rescale) if rescale else guidance


def cfg(inputs: GuidanceInputs) -> Guidance:
    """classifier-free guidance; the only one for --compose"""
    if not inputs.composed:
        n = inputs.gamma_negative if inputs.negatives else None
        return classifier_free(inputs.velocity, inputs.c, inputs.gamma, negative=inputs.negatives, gamma_negative=n)
    composed = list(inputs.composed)
    for d in inputs.negatives:
        if (n := inputs.gamma_negative) is None:
            raise ValueError("in a composition a negative condition has a weight of its own: it cannot replace ∅")
        composed.append((d, lambda t, n=n: -n(t)))
    return compose(inputs.velocity, inputs.c, inputs.gamma, composed)


def zero_star(inputs: GuidanceInputs, zero_init: float = 0.0) -> Guidance:
    """CFG-Zero*: the reference scaled to fit; zero_init=0.04 holds still at first"""
    guidance = _one(inputs, "zero_star", projection.zero_star(rules.cfg(inputs.gamma)))
    if not zero_init:
        return guidance

    def terms(t: Array) -> Array:
        # Before zero_init the velocity is 0, which is not the conditional one at any γ.
        return jnp.where(jnp.any(t < zero_init), Terms.ALL, guidance.terms(t))

    return guidance._replace(rule=rules.zero_init(guidance.rule, zero_init), terms=terms)


def apg(inputs: GuidanceInputs, parallel: float = 0.0, largest: float = jnp.inf, momentum: float = 0.0) -> Guidance:
    """adaptive projected guidance"""
    return _one(inputs, "apg", projection.projected(inputs.gamma, inputs.path, parallel, largest, momentum))


def tcfg(inputs: GuidanceInputs) -> Guidance:
    """tangential: only the common direction of the reference is kept"""
    return _one(inputs, "tcfg", projection.tangential(rules.cfg(inputs.gamma)))


def fdg(inputs: GuidanceInputs, fine: float = 2.0, levels: int = 3) -> Guidance:
    """frequency-decoupled: γ for coarse structure, fine times as much above 1 for the rest"""
    g = inputs.gamma
    return _one(inputs, "fdg", projection.frequencies([*[lambda t: 1 + fine * (g(t) - 1)] * (int(levels) - 1), g]))


def mambo_g(inputs: GuidanceInputs, alpha: float = 8.0) -> Guidance:
    """magnitude-aware: less where the difference is large"""
    return _one(inputs, "mambo_g", magnitude.magnitude_aware(inputs.gamma, alpha))


def beta_cfg(inputs: GuidanceInputs, a: float = 2.0, b: float = 2.0, exponent: float = 1.0) -> Guidance:
    """γ times a Beta density of t, by the norm of the difference; unconditional at both ends"""
    shape = schedules.beta(1.0, a, b)

    def scale(t: Array) -> Array:
        return inputs.gamma(t) * shape(t)

    rule = magnitude.beta_normalised(scale, inputs.path, exponent)
    return _one(inputs, "beta_cfg", rule)._replace(terms=terms_where(references=[(scale, 0.0)]))


def cfg_pp(inputs: GuidanceInputs) -> Guidance:
    """CFG++: --gamma is its strength λ in [0, 1], constant; for the solver ddim"""
    if inputs.ts is None:
        raise ValueError("guidance 'cfg_pp' is defined by the steps of its grid: use --solver=ddim")
    one = schedules.plus_plus(inputs.path, inputs.ts, 1.0)

    def scale(t: Array) -> Array:
        return inputs.gamma(t) * one(t)

    terms = terms_where(conditional=[(scale, 1.0)], references=[(scale, 0.0)])
    return _one(inputs, "cfg_pp", rules.cfg(scale))._replace(terms=terms)


def feedback(
    inputs: GuidanceInputs, pi: float = 0.95, tau: float = 1.0, drift: float = 0.0, largest: float = 10.0
) -> Guidance:
    """γ as much as the sample needs; --gamma multiplies γ − 1"""
    rule = posterior.feedback(inputs.path, pi, tau, drift, largest, inputs.gamma)
    extra = schedules.constant(0.0) if pi == 1 else _throughout(inputs, inputs.gamma, 0.0)
    return _one(inputs, "feedback", rule)._replace(terms=terms_where(conditional=[(extra, 0.0)]))


def perp_neg(inputs: GuidanceInputs) -> Guidance:
    """away from --negative only at right angles to the condition"""
    references, n = _several(inputs, "perp_neg")
    terms = terms_where([(inputs.gamma, 1.0), (n, 0.0)], references=[(inputs.gamma, 0.0), (n, 0.0)])
    return Guidance(references, projection.perpendicular(inputs.gamma, n), terms)


def contrastive(inputs: GuidanceInputs, tau: float = 0.2) -> Guidance:
    """weights that saturate: far from --negative there is no pushing"""
    references, n = _several(inputs, "contrastive")
    # With tau the condition's own weight is more than γ: γ = 1 is not conditional sampling.
    neutral = [] if tau else [(inputs.gamma, 1.0), (n, 0.0)]
    terms = terms_where(neutral, references=[(inputs.gamma, 0.0)])
    return Guidance(references, magnitude.contrastive(inputs.gamma, n, inputs.path, tau), terms)


def dng(
    inputs: GuidanceInputs, prior: float = 0.01, tau: float = 0.2, offset: float = 0.0, largest: float = 0.8
) -> Guidance:
    """dynamic negative: away from --negative as far as the sample seems to be it; --gamma_negative is its λ"""
    if len(inputs.negatives) > 1:
        raise ValueError(f"guidance 'dng' needs one negative condition beside ∅; got {len(inputs.negatives)}")
    references, n = _several(inputs, "dng")
    rule = posterior.dynamic_negative(inputs.gamma, inputs.path, n, prior, tau, offset, largest)
    never = _throughout(inputs, n, 0.0)
    return Guidance(references, rule, terms_where([(inputs.gamma, 1.0), (never, 0.0)], [(inputs.gamma, 0.0)]))


def autoguidance(inputs: GuidanceInputs) -> Guidance:
    """away from a weaker network under the same condition (--weak)"""
    g, reference = inputs.gamma, Reference(_weak(inputs, "autoguidance"), inputs.c)
    return Guidance((reference,), rules.cfg(g), terms_where([(g, 1.0)], references=[(g, 0.0)]))


def perturbed(inputs: GuidanceInputs, strength: float = 2.8) -> Guidance:
    """CFG, and away from the same network perturbed (--perturb)"""
    references = [_null(inputs), Reference(_weak(inputs, "perturbed"), inputs.c)]
    if not strength:
        return classifier_free(inputs.velocity, inputs.c, inputs.gamma)
    return always(references, rules.perturbed(inputs.gamma, schedules.constant(strength)))


METHODS: dict[str, Callable[..., Guidance]] = {
    method.__name__: method
    for method in (
        cfg,
        zero_star,
        apg,
        tcfg,
        fdg,
        mambo_g,
        beta_cfg,
        cfg_pp,
        feedback,
        perp_neg,
        contrastive,
        dng,
        autoguidance,
        perturbed,
    )
}


def summary() -> str:
    """Every method with its settings and their defaults, a line each."""
    lines = []
    for name, method in METHODS.items():
        settings = [
            f"{p.name}={p.default:g}" for p in inspect.signature(method).parameters.values() if p.name != "inputs"
        ]
        lines.append(f"{name}{''.join(':' + s for s in settings)} -- {method.__doc__}")
    return "\n".join(lines)


def _null(inputs: GuidanceInputs) -> Reference:
    return Reference(inputs.velocity, condition.null(inputs.c))


def _weak(inputs: GuidanceInputs, name: str) -> CondVelocity:
    if inputs.weak is None:
        raise ValueError(f"guidance {name!r} needs a weaker network to move away from, and there is none")
    return inputs.weak


def _one(inputs: GuidanceInputs, name: str, rule: Rule | StatefulRule) -> Guidance:
    """A rule of one reference: ∅, or the negative condition that takes its place."""
    if inputs.negatives and inputs.gamma_negative is not None:
        raise ValueError(
            f"guidance {name!r} takes one reference, and a negative condition with a weight of its own makes two: let "
            "it replace ∅, or use cfg, perp_neg, contrastive or dng"
        )
    if len(inputs.negatives) > 1:
        raise ValueError(f"only one negative condition can replace ∅; got {len(inputs.negatives)}")
    reference = Reference(inputs.velocity, inputs.negatives[0]) if inputs.negatives else _null(inputs)
    if isinstance(rule, StatefulRule):
        return against(reference, rule, _throughout(inputs, inputs.gamma, 1.0))
    return against(reference, rule, inputs.gamma)


def _several(inputs: GuidanceInputs, name: str) -> tuple[tuple[Reference, ...], Schedule]:
    """The references ∅ and the negative conditions, and their weight."""
    if not inputs.negatives or inputs.gamma_negative is None:
        raise ValueError(f"guidance {name!r} needs a negative condition beside ∅, with a weight of its own")
    return (_null(inputs), *(Reference(inputs.velocity, d) for d in inputs.negatives)), inputs.gamma_negative


def _throughout(inputs: GuidanceInputs, schedule: Schedule, value: float) -> Schedule:
    """The schedule, or NaN if it has another value than this at any node of the grid.

    A rule that remembers has to see each step, also one in which a scale happens to be neutral.
    """
    if inputs.ts is None:
        return schedule
    always = jnp.all(jax.vmap(schedule)(inputs.ts) == value)
    return lambda t: jnp.where(always, schedule(t), jnp.nan)
