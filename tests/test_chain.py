"""Chains of DDPM: the step whose noise is that of a path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import chain, paths

STEPS = chain.linear()
# Written from Ho et al. 2020: a loop instead of a cumulative product.
SIGNAL, left = np.zeros(1000), 1.0
for i in range(1000):
    left *= 1 - (1e-4 + i * (0.02 - 1e-4) / 999)
    SIGNAL[i] = left


def times_on(p):
    """The time of each step on a path, by bisection of α/σ."""
    low, high = np.zeros(1000), np.ones(1000)
    for _ in range(60):
        t = (low + high) / 2
        early = (
            np.asarray(p.alpha(jnp.asarray(t))) ** 2 * (1 - SIGNAL) < np.asarray(p.sigma(jnp.asarray(t))) ** 2 * SIGNAL
        )
        low, high = np.where(early, t, low), np.where(early, high, t)
    return (low + high) / 2


def test_a_chain_is_that_of_ho_et_al():
    np.testing.assert_allclose(STEPS.signal, SIGNAL, rtol=1e-12)
    assert hash(STEPS) == hash(chain.linear())
    np.testing.assert_allclose(chain.linear(3, 0.1, 0.3).signal, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])


@pytest.mark.parametrize("name", sorted(paths.PATHS))
def test_at_the_times_of_the_chain_the_steps_are_whole(name):
    with jax.enable_x64(True):
        p = paths.PATHS[name]()
        inside = slice(0, 996 if name == "vp" else 1000)  # that path has α = 0.0066 at t = 0, steps 996 to 999 less
        found = chain.level(STEPS, p, jnp.asarray(times_on(p)[inside]))
        np.testing.assert_allclose(found.step, np.arange(1000.0)[inside], atol=1e-6)
        np.testing.assert_allclose(found.alpha, np.sqrt(SIGNAL)[inside], rtol=1e-9)
        np.testing.assert_allclose(found.sigma, np.sqrt(1 - SIGNAL)[inside], rtol=1e-9)
        a, s = (np.asarray(f(jnp.asarray(times_on(p)[inside]))) for f in (p.alpha, p.sigma))
        np.testing.assert_allclose(a * found.scale, found.alpha, rtol=1e-9)
        np.testing.assert_allclose(s * found.scale, found.sigma, rtol=1e-9)
        if name == "linear":
            np.testing.assert_allclose(chain.times(STEPS), times_on(p), rtol=1e-12)


def test_steps_in_float32_are_whole_to_four_digits():
    found = chain.level(STEPS, paths.linear(), jnp.asarray(chain.times(STEPS), jnp.float32))
    np.testing.assert_allclose(found.step, np.arange(1000.0), atol=2e-4)


def test_between_two_steps_the_noise_is_that_of_the_path_and_the_step_has_a_fraction():
    """A step of constant β: ᾱ is geometric in k, so half a step is the geometric mean."""
    with jax.enable_x64(True):
        k = np.array([0, 7, 500, 998])
        signal = np.sqrt(SIGNAL[k] * SIGNAL[k + 1])
        alpha, sigma = np.sqrt(signal), np.sqrt(1 - signal)
        found = chain.level(STEPS, paths.linear(), jnp.asarray(alpha / (alpha + sigma)))
        np.testing.assert_allclose(found.step, k + 0.5, atol=1e-6)
        np.testing.assert_allclose(found.alpha, alpha, rtol=1e-9)
        np.testing.assert_allclose(found.sigma, sigma, rtol=1e-9)


@pytest.mark.parametrize("name", sorted(paths.PATHS))
def test_beyond_its_ends_the_chain_stays_there_and_is_differentiable(name):
    t = jnp.array([0.0, 1.0])
    found, slope = jax.jvp(lambda t: chain.level(STEPS, paths.PATHS[name](), t), (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(found.step[1], 0.0)
    np.testing.assert_allclose(found.sigma[1], 0.01, rtol=1e-4)
    if name != "vp":
        np.testing.assert_allclose(found.step[0], 999.0)
        np.testing.assert_allclose(found.alpha[0], np.sqrt(SIGNAL[-1]), rtol=1e-5)
    np.testing.assert_allclose(found.scale, 1.0, rtol=1e-5)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1}, "2 steps or more; got steps=1"),
        ({"beta_start": 0.0}, "between 0 and 1; got 0.0 and 0.02"),
        ({"beta_end": 1.0}, "between 0 and 1; got 0.0001 and 1.0"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        chain.linear(**settings)
