"""Every formula of the room against NumPy in float64, written from the papers, at settings where nothing is neutral.

Scales differ for each sample and change with time, there are several negatives, norms are over and under their bounds,
and paths are not the linear one, on which α̇σ − ασ̇ is 1 and mistakes cancel.
"""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import condition, guidance, paths, solvers, times
from flowguide.condition import given, null
from flowguide.guidance import posterior, projection, schedules
from flowguide.guidance.rules import norm

B, SIZE = 5, 7
RNG = np.random.default_rng(0)
X, V, NULL, AWAY, OTHER = RNG.normal(size=(5, B, SIZE))
# Samples 0 and 1 are guided little, 3 and 4 a lot; 2 is guided away.
GAMMAS, WEIGHTS = np.array([0.4, 1.3, -0.8, 3.5, 6.0]), np.array([0.3, -0.6, 1.2, 2.0, 0.9])
T = 0.3


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def column(values):
    return np.reshape(values, (-1, 1))


def g(t):
    return GAMMAS * (0.5 + t)


def n(t):
    return WEIGHTS * (1.2 - t)


def scheduled(f):
    """The same schedule for the library."""
    return lambda t: jnp.asarray(f(t))


G, N = scheduled(g), scheduled(n)


def coefficients(path, t):
    """α, σ and their derivatives, written out."""
    if path == "linear":
        return t, 1 - t, 1.0, -1.0
    if path == "trig":
        h = np.pi / 2
        return np.sin(h * t), np.cos(h * t), h * np.cos(h * t), -h * np.sin(h * t)
    s = 1 - t
    alpha, beta = np.exp(-0.05 * s - 0.25 * 19.9 * s**2), 0.1 + 19.9 * s
    sigma = np.sqrt(1 - alpha**2)
    return alpha, sigma, beta * alpha / 2, -(alpha**2) * beta / 2 / sigma


def data(path, t, x, u):
    """E[x1|x_t], from the two equations x = αD + σe and u = α̇D + σ̇e."""
    a, b, da, db = coefficients(path, t)
    return np.linalg.solve(np.array([[a, b], [da, db]]), np.stack([np.ravel(x), np.ravel(u)]))[0].reshape(x.shape)


def noise(path, t, x, u):
    """E[x0|x_t], from the same."""
    a, b, da, db = coefficients(path, t)
    return np.linalg.solve(np.array([[a, b], [da, db]]), np.stack([np.ravel(x), np.ravel(u)]))[1].reshape(x.shape)


def from_data(path, t, x, d):
    """The velocity that predicts d at x."""
    a, b, da, db = coefficients(path, t)
    return da * d + db * (x - a * d) / b


def lengths(x):
    return np.sqrt(np.sum(x.reshape(len(x), -1) ** 2, 1)).reshape(-1, *[1] * (x.ndim - 1))


def dot(x, y):
    return column([np.vdot(a, b) for a, b in zip(x, y, strict=True)])


def cfg(v, ref, scale):
    return ref + column(scale) * (v - ref)


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


def projected(path, t, x, v, difference, parallel, largest):
    """APG: D_v + (γ − 1)(g_⊥ + η·g_∥) for a difference g of data predictions."""
    d = data(path, t, x, v)
    short = difference * np.minimum(1, largest / lengths(difference))
    along = d * dot(short, d) / dot(d, d)
    return from_data(path, t, x, d + column(g(t) - 1) * (short - along + parallel * along))


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


def beta_normalised(path, exponent):
    length = lengths(noise(path, T, X, V) - noise(path, T, X, NULL))
    return NULL + column(g(T)) * (V - NULL) / length**exponent


def contrastive(path, tau):
    def similar(u):
        return np.exp(-tau * lengths(noise(path, T, X, u) - noise(path, T, X, NULL)) ** 2)

    pull = 2 * column(g(T)) * (V - NULL) / (1 + similar(V))
    push = sum(2 * column(n(T)) * (u - NULL) * similar(u) / (1 + similar(u)) for u in (AWAY, OTHER))
    return NULL + pull - push


CFG = guidance.cfg(G)
TINY = 1e-4 * NULL
# name: (rule, references, what it must give)
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
    "rescale": (guidance.rescale(CFG, 0.3), (NULL,), lambda: rescaled(0.3)),
    "renormalise": (guidance.renormalise(CFG), (NULL,), renormalised),
    "zero_init, before": (guidance.zero_init(CFG, T + 1e-6), (NULL,), lambda: 0 * V),
    "zero_init, at its end": (guidance.zero_init(CFG, T), (NULL,), lambda: cfg(V, NULL, g(T))),
    "zero_star": (guidance.zero_star(CFG), (NULL,), lambda: star(NULL)),
    "zero_star of little": (guidance.zero_star(CFG), (TINY,), lambda: star(TINY)),
    "tangential": (guidance.tangential(CFG), (NULL,), tangential),
    "perpendicular": (guidance.perpendicular(G, N), (NULL, AWAY, OTHER), perpendicular),
    "magnitude_aware": (guidance.magnitude_aware(G, 0.7), (NULL,), lambda: mambo(0.7)),
}
for PATH in ("linear", "trig", "vp"):
    own = paths.PATHS[PATH]()
    # What is large depends on the path, by the size of its data predictions.
    size = float(np.median(lengths(data(PATH, T, X, V) - data(PATH, T, X, NULL))))
    bound = float(np.median(np.abs(data(PATH, T, X, cfg(V, NULL, g(T)))).max(1)) * 0.7)
    RULES |= {
        f"threshold, {PATH}": (
            guidance.threshold(CFG, own, 80.0, bound),
            (NULL,),
            lambda p=PATH, bound=bound: thresholded(p, 80.0, bound),
        ),
        f"projected, {PATH}": (guidance.projected(G, own, 0.3), (NULL,), lambda p=PATH: apg(p, 0.3, np.inf)),
        f"projected and shortened, {PATH}": (
            guidance.projected(G, own, -0.4, size),
            (NULL,),
            lambda p=PATH, size=size: apg(p, -0.4, size),
        ),
        f"beta_normalised, {PATH}": (
            guidance.beta_normalised(G, own, 0.6),
            (NULL,),
            lambda p=PATH: beta_normalised(p, 0.6),
        ),
        f"contrastive, {PATH}": (
            guidance.contrastive(G, N, own, 0.1),
            (NULL, AWAY, OTHER),
            lambda p=PATH: contrastive(p, 0.1),
        ),
    }


@pytest.mark.parametrize("name", sorted(RULES))
def test_rule_is_its_formula(name):
    rule, refs, expected = RULES[name]
    got = rule(jnp.float64(T), *(jnp.asarray(a) for a in (X, V)), tuple(jnp.asarray(a) for a in refs))
    np.testing.assert_allclose(got, expected(), rtol=1e-8, atol=1e-10)


def arrays(*values):
    return tuple(jnp.asarray(a) for a in values)


@pytest.mark.parametrize("path", ["linear", "trig"])
@pytest.mark.parametrize("momentum", [-0.5, 0.8])
def test_momentum_over_three_steps(momentum, path):
    """g_k = D_v − D_ref + β·g_{k−1}: what is remembered is neither shortened nor projected."""
    largest = 1.5
    rule = guidance.projected(G, paths.PATHS[path](), 0.3, largest, momentum)
    memory, past, rng = rule.init(jnp.asarray(X)), 0 * X, np.random.default_rng(1)
    for t in (0.1, 0.35, 0.7):
        x, v, ref = rng.normal(size=(3, B, SIZE))
        past = data(path, t, x, v) - data(path, t, x, ref) + momentum * past
        assert (lengths(past) > largest).any()
        got, memory = rule.apply(memory, jnp.float64(t), *arrays(x, v), arrays(ref))
        np.testing.assert_allclose(got, projected(path, t, x, v, past, 0.3, largest), rtol=1e-8, atol=1e-10)


def triangles(there, here):
    """Linear interpolation as a matrix; where it makes smaller, over as wide a triangle as pixels become one."""
    scale = here / there
    middles = (np.arange(there)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(here) - middles) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("sides", [(8, 6), (7, 5)])
def test_frequencies_by_matrices(sides):
    """Level by level: from what is left, its copy made 2, then 4 times smaller and large again is taken away."""
    scales = 5.0, -2.0, 1.6
    v, ref = np.random.default_rng(2).normal(size=(2, 3, *sides, 2))
    rule = guidance.frequencies([scheduled(lambda t, s=s: s * (t + 0.7)) for s in scales])
    rest, expected = v - ref, v.copy()
    for level, s in enumerate(scales):
        smaller = [-(-side // 2 ** (level + 1)) for side in sides]
        row, across = (triangles(a, b) @ triangles(b, a) for a, b in zip(sides, smaller, strict=True))
        coarse = np.einsum("ij,bjkc,lk->bilc", row, rest, across) if level < 2 else 0 * rest
        expected += (s - 1) * (rest - coarse)
        rest = coarse
    got = rule(jnp.float64(T), *arrays(v, v), arrays(ref))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_levels_hold_what_they_are_named_for():
    """A checkerboard is all in the finest level but its edges, a ramp of the whole image in the coarsest."""
    i, j = np.indices((16, 16))
    board, ramp = (np.asarray(a, float)[None, :, :, None] for a in ((-1.0) ** (i + j), (i - 7.5) / 8))
    shares = [
        [float(np.square(level).sum() / np.square(x).sum()) for level in projection.laplacian(jnp.asarray(x), 3)]
        for x in (board, ramp)
    ]
    assert shares[0][0] > 0.9
    assert shares[1][2] > 0.6
    assert shares[1][0] < 0.01


# Posterior estimates


def log_ratio(path, t0, x0, one, other, t, x):
    """Difference of the log densities of the memoryless step, and its variance, from λ = log(α/σ)."""
    (a0, b0, *_), (a, b, *_) = coefficients(path, t0), coefficients(path, t)
    fade = 0.0 if a0 == 0 else np.exp(-(np.log(a / b) - np.log(a0 / b0)))
    variance = b**2 * (1 - fade**2)

    def log_density(u):
        mean = a * data(path, t0, x0, u) + b * fade * noise(path, t0, x0, u)
        return -((x - mean) ** 2).sum(1) / (2 * variance)

    return log_density(one) - log_density(other), variance


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
@pytest.mark.parametrize(("t0", "t"), [(0.0, 0.2), (0.3, 0.45), (0.6, 0.95)])
def test_log_ratio_of_one_step(path, t0, t):
    seen = (jnp.float64(t0), *arrays(X, V, NULL))
    got, variance = posterior.log_ratio(paths.PATHS[path](), seen, jnp.float64(t), jnp.asarray(OTHER))
    expected = log_ratio(path, t0, X, V, NULL, t, OTHER)
    np.testing.assert_allclose(got, expected[0], rtol=1e-6)
    np.testing.assert_allclose(variance, expected[1], rtol=1e-6)


def test_log_ratio_is_zero_where_nothing_is_seen_or_left():
    for t0, t in ((-1.0, 0.5), (0.9, 1.0)):
        seen = (jnp.float64(t0), *arrays(X, V, NULL))
        ratio, variance = posterior.log_ratio(paths.linear(), seen, jnp.float64(t), jnp.asarray(OTHER))
        np.testing.assert_array_equal(ratio, 0)
        assert variance == np.inf


def walk(path, seed):
    """Times, states and velocities under c, ∅ and d of six steps, which lead to where c would and ∅ would in turn."""
    rng, ts = np.random.default_rng(seed), np.array([0.2, 0.3, 0.45, 0.6, 0.7, 0.8])
    size, x, steps = column([0.3, 1.0, 2.0, 4.0, 9.0]), rng.normal(size=(B, SIZE)), []
    for i, t in enumerate(ts):
        v, ref, away = size * rng.normal(size=(3, B, SIZE))
        steps.append((t, x, v, ref, away))
        if i + 1 < len(ts):
            a, b, *_ = coefficients(path, ts[i + 1])
            u = np.where(column((np.arange(B) + i // 2) % 2 == 0), v, ref)
            x = a * data(path, t, x, u) + b * noise(path, t, x, u) + 0.1 * rng.normal(size=(B, SIZE))
    return steps


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
def test_dynamic_negative_over_six_steps(path):
    """u_∅ + γ(v − u_∅) − λ·p/(1 − p)(u_d − u_∅), log p += τ·log-ratio + offset/(2v), from both of its bounds back."""
    prior, tau, offset, largest = 0.3, 0.6, 0.05, 0.7
    rule = guidance.dynamic_negative(G, paths.PATHS[path](), N, prior, tau, offset, largest)
    log_p, before, bounds = np.full(B, np.log(prior)), None, set()
    memory = rule.init(jnp.asarray(X))
    # d in the place of the condition, so that half of the samples move towards it.
    for t, x, d, ref, v in walk(path, 3):
        if before is not None:
            ratio, variance = log_ratio(path, *before, t, x)
            log_p = log_p + tau * ratio + offset / (2 * variance)
            bounds |= set(np.sign(log_p - np.clip(log_p, np.log(1e-6), np.log(largest))).tolist())
            log_p = np.clip(log_p, np.log(1e-6), np.log(largest))
        p, before = np.exp(log_p), (t, x, d, ref)
        got, memory = rule.apply(memory, jnp.float64(t), *arrays(x, v), arrays(ref, d))
        expected = cfg(v, ref, g(t)) - column(n(t) * p / (1 - p)) * (d - ref)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
    assert bounds == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
def test_feedback_over_six_steps(path):
    """γ = p/(p − (1 − π)), log p += τ·log-ratio + δ, between ln((1 − π)γ_max/(γ_max − 1)) and 3, γ − 1 multiplied."""
    pi, tau, drift, largest = 0.8, 0.7, -0.15, 4.0
    rule = guidance.feedback(paths.PATHS[path](), pi, tau, drift, largest, N)
    level, before, bounds = np.zeros(B), None, set()
    lowest = np.log((1 - pi) * largest / (largest - 1))
    memory = rule.init(jnp.asarray(X))
    for t, x, v, ref, _ in walk(path, 4):
        if before is not None:
            level = level + tau * log_ratio(path, *before, t, x)[0] + drift
            bounds |= set(np.sign(level - np.clip(level, lowest, 3)).tolist())
            level = np.clip(level, lowest, 3)
        before = (t, x, v, ref)
        scale = np.exp(level) / (np.exp(level) - (1 - pi))
        assert (scale <= largest + 1e-9).all()
        got, memory = rule.apply(memory, jnp.float64(t), *arrays(x, v), arrays(ref))
        np.testing.assert_allclose(got, v + column(n(t) * (scale - 1)) * (v - ref), rtol=1e-6, atol=1e-8)
    assert bounds == {-1.0, 0.0, 1.0}


def test_feedback_has_one_as_its_multiplier_and_bounds():
    rule = guidance.feedback(paths.linear(), 0.8)
    got, _ = rule.apply(rule.init(jnp.asarray(X)), jnp.float64(T), *arrays(X, V), arrays(NULL))
    np.testing.assert_allclose(got, NULL + (V - NULL) / 0.8, rtol=1e-6)
    for wrong in ({"pi": 0.0}, {"pi": 1.1}, {"largest": 1.0}):
        with pytest.raises(ValueError, match="expected 0 < pi <= 1 and largest > 1"):
            guidance.feedback(paths.linear(), **wrong)


# Schedules

TS = np.array([0.0, 0.15, 0.5, 0.8, 1.0])
SHAPES = {
    "constant": (guidance.constant(jnp.asarray(GAMMAS)), lambda t: GAMMAS),
    "linear": (schedules.linear(jnp.asarray(GAMMAS)), lambda t: 1 + (GAMMAS - 1) * 2 * t),
    "cosine": (schedules.cosine(jnp.asarray(GAMMAS)), lambda t: 1 + (GAMMAS - 1) * (1 - np.cos(np.pi * t))),
    "power": (schedules.power(jnp.asarray(GAMMAS), 2.7), lambda t: 1 + (GAMMAS - 1) * 3.7 * t**2.7),
    "beta": (
        schedules.beta(jnp.asarray(GAMMAS), 2.6, 1.8),
        lambda t: GAMMAS * t**1.6 * (1 - t) ** 0.8 * math.gamma(4.4) / math.gamma(2.6) / math.gamma(1.8),
    ),
    "within": (schedules.within(N, 0.15, 0.5, 0.7), lambda t: n(t) if t in (0.15, 0.5) else 0.7 + 0 * GAMMAS),
    "interval": (
        schedules.interval(jnp.asarray(GAMMAS), 0.5, 0.8),
        lambda t: GAMMAS if t in (0.5, 0.8) else 1 + 0 * GAMMAS,
    ),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_schedule_is_its_formula(name):
    schedule, expected = SHAPES[name]
    for t in TS:
        np.testing.assert_allclose(schedule(jnp.float64(t)) * np.ones(B), expected(t), rtol=1e-5, atol=1e-6)


def test_defaults_of_schedules():
    np.testing.assert_allclose(schedules.power(3.0)(jnp.float64(0.4)), 1 + 2 * 3 * 0.4**2, rtol=1e-6)
    np.testing.assert_allclose(schedules.beta(3.0)(jnp.float64(0.4)), 3 * 6 * 0.4 * 0.6, rtol=1e-6)


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
def test_cfg_plus_plus_is_one_step_that_renoises_with_the_null_noise(path):
    """D and e of the velocity at this scale, put together again, are D_∅ + λ(D_c − D_∅) and e_∅."""
    ts, strength = np.array([0.0, 0.1, 0.35, 0.6, 0.9, 1.0]), np.array([0.2, 0.5, 0.6, 0.9, 1.0])
    schedule = schedules.plus_plus(paths.PATHS[path](), jnp.asarray(ts), jnp.asarray(strength))
    for t, t_next in pairwise(ts):
        a, b, *_ = coefficients(path, min(t_next, paths.VP_LAST) if path == "vp" else t_next)
        u = cfg(V, NULL, schedule(jnp.float64(t)))
        got = a * data(path, t, X, u) + b * noise(path, t, X, u)
        d, d_null = data(path, t, X, V), data(path, t, X, NULL)
        expected = a * (d_null + column(strength) * (d - d_null)) + b * noise(path, t, X, NULL)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        # All of a step has one scale.
        np.testing.assert_array_equal(schedule(jnp.float64(0.5 * (t + t_next))), schedule(jnp.float64(t)))
    np.testing.assert_array_equal(schedule(jnp.float64(1.0)), schedule(jnp.float64(0.95)))


# Sources

KINDS = np.array([0.4, -0.9, 1.3])  # of two labels and null


def network(t, x, c):
    """The same in NumPy and in JAX: sin(3x)·k_c + t·x."""
    kind = jnp.asarray(KINDS)[jnp.where(c.present, c.value, 2)]
    return jnp.sin(3 * x) * kind[:, None] + t[:, None] * x


def by_hand(t, x, kind):
    return np.sin(3 * x) * column(KINDS[kind]) + column(t) * x


LABELS = np.array([0, 1, 0, 1, 1])
LABEL, FULL = given(LABELS), np.full(B, 2)


@pytest.mark.parametrize("t", [0.2, 0.95, np.array([0.0, 0.3, 0.8, 0.95, 1.0])], ids=["early", "late", "each"])
def test_rectified_looks_half_a_step_ahead(t):
    """At t = 0.95 only 0.05 is left to look ahead, not h = 0.1: both the time and the point know."""
    each = np.broadcast_to(t, B).astype(float)
    ahead = np.minimum(each + 0.1, 1.0)
    u = by_hand(each, X, LABELS)
    there = X + column(ahead - each) * u
    expected = u + column(n(each)) * (by_hand(ahead, there, LABELS) - by_hand(ahead, there, FULL))
    got = guidance.rectified(network, LABEL, N, 0.1)(jnp.asarray(t), jnp.asarray(X))
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
@pytest.mark.parametrize(
    "t", [0.05, 0.0499, 0.6, np.array([0.01, 0.05, 0.3, 0.6, 0.9])], ids=["start", "before", "later", "each"]
)
def test_classifier_guidance_is_kappa_times_the_gradient(t, path):
    """κ = σ(σα̇/α − σ̇), and log p = −½·a_t‖x − m‖² has the gradient −a_t(x − m); nothing before ``start``."""
    each = np.broadcast_to(t, B).astype(float)

    def log_probability(t, x):
        return -0.5 * (1 + t) ** 2 * jnp.sum((x - 0.4) ** 2, 1)

    a, b, da, db = (np.broadcast_to(k, B) for k in coefficients(path, each))
    kappa = np.where(each < 0.05, 0.0, b * (b * da / np.where(a > 0, a, 1) - db))
    gradient = -column((1 + each) ** 2) * (X - 0.4)
    expected = by_hand(each, X, FULL) + column(n(each) * kappa) * gradient
    base = condition.bind(network, null(LABEL))
    got = guidance.with_gradient(base, paths.PATHS[path](), log_probability, N, 0.05)(jnp.asarray(t), jnp.asarray(X))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
    weight = 2.5
    plain = guidance.with_gradient(base, paths.PATHS[path](), log_probability, weight, 0.05)
    expected = by_hand(each, X, FULL) + weight * column(kappa) * gradient
    np.testing.assert_allclose(plain(jnp.asarray(t), jnp.asarray(X)), expected, rtol=1e-6, atol=1e-8)


KEYS = jax.random.split(jax.random.key(5), 3)
LONG = np.random.default_rng(6).normal(2.0, 3.0, size=(3, 4096))


def annealed(value, t, **settings):
    seen = guidance.annealed(lambda t, x, c: c.value, KEYS, **settings)
    return np.asarray(seen(jnp.asarray(t), jnp.zeros((3, 1)), given(jnp.asarray(value))))


def test_cads_noise_has_its_amplitude_and_the_condition_its_share():
    """mix = 0: c̃ = √g·c + s√(1 − g)·n, g = (t − late)/(early − late); n is the same whatever c and s are."""
    t, options = np.array([0.35, 0.55, 0.15]), {"late": 0.2, "early": 0.6, "mix": 0.0}
    share = np.array([0.375, 0.875, 0.0])[:, None]
    noisy, none = annealed(LONG, t, noise=0.5, **options), annealed(0 * LONG, t, noise=0.5, **options)
    np.testing.assert_allclose(noisy - none, np.sqrt(share) * LONG, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(none.std(1), 0.5 * np.sqrt(1 - share[:, 0]), rtol=0.06)
    assert np.abs(none.mean(1)).max() < 0.05
    np.testing.assert_allclose(annealed(0 * LONG, t, noise=1.5, **options), 3 * none, rtol=1e-6)
    assert np.abs(np.corrcoef(none) - np.eye(3)).max() < 0.08  # samples have noise of their own
    other = annealed(0 * LONG, t + 0.01, noise=0.5, **options)
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(none, other, strict=True)) < 0.08  # so has each time


def test_cads_restores_mean_and_spread_as_far_as_mix_says():
    t, options = np.array([0.35, 0.55, 0.15]), {"noise": 2.0, "late": 0.2, "early": 0.6}
    noisy, mixed, restored = (annealed(LONG, t, mix=mix, **options) for mix in (0.0, 0.3, 1.0))
    for i in range(3):
        expected = (noisy[i] - noisy[i].mean()) / noisy[i].std() * LONG[i].std() + LONG[i].mean()
        np.testing.assert_allclose(restored[i], expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mixed[i], 0.3 * expected + 0.7 * noisy[i], rtol=1e-6, atol=1e-6)
    # A single number has no spread: it stays noisy.
    np.testing.assert_array_equal(
        annealed(LONG[:, :1], t, mix=1.0, **options), annealed(LONG[:, :1], t, mix=0.0, **options)
    )
    np.testing.assert_array_equal(annealed(LONG, np.array([0.601, 0.61, 1.0]), mix=0.5, **options), LONG)


# What the rules stand on


def test_nothing_to_guide_is_finite():
    """v = u_ref has no direction, and v = u_ref = 0 no size; nor have their gradients."""
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
    """σ = 0 at t = 1: APG's difference of data predictions is no velocity there, so that v stays."""
    got = guidance.projected(G, paths.linear())(jnp.float64(1.0), *arrays(X, V), arrays(NULL))
    np.testing.assert_array_equal(got, V)


@pytest.mark.parametrize("passes", ["together", "apart"])
def test_references_come_back_in_their_order(passes):
    """Two networks in turn, one of them called once for both of its conditions."""

    def other(t, x, c):
        return 2 * network(t, x, c) + 1

    c, d = given(np.zeros(B, int)), given(np.ones(B, int))
    sources = [guidance.Reference(*r) for r in ((network, d), (other, c), (network, null(c)), (other, d))]
    for t in (0.3, np.linspace(0, 1, B)):
        got = guidance.evaluate(sources, jnp.asarray(t), jnp.asarray(X), passes)
        each = np.broadcast_to(t, B)
        expected = [
            by_hand(each, X, FULL - 1),
            2 * by_hand(each, X, FULL - 2) + 1,
            by_hand(each, X, FULL),
            2 * by_hand(each, X, FULL - 1) + 1,
        ]
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7)


def test_gap_of_velocities_that_vanish():
    """A cosine with nothing is 0, not NaN; and differences and lengths are over all of a sample."""

    def vanishing(t, x, c):
        return jnp.where(c.present[:, None], 3.0, 0.0) * jnp.ones_like(x)

    found = guidance.gap(
        vanishing, LABEL, solvers.euler(), condition.bind(network, LABEL), jnp.asarray(X), times.grid(2).astype(float)
    )
    np.testing.assert_array_equal(found.t, [0.0, 0.5])
    np.testing.assert_array_equal(found.cosine, np.zeros((2, B)))
    np.testing.assert_allclose(found.difference, np.full((2, B), 3 * np.sqrt(SIZE)), rtol=1e-7)
    np.testing.assert_allclose(found.conditional, np.full((2, B), 3 * np.sqrt(SIZE)), rtol=1e-7)
