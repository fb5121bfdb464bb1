"""Guidance methods by name, with their settings, for command lines."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowguide import condition
from flowguide.condition import Condition
from flowguide.guidance import magnitude, posterior, projection, rules, schedules, sources
from flowguide.guidance.guide import (
    Guidance,
    Reference,
    Terms,
    against,
    always,
    classifier_free,
    compose,
    on_channels,
    rescaled,
    terms_where,
)
from flowguide.guidance.rules import StatefulRule
from flowguide.paths import Path
from flowguide.typing import Array, CondVelocity, PRNGKey, PyTree, Rule, Schedule


class GuidanceInputs(NamedTuple):
    """The inputs that all methods share.

    Attributes:
      velocity: one network for u(t, x, c) and u(t, x, ∅).
      c: the condition, batch B.
      gamma: γ(t).
      path: the path of the network.
      negatives: conditions to avoid, batch B each.
      gamma_negative: γ_n(t), their weight; with None the one negative condition replaces ∅.
      composed: further conditions with their weights, composed with c.
      ts: the grid of the solve; None if the solver is adaptive.
      weak: a weaker or perturbed network for the same conditions; None if there is none.
      interval: the times between which the method is applied; None for all.
      keys: typed keys ``(B,)`` of the methods in ``RANDOM``; None for a guidance that is checked and not used.
      draw: key () -> values of all fields, without a batch axis, for ``icg``.
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
    keys: PRNGKey | None = None
    draw: Callable[[PRNGKey], PyTree] | None = None


def build(
    name: str, inputs: GuidanceInputs, rescale: float = 0.0, channels: int | None = None, **settings: Any
) -> Guidance:
    """Returns the guidance of a method, rescaled by ``rescale`` (``rules.rescale``), of the first ``channels``.

    Raises:
      ValueError: for an unknown name or setting, or inputs that the method cannot combine; lists what is possible.
    """
    if name not in METHODS:
        raise ValueError(f"unknown guidance {name!r}: there are {', '.join(sorted(METHODS))}")
    takes = [p for p in inspect.signature(METHODS[name]).parameters if p != "inputs"]
    for setting in settings:
        if setting not in takes:
            raise ValueError(f"guidance {name!r} has no setting {setting!r}: it takes {', '.join(takes) or 'none'}")
    if inputs.composed and name != "cfg":
        raise ValueError(f"conditions can only be composed by guidance 'cfg'; got {name!r}")
    guidance = METHODS[name](inputs, **settings)._replace(interval=inputs.interval)
    guidance = rescaled(guidance, rescale) if rescale else guidance
    return guidance if channels is None else on_channels(guidance, channels)


def cfg(inputs: GuidanceInputs) -> Guidance:
    """classifier-free guidance; the only method for --compose"""
    if not inputs.composed:
        n = inputs.gamma_negative if inputs.negatives else None
        return classifier_free(inputs.velocity, inputs.c, inputs.gamma, negative=inputs.negatives, gamma_negative=n)
    composed = list(inputs.composed)
    for d in inputs.negatives:
        if (n := inputs.gamma_negative) is None:
            raise ValueError(
                "in a composition a negative condition cannot replace ∅: give it a weight (gamma_negative)"
            )
        composed.append((d, lambda t, n=n: -n(t)))
    return compose(inputs.velocity, inputs.c, inputs.gamma, composed)


def zero_star(inputs: GuidanceInputs, *, zero_init: float = 0.0) -> Guidance:
    """CFG-Zero*: fits the reference to the conditional velocity; zero_init=0.04 skips the first steps"""
    guidance = _one(inputs, "zero_star", projection.zero_star(rules.cfg(inputs.gamma)))
    if not zero_init:
        return guidance

    def terms(t: Array) -> Array:
        # For t < zero_init the velocity is 0, which is not the conditional one at any γ.
        return jnp.where(jnp.any(t < zero_init), Terms.ALL, guidance.terms(t))

    return guidance._replace(rule=rules.zero_init(guidance.rule, until=zero_init), terms=terms)


def apg(inputs: GuidanceInputs, *, parallel: float = 0.0, largest: float = jnp.inf, momentum: float = 0.0) -> Guidance:
    """adaptive projected guidance"""
    rule = projection.projected(inputs.gamma, inputs.path, parallel=parallel, largest=largest, momentum=momentum)
    return _one(inputs, "apg", rule)


def tcfg(inputs: GuidanceInputs) -> Guidance:
    """tangential: keeps the component of the reference along its common direction with the condition"""
    return _one(inputs, "tcfg", projection.tangential(rules.cfg(inputs.gamma)))


def fdg(inputs: GuidanceInputs, *, fine: float = 2.0, levels: int = 3) -> Guidance:
    """frequency-decoupled: γ for coarse structure, 1 + fine·(γ − 1) for details"""
    g = inputs.gamma
    return _one(inputs, "fdg", projection.frequencies([*[lambda t: 1 + fine * (g(t) - 1)] * (int(levels) - 1), g]))


def mambo_g(inputs: GuidanceInputs, *, alpha: float = 8.0) -> Guidance:
    """magnitude-aware: guides less where the difference is large"""
    return _one(inputs, "mambo_g", magnitude.magnitude_aware(inputs.gamma, alpha=alpha))


def beta_cfg(inputs: GuidanceInputs, *, a: float = 2.0, b: float = 2.0, exponent: float = 1.0) -> Guidance:
    """γ times a Beta density of t, normalised by the difference; unconditional at both ends"""
    shape = schedules.beta(1.0, a=a, b=b)

    def scale(t: Array) -> Array:
        return inputs.gamma(t) * shape(t)

    rule = magnitude.beta_normalised(scale, inputs.path, exponent=exponent)
    return _one(inputs, "beta_cfg", rule)._replace(terms=terms_where(references=[(scale, 0.0)]))


def cfg_pp(inputs: GuidanceInputs) -> Guidance:
    """CFG++: --gamma is its constant strength λ in [0, 1]; use --solver=ddim"""
    if inputs.ts is None:
        raise ValueError("guidance 'cfg_pp' needs a fixed grid: use --solver=ddim")
    one = schedules.plus_plus(1.0, inputs.path, inputs.ts)

    def scale(t: Array) -> Array:
        return inputs.gamma(t) * one(t)

    terms = terms_where(conditional=[(scale, 1.0)], references=[(scale, 0.0)])
    return _one(inputs, "cfg_pp", rules.cfg(scale))._replace(terms=terms)


def feedback(
    inputs: GuidanceInputs, *, pi: float = 0.95, tau: float = 1.0, drift: float = 0.0, largest: float = 10.0
) -> Guidance:
    """γ adapts to each sample; --gamma multiplies γ − 1"""
    rule = posterior.feedback(inputs.gamma, inputs.path, pi=pi, tau=tau, drift=drift, largest=largest)
    extra = schedules.constant(0.0) if pi == 1 else _throughout(inputs, inputs.gamma, 0.0)
    return _one(inputs, "feedback", rule)._replace(terms=terms_where(conditional=[(extra, 0.0)]))


def perp_neg(inputs: GuidanceInputs) -> Guidance:
    """avoids --negative only perpendicular to the condition"""
    references, n = _several(inputs, "perp_neg")
    terms = terms_where([(inputs.gamma, 1.0), (n, 0.0)], references=[(inputs.gamma, 0.0), (n, 0.0)])
    return Guidance(references, projection.perpendicular(inputs.gamma, n), terms)


def contrastive(inputs: GuidanceInputs, *, tau: float = 0.2) -> Guidance:
    """saturating weights: no push away from a distant --negative"""
    references, n = _several(inputs, "contrastive")
    # With tau > 0 the weight of the condition is above γ, so γ = 1 is not conditional sampling.
    neutral = [] if tau else [(inputs.gamma, 1.0), (n, 0.0)]
    terms = terms_where(neutral, references=[(inputs.gamma, 0.0)])
    return Guidance(references, magnitude.contrastive(inputs.gamma, n, inputs.path, tau=tau), terms)


def dng(
    inputs: GuidanceInputs, *, prior: float = 0.01, tau: float = 0.2, offset: float = 0.0, largest: float = 0.8
) -> Guidance:
    """dynamic negative: avoids --negative as far as the sample resembles it; --gamma_negative is λ"""
    if len(inputs.negatives) > 1:
        raise ValueError(f"guidance 'dng' takes one negative condition; got {len(inputs.negatives)}")
    references, n = _several(inputs, "dng")
    rule = posterior.dynamic_negative(
        inputs.gamma, n, inputs.path, prior=prior, tau=tau, offset=offset, largest=largest
    )
    never = _throughout(inputs, n, 0.0)
    return Guidance(references, rule, terms_where([(inputs.gamma, 1.0), (never, 0.0)], [(inputs.gamma, 0.0)]))


def autoguidance(inputs: GuidanceInputs) -> Guidance:
    """guides away from a weaker network under the same condition (--weak)"""
    return _away_from(Reference(_weak(inputs, "autoguidance"), inputs.c), inputs, "autoguidance")


def icg(inputs: GuidanceInputs) -> Guidance:
    """independent condition: guides away from conditions at random; needs no ∅"""
    return _away_from(sources.independent(inputs.velocity, inputs.c, *_random(inputs, "icg")), inputs, "icg")


def tsg(inputs: GuidanceInputs, *, noise: float = 0.3, exponent: float = 1.0) -> Guidance:
    """time-step: guides away from the velocity at a time with noise; needs no ∅, and no condition"""
    keys, _ = _random(inputs, "tsg")
    reference = sources.retimed(inputs.velocity, inputs.c, keys, noise=noise, exponent=exponent)
    return _away_from(reference, inputs, "tsg")


def perturbed(inputs: GuidanceInputs, *, strength: float = 2.8) -> Guidance:
    """CFG plus guidance away from the perturbed network (--perturb)"""
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
        icg,
        tsg,
        perturbed,
    )
}
RANDOM = ("icg", "tsg")  # they draw a new random reference at every t
WITHOUT_NULL = ("autoguidance", *RANDOM)  # they use no u(t, x, ∅)


def summary() -> str:
    """Lists every method with its settings and their defaults, one line each."""
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
        raise ValueError(f"guidance {name!r} needs a weaker network; got none: give weak (--weak or --perturb)")
    return inputs.weak


def _random(inputs: GuidanceInputs, name: str) -> tuple[PRNGKey, Callable[[PRNGKey], PyTree]]:
    """Returns the keys of a method that draws, and what it draws values with.

    Raises:
      ValueError: for an adaptive solver: it would follow the draws with ever smaller steps.
    """
    if inputs.ts is None:
        raise ValueError(f"guidance {name!r} draws random numbers at every t and needs a fixed grid: use --solver=heun")
    return inputs.keys, inputs.draw  # pyright: ignore[reportReturnType]


def _away_from(reference: Reference, inputs: GuidanceInputs, name: str) -> Guidance:
    """Returns CFG that guides away from ``reference`` instead of u(t, x, ∅)."""
    if inputs.negatives:
        raise ValueError(f"guidance {name!r} has a reference of its own: leave the negative condition out, or use cfg")
    g = inputs.gamma
    return Guidance((reference,), rules.cfg(g), terms_where([(g, 1.0)], references=[(g, 0.0)]))


def _one(inputs: GuidanceInputs, name: str, rule: Rule | StatefulRule) -> Guidance:
    """Returns guidance by a rule with one reference: ∅, or the negative condition that replaces it."""
    if inputs.negatives and inputs.gamma_negative is not None:
        raise ValueError(
            f"guidance {name!r} takes one reference; a negative condition with its own weight makes two: let it "
            "replace ∅ (no gamma_negative), or use cfg, perp_neg, contrastive or dng"
        )
    if len(inputs.negatives) > 1:
        raise ValueError(f"only one negative condition can replace ∅; got {len(inputs.negatives)}")
    reference = Reference(inputs.velocity, inputs.negatives[0]) if inputs.negatives else _null(inputs)
    if isinstance(rule, StatefulRule):
        return against(reference, rule, _throughout(inputs, inputs.gamma, 1.0))
    return against(reference, rule, inputs.gamma)


def _several(inputs: GuidanceInputs, name: str) -> tuple[tuple[Reference, ...], Schedule]:
    """Returns the references, ∅ and the negative conditions, and the weight of the latter."""
    if not inputs.negatives or inputs.gamma_negative is None:
        raise ValueError(f"guidance {name!r} needs a negative condition and its weight: give negative, gamma_negative")
    return (_null(inputs), *(Reference(inputs.velocity, d) for d in inputs.negatives)), inputs.gamma_negative


def _throughout(inputs: GuidanceInputs, schedule: Schedule, value: float) -> Schedule:
    """Returns the schedule if it equals ``value`` at all nodes of the grid, else NaN.

    A rule with memory has to see every step, also one in which its scale happens to be neutral.
    """
    if inputs.ts is None:
        return schedule
    always = jnp.all(jax.vmap(schedule)(inputs.ts) == value)
    return lambda t: jnp.where(always, schedule(t), jnp.nan)
