"""Every rule and method against NumPy formulas written from the papers, at settings where no term vanishes.

Scales differ between samples and change with time, there are several negatives, norms are above and below their bounds,
and there are paths other than the linear one, on which α̇σ − ασ̇ = 1 would hide mistakes.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import guidance, paths
from flowguide.condition import given
from flowguide.guidance import projection
from flowguide.guidance.rules import norm
from flowguide.solvers.solver import as_stateful
from tests.support.by_hand import (
    AWAY,
    NULL,
    OTHER,
    SIZE,
    B,
    G,
    N,
    T,
    V,
    X,
    arrays,
    cfg,
    coefficients,
    column,
    data,
    dot,
    from_data,
    g,
    lengths,
    n,
    noise,
    projected,
)
from tests.support.plain import plain_rule

pytestmark = pytest.mark.usefixtures("float64")


def rescaled(phi):
    guided = cfg(V, NULL, g(T))
    return phi * guided * V.std(1, keepdims=True) / guided.std(1, keepdims=True) + (1 - phi) * guided


def renormalised():
    """Never longer than v, and no longer than it was."""
    guided = cfg(V, NULL, g(T))
    assert {True, False} == set((lengths(guided) > lengths(V)).ravel().tolist())
    return np.where(lengths(guided) > lengths(V), guided / lengths(guided) * lengths(V), guided)


def thresholded(path, percentile, largest):
    d = data(path, T, X, cfg(V, NULL, g(T)))
    ordered, place = np.sort(np.abs(d), 1), percentile / 100 * (SIZE - 1)
    low = int(place)
    s = ordered[:, low] + (place - low) * (ordered[:, min(low + 1, SIZE - 1)] - ordered[:, low])
    assert {True, False} == set((s > largest).tolist())
    kept = [np.clip(row, -max(a, largest), max(a, largest)) * min(1, largest / a) for row, a in zip(d, s, strict=True)]
    return from_data(path, T, X, np.stack(kept))


def star(ref):
    """CFG-Zero*: the paper's code has 1e-8 beside the square."""
    return cfg(V, ref * dot(V, ref) / (dot(ref, ref) + 1e-8), g(T))


def tangential():
    kept = []
    for v, ref in zip(V, NULL, strict=True):
        top = np.linalg.svd(np.stack([v, ref]), full_matrices=False)[2][0]
        kept.append(top * (top @ ref))
    return cfg(V, np.stack(kept), g(T))


def apg(path, parallel, largest):
    difference = data(path, T, X, V) - data(path, T, X, NULL)
    assert largest == np.inf or {True, False} == set((lengths(difference) > largest).ravel().tolist())
    return projected(path, T, X, V, difference, parallel, largest)


def perpendicular():
    towards = V - NULL
    unit = towards / lengths(towards)
    away = sum((u - NULL) - unit * dot(u - NULL, unit) for u in (AWAY, OTHER))
    return cfg(V, NULL, g(T)) - column(n(T)) * away


def mambo(alpha):
    scale = 1 + (column(g(T)) - 1) * np.exp(-alpha * lengths(V - NULL) / lengths(NULL))
    return NULL + scale * (V - NULL)


def beta_normalised(path, exponent, shape=1.0):
    length = lengths(noise(path, T, X, V) - noise(path, T, X, NULL))
    return NULL + column(g(T)) * shape * (V - NULL) / length**exponent


def contrastive(path, tau):
    def similar(u):
        return np.exp(-tau * lengths(noise(path, T, X, u) - noise(path, T, X, NULL)) ** 2)

    pull = 2 * column(g(T)) * (V - NULL) / (1 + similar(V))
    push = sum(2 * column(n(T)) * (u - NULL) * similar(u) / (1 + similar(u)) for u in (AWAY, OTHER))
    return NULL + pull - push


def on_first(count, guided):
    """What ``guided`` makes of the first numbers of x, v and the null velocity, beside the rest of v."""
    return np.concatenate([guided(*(a[:, :count] for a in (X, V, NULL))), V[:, count:]], axis=1)


def apg_of_some(x, v, null):
    """At a bound between the lengths of the differences of these channels."""
    difference = data("trig", T, x, v) - data("trig", T, x, null)
    assert {True, False} == set((lengths(difference) > SOME).ravel().tolist())
    return projected("trig", T, x, v, difference, -0.4, SOME)


def rescaled_of_some(x, v, null):
    guided = cfg(v, null, g(T))
    return 0.3 * guided * v.std(1, keepdims=True) / guided.std(1, keepdims=True) + 0.7 * guided


SOME = float(np.median(lengths(data("trig", T, X[:, :3], V[:, :3]) - data("trig", T, X[:, :3], NULL[:, :3]))))
CFG = guidance.cfg(G)
TINY = 1e-4 * NULL
# name: (rule, references, expected result)
RULES = {
    "cfg": (CFG, (NULL,), lambda: (1 - column(g(T))) * NULL + column(g(T)) * V),
    "cfg_negative": (
        guidance.cfg_negative(G, N),
        (NULL, AWAY, OTHER),
        lambda: cfg(V, NULL, g(T)) - column(n(T)) * (AWAY - NULL) - column(n(T)) * (OTHER - NULL),
    ),
    "composed": (
        guidance.composed([G, N, lambda t: jnp.float64(-0.7)]),
        (NULL, AWAY, OTHER),
        lambda: cfg(V, NULL, g(T)) + column(n(T)) * (AWAY - NULL) - 0.7 * (OTHER - NULL),
    ),
    "perturbed": (
        guidance.perturbed(G, N),
        (NULL, AWAY),
        lambda: cfg(V, NULL, g(T)) + column(n(T)) * (V - AWAY),
    ),
    "rescale": (guidance.rescale(CFG, phi=0.3), (NULL,), lambda: rescaled(0.3)),
    "renormalise": (guidance.renormalise(CFG), (NULL,), renormalised),
    "first_channels": (
        guidance.first_channels(guidance.rescale(CFG, phi=0.3), count=4),
        (NULL,),
        lambda: on_first(4, rescaled_of_some),
    ),
    "first_channels, all": (guidance.first_channels(CFG, count=SIZE), (NULL,), lambda: cfg(V, NULL, g(T))),
    "zero_init, before": (guidance.zero_init(CFG, until=T + 1e-6), (NULL,), lambda: 0 * V),
    "zero_init, at its end": (guidance.zero_init(CFG, until=T), (NULL,), lambda: cfg(V, NULL, g(T))),
    "zero_star": (guidance.zero_star(CFG), (NULL,), lambda: star(NULL)),
    "zero_star of little": (guidance.zero_star(CFG), (TINY,), lambda: star(TINY)),
    "tangential": (guidance.tangential(CFG), (NULL,), tangential),
    "perpendicular": (guidance.perpendicular(G, N), (NULL, AWAY, OTHER), perpendicular),
    "magnitude_aware": (guidance.magnitude_aware(G, alpha=0.7), (NULL,), lambda: mambo(0.7)),
}
for PATH in ("linear", "trig", "vp"):
    own = paths.PATHS[PATH]()
    # The bounds depend on the path, through the size of its data predictions.
    size = float(np.median(lengths(data(PATH, T, X, V) - data(PATH, T, X, NULL))))
    bound = float(np.median(np.abs(data(PATH, T, X, cfg(V, NULL, g(T)))).max(1)) * 0.7)
    RULES |= {
        f"threshold, {PATH}": (
            guidance.threshold(CFG, own, percentile=80.0, largest=bound),
            (NULL,),
            lambda p=PATH, bound=bound: thresholded(p, 80.0, bound),
        ),
        f"projected, {PATH}": (
            plain_rule(guidance.projected(G, own, parallel=0.3)),
            (NULL,),
            lambda p=PATH: apg(p, 0.3, np.inf),
        ),
        f"projected and shortened, {PATH}": (
            plain_rule(guidance.projected(G, own, parallel=-0.4, largest=size)),
            (NULL,),
            lambda p=PATH, size=size: apg(p, -0.4, size),
        ),
        f"beta_normalised, {PATH}": (
            guidance.beta_normalised(G, own, exponent=0.6),
            (NULL,),
            lambda p=PATH: beta_normalised(p, 0.6),
        ),
        f"contrastive, {PATH}": (
            guidance.contrastive(G, N, own, tau=0.1),
            (NULL, AWAY, OTHER),
            lambda p=PATH: contrastive(p, 0.1),
        ),
    }


@pytest.mark.parametrize("name", sorted(RULES))
def test_rule_is_its_formula(name):
    rule, refs, expected = RULES[name]
    got = rule(jnp.float64(T), *arrays(X, V), arrays(*refs))
    np.testing.assert_allclose(got, expected(), rtol=1e-8, atol=1e-10)


def test_nothing_to_guide_is_finite():
    """v = u_ref has no direction, and v = u_ref = 0 no norm; the results and their gradients are finite."""
    for name in sorted(RULES):
        rule, refs, _ = RULES[name]
        if name.startswith(("threshold", "zero_init")):
            continue
        for v in (V, 0 * V):
            same = jnp.asarray(v)
            got = rule(jnp.float64(T), jnp.asarray(X), same, (same,) * len(refs))
            np.testing.assert_allclose(got, v, rtol=1e-6, atol=1e-12, err_msg=name)
    for rule in (guidance.magnitude_aware(G), guidance.renormalise(CFG), guidance.beta_normalised(G, paths.linear())):
        slope = jax.grad(lambda v, rule=rule: jnp.sum(rule(jnp.float64(T), v, v, (jnp.asarray(NULL),)) ** 2))
        assert np.isfinite(slope(jnp.asarray(NULL))).all()
    np.testing.assert_array_equal(jax.grad(lambda x: norm(x).sum())(jnp.zeros((2, 3))), 0)
    np.testing.assert_allclose(norm(jnp.asarray([[3.0, 4.0]])), [[5.0]])


def test_data_predictions_have_no_part_in_the_velocity_at_the_end():
    """At t = 1, where σ = 0, APG's difference of data predictions has no velocity, so the result is v."""
    got = plain_rule(guidance.projected(G, paths.linear()))(jnp.float64(1.0), *arrays(X, V), arrays(NULL))
    np.testing.assert_array_equal(got, V)


# Methods, as selected on the command line

CONDITIONS = {name: given(np.full(B, i)) for i, name in enumerate(("away", "other", "own"))}
STEPS = np.array([0.0, 0.1, T, 0.55, 1.0])


def density(t, a, b):
    """Of the Beta distribution."""
    return t ** (a - 1) * (1 - t) ** (b - 1) * math.gamma(a + b) / math.gamma(a) / math.gamma(b)


def plus_plus():
    (a, b, *_), (a_next, b_next, *_) = coefficients("trig", T), coefficients("trig", 0.55)
    return cfg(V, NULL, g(T) * a_next / (a_next - a * b_next / b))


KEYS = jax.random.split(jax.random.key(4), B)


def other_times(t, noise, exponent):
    """Of TSG, in the paper's time τ = 1 − t: τ + sτ^α·n, with the n of each key and of the bits of t."""
    bits = np.float32(t).view(np.uint32)
    n = [jax.random.normal(jax.random.fold_in(key, bits), (), jnp.float64) for key in KEYS]
    return 1 - np.clip((1 - t) - noise * (1 - t) ** exponent * np.asarray(n), 0, 1)


ONE = {"negatives": (CONDITIONS["away"],), "gamma_negative": N}
TWO = {"negatives": (CONDITIONS["away"], CONDITIONS["other"]), "gamma_negative": N}
SPREAD = float(np.median(lengths(data("trig", T, X, V) - data("trig", T, X, NULL))))
# name: (inputs, settings, expected first step)
METHODS = {
    "cfg": ({}, {}, lambda: cfg(V, NULL, g(T))),
    "cfg, rescaled": ({}, {"rescale": 0.3}, lambda: rescaled(0.3)),
    "cfg, channels": ({}, {"channels": 2}, lambda: on_first(2, lambda x, v, null: cfg(v, null, g(T)))),
    "cfg, rescaled, channels": ({}, {"rescale": 0.3, "channels": 5}, lambda: on_first(5, rescaled_of_some)),
    "cfg, replaced": ({"negatives": (CONDITIONS["away"],)}, {}, lambda: cfg(V, AWAY, g(T))),
    "cfg, negatives": (TWO, {}, RULES["cfg_negative"][2]),
    "cfg, composed": (
        {**ONE, "composed": ((CONDITIONS["other"], lambda t: 0.6 * G(t)),)},
        {},
        lambda: cfg(V, NULL, g(T)) + column(0.6 * g(T)) * (OTHER - NULL) - column(n(T)) * (AWAY - NULL),
    ),
    "zero_star": ({}, {}, lambda: star(NULL)),
    "zero_star, waits": ({}, {"zero_init": 0.31}, lambda: 0 * V),
    "zero_star, moves": ({}, {"zero_init": T}, lambda: star(NULL)),
    "apg": ({}, {"parallel": -0.4, "largest": SPREAD}, lambda: apg("trig", -0.4, SPREAD)),
    "apg, channels": (
        {},
        {"parallel": -0.4, "largest": SOME, "momentum": 0.4, "channels": 3},
        lambda: on_first(3, apg_of_some),
    ),
    "apg, momentum": ({}, {"parallel": 0.3, "momentum": 0.4}, lambda: apg("trig", 0.3, np.inf)),
    "tcfg": ({}, {}, tangential),
    "mambo_g": ({}, {"alpha": 0.7}, lambda: mambo(0.7)),
    "beta_cfg": (
        {},
        {"a": 2.6, "b": 1.8, "exponent": 0.6},
        lambda: beta_normalised("trig", 0.6, density(T, 2.6, 1.8)),
    ),
    "cfg_pp": ({}, {}, plus_plus),
    "feedback": ({}, {"pi": 0.8}, lambda: V + column(g(T)) * (V - NULL) * 0.2 / 0.8),
    "perp_neg": (TWO, {}, perpendicular),
    "contrastive": (TWO, {"tau": 0.1}, lambda: contrastive("trig", 0.1)),
    "dng": (ONE, {"prior": 0.3}, lambda: cfg(V, NULL, g(T)) - column(n(T)) * 3 / 7 * (AWAY - NULL)),
    "autoguidance": ({}, {}, lambda: cfg(V, V / 2, g(T))),
    "icg": ({"draw": lambda key: jnp.int32(1)}, {}, lambda: cfg(V, OTHER, g(T))),
    "tsg": (
        {},
        {"noise": 0.9, "exponent": 1.6},
        lambda: cfg(V, V * column(other_times(T, 0.9, 1.6)) / T, g(T)),
    ),
    "perturbed": ({}, {"strength": 1.7}, lambda: cfg(V, NULL, g(T)) + 1.7 * V / 2),
}


def answers(t, x, c):
    """A network that says V, NULL, AWAY or OTHER to the condition that it is given; t/T times as much at other t."""
    known = jnp.asarray(np.stack([AWAY, OTHER, V]))[c.value, jnp.arange(len(t)) % B]
    return t[:, None] / T * jnp.where(c.present[:, None], known, jnp.asarray(np.tile(NULL, (len(t) // B, 1))))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_first_step_of_a_method_is_its_formula(name):
    inputs, options, expected = METHODS[name]
    inputs = guidance.methods.GuidanceInputs(
        answers,
        CONDITIONS["own"],
        G,
        paths.trig(),
        ts=jnp.asarray(STEPS),
        weak=lambda t, x, c: answers(t, x, c) / 2,
        keys=KEYS,
        **inputs,
    )
    rules = guidance.methods.build(name.split(",")[0], inputs, **options)
    with jax.disable_jit():
        u = as_stateful(guidance.guide(answers, inputs.c, rules))
        got, _ = u.apply(u.init(jnp.asarray(X)), jnp.float64(T), jnp.asarray(X))
    np.testing.assert_allclose(got, expected(), rtol=1e-5, atol=1e-6)


def test_every_method_has_its_formula():
    assert {name.split(",")[0] for name in METHODS} | {"fdg"} == set(guidance.methods.METHODS)


def test_fdg_guides_the_fine_levels_fine_times_as_much():
    v, ref = np.random.default_rng(2).normal(size=(2, B, 8, 6, 2))
    inputs = guidance.methods.GuidanceInputs(answers, CONDITIONS["own"], G, paths.trig())
    rule = plain_rule(guidance.methods.build("fdg", inputs, fine=2.4, levels=3).rule)
    *fine, coarse = projection.laplacian(jnp.asarray(v - ref), 3)
    extra = (g(T) - 1)[:, None, None, None]
    expected = v + extra * (2.4 * sum(map(np.asarray, fine)) + np.asarray(coarse))
    np.testing.assert_allclose(rule(jnp.float64(T), *arrays(v, v), arrays(ref)), expected, rtol=1e-6, atol=1e-7)


def test_defaults_are_those_of_the_papers_and_the_same_everywhere():
    """A method and the rule behind it have the same defaults."""
    papers = {
        "apg": {"parallel": 0.0, "largest": np.inf, "momentum": 0.0},
        "beta_cfg": {"a": 2.0, "b": 2.0, "exponent": 1.0},
        "contrastive": {"tau": 0.2},
        "dng": {"prior": 0.01, "tau": 0.2, "offset": 0.0, "largest": 0.8},
        "fdg": {"fine": 2.0, "levels": 3},
        "feedback": {"pi": 0.95, "tau": 1.0, "drift": 0.0, "largest": 10.0},
        "mambo_g": {"alpha": 8.0},
        "perturbed": {"strength": 2.8},
        "tsg": {"noise": 0.3, "exponent": 1.0},
    }
    functions = {
        "apg": guidance.projected,
        "beta_cfg": guidance.beta_normalised,
        "contrastive": guidance.contrastive,
        "dng": guidance.dynamic_negative,
        "feedback": guidance.feedback,
        "mambo_g": guidance.magnitude_aware,
        "tsg": guidance.retimed,
    }
    for name, expected in papers.items():
        method = guidance.methods.METHODS[name]
        for function in (method, functions.get(name, method)):  # some rules have no defaults of their own
            found = {p.name: p.default for p in inspect.signature(function).parameters.values()}
            assert {k: found[k] for k in expected if k in found} == {k: v for k, v in expected.items() if k in found}
    rules = {
        guidance.rescale: {"phi": 0.7},
        guidance.threshold: {"percentile": 99.5, "largest": 1.0},
        guidance.zero_init: {"until": 0.04},
        guidance.schedules.within: {"outside": 1.0},
        guidance.schedules.interval: {"outside": 1.0},
    }
    for function, expected in rules.items():
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in expected} == expected
