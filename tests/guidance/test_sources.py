"""Look-ahead, gradients, other conditions and times against NumPy; the order of references, and the gap."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, condition, guidance, paths, solvers, times
from flowguide.condition import Condition, given, null
from tests.support.by_hand import SIZE, B, N, X, coefficients, column, n
from tests.support.plain import plain_velocity

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


MEANS, VARIANCES = np.array([[1.5, -0.5], [-2.0, 0.3], [0.4, 2.5]]), np.array([0.3, 0.9, 0.1])
LAW = analytic.mixture([0.6, 0.3, 0.1], MEANS, VARIANCES)
MANY, AT = 40_000, np.array([0.7, -1.1])


def of_class(path, t, x, kind):
    """The velocity of one class, which is Gaussian: ȧm + (aȧv + bḃ)/(a²v + b²)·(x − am)."""
    a, b, da, db = (np.reshape(k, (-1, 1)) for k in coefficients(path, t))
    m, v = MEANS[kind], np.reshape(VARIANCES[kind], (-1, 1))
    return da * m + (a * da * v + b * db) / (a**2 * v + b**2) * (x - a * m)


def of_many(reference, path, t, gamma):
    """The guided velocities at the same point, one for each key."""
    u, one = analytic.velocity(LAW, paths.PATHS[path]()), given(np.zeros(MANY, int))
    made = reference(u, one, jax.random.split(jax.random.key(11), MANY))
    rules = guidance.against(made, guidance.cfg(guidance.constant(gamma)), guidance.constant(gamma))
    return np.asarray(plain_velocity(guidance.guide(u, one, rules))(jnp.asarray(t), jnp.tile(AT, (MANY, 1))))


@pytest.mark.parametrize("path", ["linear", "trig"])
def test_independent_conditions_are_those_of_the_classes_in_equal_shares(path):
    """Each guided velocity is (1 − γ)u_ĉ + γu_c for one of the classes; their mean is that of the classes, not of ∅."""
    t, gamma, kinds = 0.45, 3.5, np.arange(3)
    got = of_many(
        lambda u, c, keys: guidance.independent(u, c, keys, lambda key: jax.random.randint(key, (), 0, 3)),
        path,
        t,
        gamma,
    )
    classes = of_class(path, t, AT, kinds)
    possible = gamma * classes[0] + (1 - gamma) * classes
    apart = np.abs(got[:, None] - possible).max(2)
    np.testing.assert_allclose(apart.min(1), 0, atol=1e-5)
    shares = np.bincount(apart.argmin(1), minlength=3) / MANY
    assert (abs(shares - 1 / 3) < 4.5 * np.sqrt(2 / 9 / MANY)).all()
    error = possible.std(0) / MANY**0.5
    assert (abs(got.mean(0) - possible.mean(0)) < 4.5 * error).all()
    exact, nothing = analytic.velocity(LAW, paths.PATHS[path]()), null(given(np.zeros(1)))
    u_null = np.asarray(exact(jnp.full(1, t), jnp.asarray(AT[None]), nothing))
    assert (abs(possible.mean(0) - (gamma * classes[0] + (1 - gamma) * u_null[0])) > 100 * error).all()


@pytest.mark.parametrize("path", ["linear", "trig"])
@pytest.mark.parametrize(("t", "noise", "exponent"), [(0.4, 0.5, 2.0), (0.1, 0.3, 1.0), (0.8, 0.7, 0.0)])
def test_another_time_has_its_closed_form_and_its_spread(path, t, noise, exponent):
    """(1 − γ)u(t̃, x) + γu(t, x), and t̃ is normal with σ = s(1 − t)^α, clipped to [0, 1]."""
    gamma, told = -1.7, []

    def reference(u, c, keys):
        made = guidance.retimed(u, c, keys, noise=noise, exponent=exponent)
        assert made.told is not None
        told.append(np.asarray(made.told(jnp.full(MANY, t), c)[0]))
        return made

    got, kinds = of_many(reference, path, t, gamma), np.zeros(MANY, int)
    near = told[0] < 1 - 1e-9  # beside the singularity of a velocity at t = 1
    expected = (1 - gamma) * of_class(path, told[0], AT, kinds) + gamma * of_class(path, t, AT, kinds)
    np.testing.assert_allclose(got[near], expected[near], rtol=1e-5, atol=1e-5)
    sigma = noise * (1 - t) ** exponent
    assert told[0].min() >= 0
    assert told[0].max() <= 1
    for share in (0.25, 0.5, 0.75):  # the quartiles of a normal law
        quartile = np.clip(t + sigma * {0.25: -0.674490, 0.5: 0.0, 0.75: 0.674490}[share], 0, 1)
        assert abs(np.quantile(told[0], share) - quartile) < 6 * sigma / MANY**0.5


def test_draws_depend_on_the_key_and_the_time_alone():
    """Not on x, on the batch, or on how often a time is evaluated; and not on each other."""
    keys, c = jax.random.split(jax.random.key(3), 200), given({"kind": np.zeros(200, int), "size": np.zeros((200, 2))})

    def draw(key):
        return {"kind": jax.random.randint(key, (), 0, 50), "size": jax.random.normal(key, (2,))}

    def told(t, some=slice(None)):
        part = jax.tree.map(lambda a: a[some], c)
        seen = guidance.independent(network, part, keys[some], draw).told
        other = guidance.retimed(network, part, keys[some]).told
        assert seen is not None
        assert other is not None
        ts = jnp.full(part.present["kind"].shape, t)
        same, drawn = seen(ts, part)
        moved, kept = other(ts, part)
        np.testing.assert_array_equal(same, ts)
        assert kept is part
        assert jax.tree.map(lambda a: a.dtype, drawn) == jax.tree.map(lambda a: a.dtype, part)
        return [np.asarray(a) for a in (drawn.value["kind"], drawn.value["size"][:, 0], moved)]

    first, again, later, some = told(0.3), told(0.3), told(0.3 + 1e-4), told(0.3, slice(40, 90))
    for a, b, other, part in zip(first, again, later, some, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[40:90], part)
        assert abs(np.corrcoef(a, other)[0, 1]) < 0.3
        assert len(np.unique(a)) > 40


def test_what_a_condition_leaves_out_stays_out():
    """ĉ has a field for each field of c that is there, and ∅ for the others."""
    c = Condition({"kind": LABELS, "size": X}, {"kind": np.arange(B) > 1, "size": np.arange(B) < 2})
    keys = jax.random.split(jax.random.key(3), B)
    seen = guidance.independent(network, c, keys, lambda key: {"kind": jnp.int32(7), "size": jnp.ones(SIZE)}).told
    assert seen is not None
    _, drawn = seen(jnp.full(B, 0.2), c)
    np.testing.assert_array_equal(drawn.value["kind"], 7)
    np.testing.assert_array_equal(drawn.value["size"], np.ones((B, SIZE)))
    for name, present in c.present.items():
        np.testing.assert_array_equal(drawn.present[name], present)


@pytest.mark.parametrize("settings", [{"noise": -0.1}, {"noise": np.inf}, {"noise": np.nan}, {"exponent": -1.0}])
def test_noise_of_the_time_that_cannot_be(settings):
    with pytest.raises(ValueError, match="a finite noise and exponent of 0 or more; got noise="):
        guidance.retimed(network, LABEL, KEYS, **settings)


def test_references_of_one_network_share_a_call_whatever_it_is_told():
    calls = []

    def counted(t, x, c):
        calls.append(len(t))
        return network(t, x, c)

    keys = jax.random.split(jax.random.key(3), B)
    sources = [
        guidance.Reference(counted, LABEL),
        guidance.independent(counted, LABEL, keys, lambda key: jnp.int32(1)),
        guidance.retimed(counted, LABEL, keys, noise=0.6),
    ]
    together, apart = (guidance.evaluate(sources, jnp.float64(0.4), jnp.asarray(X), p) for p in ("together", "apart"))
    assert calls == [3 * B, B, B, B]
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    for a, b in combinations(together, 2):
        assert np.abs(a - b).max() > 0.05


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
