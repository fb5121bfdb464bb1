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


class Asked(NamedTuple):
    """What is to be sampled, whatever the method.

    Attributes:
      velocity: one network that holds u(t, x, c) and u(t, x, ∅).
      c: the condition, batch B.
      gamma: γ(t).
      path: of the network.
      away: conditions to avoid, batch B each.
      gamma_negative: γ_n(t), their weight; None lets the one of them replace ∅.
      others: further conditions with their weights, composed with c.
      ts: the grid of the solve; None if the solver chooses its steps.
      worse: a worse network for the same conditions (weaker, or perturbed); None if there is none.
      interval: the times between which the method acts; None for all.
    """

    velocity: CondVelocity
    c: Condition
    gamma: Schedule
    path: Path
    away: tuple[Condition, ...] = ()
    gamma_negative: Schedule | None = None
    others: tuple[tuple[Condition, Schedule], ...] = ()
    ts: Array | None = None
    worse: CondVelocity | None = None
    interval: tuple[float, float] | None = None


def build(name: str, asked: Asked, rescale: float = 0.0, **settings: Any) -> Guidance:
    """The guidance of a method, its result rescaled as far as ``rescale`` says (``rules.rescale``).

    Raises:
      ValueError: for a name or a setting that there is not, or what the method cannot combine; says what it can.
    """
    if name not in METHODS:
        raise ValueError(f"unknown guidance {name!r}: there are {', '.join(sorted(METHODS))}")
    takes = [p for p in inspect.signature(METHODS[name]).parameters if p != "asked"]
    for setting in settings:
        if setting not in takes:
            raise ValueError(f"guidance {name!r} has no setting {setting!r}: it takes {', '.join(takes) or 'none'}")
    if asked.others and name != "cfg":
        raise ValueError(f"several conditions are composed by guidance 'cfg'; got {name!r}")
    guidance = METHODS[name](asked, **settings)._replace(interval=asked.interval)
    return rescaled(guidance, rescale) if rescale else guidance


def cfg(asked: Asked) -> Guidance:
    """classifier-free guidance; the only one for --compose"""
    if not asked.others:
        n = asked.gamma_negative if asked.away else None
        return classifier_free(asked.velocity, asked.c, asked.gamma, negative=asked.away, gamma_negative=n)
    others = list(asked.others)
    for d in asked.away:
        if (n := asked.gamma_negative) is None:
            raise ValueError("in a composition a negative condition has a weight of its own: it cannot replace ∅")
        others.append((d, lambda t, n=n: -n(t)))
    return compose(asked.velocity, asked.c, asked.gamma, others)


def zero_star(asked: Asked, zero_init: float = 0.0) -> Guidance:
    """CFG-Zero*: the reference scaled to fit; zero_init=0.04 holds still at first"""
    guidance = _one(asked, "zero_star", projection.zero_star(rules.cfg(asked.gamma)))
    if not zero_init:
        return guidance

    def terms(t: Array) -> Array:
        # Before zero_init the velocity is 0, which is not the conditional one at any γ.
        return jnp.where(jnp.any(t < zero_init), Terms.ALL, guidance.terms(t))

    return guidance._replace(rule=rules.zero_init(guidance.rule, zero_init), terms=terms)


def apg(asked: Asked, parallel: float = 0.0, largest: float = jnp.inf, momentum: float = 0.0) -> Guidance:
    """adaptive projected guidance"""
    return _one(asked, "apg", projection.projected(asked.gamma, asked.path, parallel, largest, momentum))


def tcfg(asked: Asked) -> Guidance:
    """tangential: only the common direction of the reference is kept"""
    return _one(asked, "tcfg", projection.tangential(rules.cfg(asked.gamma)))


def fdg(asked: Asked, fine: float = 2.0, levels: int = 3) -> Guidance:
    """frequency-decoupled: γ for coarse structure, fine times as much above 1 for the rest"""
    g = asked.gamma
    return _one(asked, "fdg", projection.frequencies([*[lambda t: 1 + fine * (g(t) - 1)] * (int(levels) - 1), g]))


def mambo_g(asked: Asked, alpha: float = 8.0) -> Guidance:
    """magnitude-aware: less where the difference is large"""
    return _one(asked, "mambo_g", magnitude.magnitude_aware(asked.gamma, alpha))


def beta_cfg(asked: Asked, a: float = 2.0, b: float = 2.0, exponent: float = 1.0) -> Guidance:
    """γ times a Beta density of t, by the norm of the difference; unconditional at both ends"""
    shape = schedules.beta(1.0, a, b)

    def scale(t: Array) -> Array:
        return asked.gamma(t) * shape(t)

    rule = magnitude.beta_normalised(scale, asked.path, exponent)
    return _one(asked, "beta_cfg", rule)._replace(terms=terms_where(references=[(scale, 0.0)]))


def cfg_pp(asked: Asked) -> Guidance:
    """CFG++: --gamma is its strength λ in [0, 1], constant; for the solver ddim"""
    if asked.ts is None:
        raise ValueError("guidance 'cfg_pp' is defined by the steps of its grid: use --solver=ddim")
    one = schedules.plus_plus(asked.path, asked.ts, 1.0)

    def scale(t: Array) -> Array:
        return asked.gamma(t) * one(t)

    terms = terms_where(conditional=[(scale, 1.0)], references=[(scale, 0.0)])
    return _one(asked, "cfg_pp", rules.cfg(scale))._replace(terms=terms)


def feedback(asked: Asked, pi: float = 0.95, tau: float = 1.0, drift: float = 0.0, largest: float = 10.0) -> Guidance:
    """γ as much as the sample needs; --gamma multiplies γ − 1"""
    rule = posterior.feedback(asked.path, pi, tau, drift, largest, asked.gamma)
    extra = schedules.constant(0.0) if pi == 1 else _throughout(asked, asked.gamma, 0.0)
    return _one(asked, "feedback", rule)._replace(terms=terms_where(conditional=[(extra, 0.0)]))


def perp_neg(asked: Asked) -> Guidance:
    """away from --negative only at right angles to the condition"""
    references, n = _several(asked, "perp_neg")
    terms = terms_where([(asked.gamma, 1.0), (n, 0.0)], references=[(asked.gamma, 0.0), (n, 0.0)])
    return Guidance(references, projection.perpendicular(asked.gamma, n), terms)


def contrastive(asked: Asked, tau: float = 0.2) -> Guidance:
    """weights that saturate: far from --negative there is no pushing"""
    references, n = _several(asked, "contrastive")
    # With tau the condition's own weight is more than γ: γ = 1 is not conditional sampling.
    neutral = [] if tau else [(asked.gamma, 1.0), (n, 0.0)]
    terms = terms_where(neutral, references=[(asked.gamma, 0.0)])
    return Guidance(references, magnitude.contrastive(asked.gamma, n, asked.path, tau), terms)


def dng(asked: Asked, prior: float = 0.01, tau: float = 0.2, offset: float = 0.0, largest: float = 0.8) -> Guidance:
    """dynamic negative: away from --negative as far as the sample seems to be it; --gamma_negative is its λ"""
    if len(asked.away) > 1:
        raise ValueError(f"guidance 'dng' needs one negative condition beside ∅; got {len(asked.away)}")
    references, n = _several(asked, "dng")
    rule = posterior.dynamic_negative(asked.gamma, asked.path, n, prior, tau, offset, largest)
    never = _throughout(asked, n, 0.0)
    return Guidance(references, rule, terms_where([(asked.gamma, 1.0), (never, 0.0)], [(asked.gamma, 0.0)]))


def autoguidance(asked: Asked) -> Guidance:
    """away from a worse network under the same condition (--weak)"""
    g, reference = asked.gamma, Reference(_worse(asked, "autoguidance"), asked.c)
    return Guidance((reference,), rules.cfg(g), terms_where([(g, 1.0)], references=[(g, 0.0)]))


def perturbed(asked: Asked, strength: float = 2.8) -> Guidance:
    """CFG, and away from the same network perturbed (--perturb)"""
    references = [_null(asked), Reference(_worse(asked, "perturbed"), asked.c)]
    if not strength:
        return classifier_free(asked.velocity, asked.c, asked.gamma)
    return always(references, rules.perturbed(asked.gamma, schedules.constant(strength)))


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
            f"{p.name}={p.default:g}" for p in inspect.signature(method).parameters.values() if p.name != "asked"
        ]
        lines.append(f"{name}{''.join(':' + s for s in settings)} -- {method.__doc__}")
    return "\n".join(lines)


def _null(asked: Asked) -> Reference:
    return Reference(asked.velocity, condition.null(asked.c))


def _worse(asked: Asked, name: str) -> CondVelocity:
    if asked.worse is None:
        raise ValueError(f"guidance {name!r} needs a worse network to move away from, and there is none")
    return asked.worse


def _one(asked: Asked, name: str, rule: Rule | StatefulRule) -> Guidance:
    """A rule of one reference: ∅, or the negative condition that takes its place."""
    if asked.away and asked.gamma_negative is not None:
        raise ValueError(
            f"guidance {name!r} takes one reference, and a negative condition with a weight of its own makes two: let "
            "it replace ∅, or use cfg, perp_neg, contrastive or dng"
        )
    if len(asked.away) > 1:
        raise ValueError(f"only one negative condition can replace ∅; got {len(asked.away)}")
    reference = Reference(asked.velocity, asked.away[0]) if asked.away else _null(asked)
    if isinstance(rule, StatefulRule):
        return against(reference, rule, _throughout(asked, asked.gamma, 1.0))
    return against(reference, rule, asked.gamma)


def _several(asked: Asked, name: str) -> tuple[tuple[Reference, ...], Schedule]:
    """The references ∅ and the negative conditions, and their weight."""
    if not asked.away or asked.gamma_negative is None:
        raise ValueError(f"guidance {name!r} needs a negative condition beside ∅, with a weight of its own")
    return (_null(asked), *(Reference(asked.velocity, d) for d in asked.away)), asked.gamma_negative


def _throughout(asked: Asked, schedule: Schedule, value: float) -> Schedule:
    """The schedule, or NaN if it has another value than this at any node of the grid.

    A rule that remembers has to see each step, also one in which a scale happens to be neutral.
    """
    if asked.ts is None:
        return schedule
    always = jnp.all(jax.vmap(schedule)(asked.ts) == value)
    return lambda t: jnp.where(always, schedule(t), jnp.nan)
