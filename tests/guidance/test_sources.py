"""Look-ahead, gradients and annealed conditions against NumPy; the order of references, and the gap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import condition, guidance, paths, solvers, times
from flowguide.condition import given, null
from tests.support.by_hand import SIZE, B, N, X, coefficients, column, n

pytestmark = pytest.mark.usefixtures("float64")


KINDS = np.array([0.4, -0.9, 1.3])  # for two labels and null


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
    """At t = 0.95 only 0.05 is left to look ahead, not h = 0.1: both the time and the point are clipped."""
    each = np.broadcast_to(t, B).astype(float)
    ahead = np.minimum(each + 0.1, 1.0)
    u = by_hand(each, X, LABELS)
    there = X + column(ahead - each) * u
    expected = u + column(n(each)) * (by_hand(ahead, there, LABELS) - by_hand(ahead, there, FULL))
    got = guidance.rectified(network, LABEL, N, half_step=0.1)(jnp.asarray(t), jnp.asarray(X))
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
@pytest.mark.parametrize(
    "t", [0.05, 0.0499, 0.6, np.array([0.01, 0.05, 0.3, 0.6, 0.9])], ids=["start", "before", "later", "each"]
)
def test_classifier_guidance_is_kappa_times_the_gradient(t, path):
    """κ = σ(σα̇/α − σ̇), and log p = −½·a_t‖x − m‖² has the gradient −a_t(x − m); no gradient before ``start``."""
    each = np.broadcast_to(t, B).astype(float)

    def log_probability(t, x):
        return -0.5 * (1 + t) ** 2 * jnp.sum((x - 0.4) ** 2, 1)

    a, b, da, db = (np.broadcast_to(k, B) for k in coefficients(path, each))
    kappa = np.where(each < 0.05, 0.0, b * (b * da / np.where(a > 0, a, 1) - db))
    gradient = -column((1 + each) ** 2) * (X - 0.4)
    expected = by_hand(each, X, FULL) + column(n(each) * kappa) * gradient
    base = condition.bind(network, null(LABEL))
    got = guidance.with_gradient(base, log_probability, N, paths.PATHS[path](), start=0.05)(
        jnp.asarray(t), jnp.asarray(X)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
    weight = 2.5
    plain = guidance.with_gradient(base, log_probability, weight, paths.PATHS[path](), start=0.05)
    expected = by_hand(each, X, FULL) + weight * column(kappa) * gradient
    np.testing.assert_allclose(plain(jnp.asarray(t), jnp.asarray(X)), expected, rtol=1e-6, atol=1e-8)


KEYS = jax.random.split(jax.random.key(5), 3)
LONG = np.random.default_rng(6).normal(2.0, 3.0, size=(3, 4096))


def annealed(value, t, **settings):
    seen = guidance.annealed(lambda t, x, c: c.value, KEYS, **settings)
    return np.asarray(seen(jnp.asarray(t), jnp.zeros((3, 1)), given(jnp.asarray(value))))


def test_cads_noise_has_its_amplitude_and_the_condition_its_share():
    """mix = 0: c̃ = √g·c + s√(1 − g)·n, g = (t − late)/(early − late); n does not depend on c and s."""
    t, options = np.array([0.35, 0.55, 0.15]), {"late": 0.2, "early": 0.6, "mix": 0.0}
    share = np.array([0.375, 0.875, 0.0])[:, None]
    noisy, none = annealed(LONG, t, noise=0.5, **options), annealed(0 * LONG, t, noise=0.5, **options)
    np.testing.assert_allclose(noisy - none, np.sqrt(share) * LONG, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(none.std(1), 0.5 * np.sqrt(1 - share[:, 0]), rtol=0.06)
    assert np.abs(none.mean(1)).max() < 0.05
    np.testing.assert_allclose(annealed(0 * LONG, t, noise=1.5, **options), 3 * none, rtol=1e-6)
    assert np.abs(np.corrcoef(none) - np.eye(3)).max() < 0.08  # different noise per sample
    other = annealed(0 * LONG, t + 0.01, noise=0.5, **options)
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(none, other, strict=True)) < 0.08  # and per time


def test_cads_restores_mean_and_spread_as_far_as_mix_says():
    t, options = np.array([0.35, 0.55, 0.15]), {"noise": 2.0, "late": 0.2, "early": 0.6}
    noisy, mixed, restored = (annealed(LONG, t, mix=mix, **options) for mix in (0.0, 0.3, 1.0))
    for i in range(3):
        expected = (noisy[i] - noisy[i].mean()) / noisy[i].std() * LONG[i].std() + LONG[i].mean()
        np.testing.assert_allclose(restored[i], expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mixed[i], 0.3 * expected + 0.7 * noisy[i], rtol=1e-6, atol=1e-6)
    # A single number has no standard deviation to restore, so it stays noisy.
    np.testing.assert_array_equal(
        annealed(LONG[:, :1], t, mix=1.0, **options), annealed(LONG[:, :1], t, mix=0.0, **options)
    )
    np.testing.assert_array_equal(annealed(LONG, np.array([0.601, 0.61, 1.0]), mix=0.5, **options), LONG)


@pytest.mark.parametrize("passes", ["together", "apart"])
def test_references_come_back_in_their_order(passes):
    """Two networks alternate; the one with two conditions is called once for both."""

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
    """The cosine with a zero velocity is 0, not NaN; differences and norms are over the whole sample."""

    def vanishing(t, x, c):
        return jnp.where(c.present[:, None], 3.0, 0.0) * jnp.ones_like(x)

    found = guidance.gap(
        vanishing, LABEL, solvers.euler(), condition.bind(network, LABEL), jnp.asarray(X), times.grid(2).astype(float)
    )
    np.testing.assert_array_equal(found.t, [0.0, 0.5])
    np.testing.assert_array_equal(found.cosine, np.zeros((2, B)))
    np.testing.assert_allclose(found.difference, np.full((2, B), 3 * np.sqrt(SIZE)), rtol=1e-7)
    np.testing.assert_allclose(found.conditional, np.full((2, B), 3 * np.sqrt(SIZE)), rtol=1e-7)
