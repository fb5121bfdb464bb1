"""Guidance schedules against their formulas."""

import math
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import guidance, paths
from flowguide.guidance import schedules
from tests.support.by_hand import GAMMAS, NULL, B, N, V, X, cfg, coefficients, column, data, n, noise

pytestmark = pytest.mark.usefixtures("float64")


TS = np.array([0.0, 0.15, 0.5, 0.8, 1.0])
SHAPES = {
    "constant": (guidance.constant(jnp.asarray(GAMMAS)), lambda t: GAMMAS),
    "linear": (schedules.linear(jnp.asarray(GAMMAS)), lambda t: 1 + (GAMMAS - 1) * 2 * t),
    "cosine": (schedules.cosine(jnp.asarray(GAMMAS)), lambda t: 1 + (GAMMAS - 1) * (1 - np.cos(np.pi * t))),
    "power": (schedules.power(jnp.asarray(GAMMAS), exponent=2.7), lambda t: 1 + (GAMMAS - 1) * 3.7 * t**2.7),
    "beta": (
        schedules.beta(jnp.asarray(GAMMAS), a=2.6, b=1.8),
        lambda t: GAMMAS * t**1.6 * (1 - t) ** 0.8 * math.gamma(4.4) / math.gamma(2.6) / math.gamma(1.8),
    ),
    "exponential": (
        schedules.exponential(jnp.asarray(GAMMAS), rate=1.7),
        lambda t: GAMMAS * 1.7 / (np.exp(1.7) - 1) * np.exp(1.7 * (1 - (1 - t))),
    ),
    "exponential, falling": (
        schedules.exponential(jnp.asarray(GAMMAS), rate=-0.8),
        lambda t: GAMMAS * 0.8 / (1 - np.exp(-0.8)) * np.exp(-0.8 * t),
    ),
    "within": (schedules.within(N, 0.15, 0.5, outside=0.7), lambda t: n(t) if t in (0.15, 0.5) else 0.7 + 0 * GAMMAS),
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
    # C²FG for DiT: ω₀ = 1 at noise and 2 at data.
    np.testing.assert_allclose(schedules.exponential(1 / np.log(2))(jnp.asarray([0.0, 1.0])), [1.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, math.inf, math.nan])
def test_an_exponential_needs_a_rate(rate):
    with pytest.raises(ValueError, match=f"a finite rate other than 0; got {rate}: for a constant"):
        schedules.exponential(2.0, rate=rate)


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
def test_cfg_plus_plus_is_one_step_that_renoises_with_the_null_noise(path):
    """With this scale, recombining D and e of the velocity gives D_∅ + λ(D_c − D_∅) and e_∅."""
    ts, strength = np.array([0.0, 0.1, 0.35, 0.6, 0.9, 1.0]), np.array([0.2, 0.5, 0.6, 0.9, 1.0])
    schedule = schedules.plus_plus(jnp.asarray(strength), paths.PATHS[path](), jnp.asarray(ts))
    for t, t_next in pairwise(ts):
        a, b, *_ = coefficients(path, min(t_next, paths.VP_LAST) if path == "vp" else t_next)
        u = cfg(V, NULL, schedule(jnp.float64(t)))
        got = a * data(path, t, X, u) + b * noise(path, t, X, u)
        d, d_null = data(path, t, X, V), data(path, t, X, NULL)
        expected = a * (d_null + column(strength) * (d - d_null)) + b * noise(path, t, X, NULL)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        # The scale is constant within a step.
        np.testing.assert_array_equal(schedule(jnp.float64(0.5 * (t + t_next))), schedule(jnp.float64(t)))
    np.testing.assert_array_equal(schedule(jnp.float64(1.0)), schedule(jnp.float64(0.95)))
