"""Moving averages: unrolled weights against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.training import ema


def weights(profile, steps):
    """How much the average after ``steps`` updates holds of each parameter vector; index 0 is the initial one."""
    average = np.zeros(steps + 1)
    average[0] = 1.0
    for n in range(steps):
        keep = float(profile(jnp.float32(n)))
        average *= keep
        average[n + 1] += 1 - keep
    return average


@pytest.mark.parametrize("profile", [ema.constant(0.99), ema.power(0.1)])
def test_weights_sum_to_one_and_update_follows_them(profile):
    steps = 50
    w = weights(profile, steps)
    assert w.sum() == pytest.approx(1, abs=1e-5)
    path = np.random.default_rng(0).standard_normal((steps + 1, 3)).astype(np.float32)
    average = {"p": jnp.asarray(path[0])}
    for n in range(steps):
        average = ema.update(profile, jnp.int32(n), average, {"p": jnp.asarray(path[n + 1])})
    np.testing.assert_allclose(average["p"], w @ path, rtol=1e-4, atol=1e-6)


def test_constant_forgets_the_initialisation_and_settles():
    assert weights(ema.constant(0.999), 100)[0] < 1e-6
    assert float(ema.constant(0.9)(jnp.float32(1e6))) == pytest.approx(0.9)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_power_profile_has_the_asked_width_and_shape(std):
    """Weights ∝ τ^γ: their relative standard deviation is the one asked for, and nothing is left of the start."""
    steps = 4000
    w = weights(ema.power(std), steps)
    assert w[0] == 0.0
    tau = np.arange(steps + 1) / steps
    mean = (w * tau).sum()
    assert np.sqrt((w * (tau - mean) ** 2).sum()) == pytest.approx(std, rel=5e-3)
    gamma = ema.power_exponent(std)
    assert w[steps // 2] / w[-1] == pytest.approx(0.5**gamma, rel=2e-2, abs=1e-9)


@pytest.mark.parametrize("std", [0.0, -1.0, 0.3])
def test_impossible_widths_are_refused(std):
    with pytest.raises(ValueError, match="between 0 and"):
        ema.power(std)
