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


def test_warm_up_keeps_as_much_as_tensorflow_does():
    """min(decay, (1 + n)/(10 + n)) after n updates, of ``ExponentialMovingAverage(num_updates)``; 0.999 by default."""
    n = np.array([0, 1, 2, 5, 20, 80, 81, 82, 1000])
    np.testing.assert_allclose(ema.constant(0.9)(jnp.float32(n)), np.minimum(0.9, (1 + n) / (10 + n)), rtol=1e-6)
    np.testing.assert_allclose(ema.constant()(jnp.float32([50, 1e5])), [51 / 60, 0.999], rtol=1e-6)


def test_power_profile_is_its_formula():
    n, gamma = np.array([0, 1, 4, 30, 500]), ema.power_exponent(0.15)
    expected = (1 - 1 / (n + 1.0)) ** (gamma + 1)  # update number n makes step n + 1 of the paper
    np.testing.assert_allclose(ema.power(0.15)(jnp.float32(n)), expected, rtol=1e-5)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(0.15**2, rel=1e-9)
    np.testing.assert_array_equal(ema.power()(jnp.float32(n)), ema.power(0.05)(jnp.float32(n)))


def test_power_profile_is_exact_after_a_million_updates():
    """1 − 1/n would be off by 1 % of 1/n in float32."""
    n = 10.0**6
    expected = -np.expm1((ema.power_exponent(0.1) + 1) * np.log1p(-1 / (n + 1)))
    assert 1 - float(ema.power(0.1)(jnp.float32(n))) == pytest.approx(expected, rel=5e-3)


def test_every_width_up_to_that_of_equal_weights_is_possible():
    """γ = 0 weighs all alike, with a standard deviation of 12^-½ = 0.2887; wider needs γ < 0."""
    for std in (0.001, 0.28, 0.2886):
        gamma = ema.power_exponent(std)
        assert gamma > 0
        assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(std**2, rel=1e-6)
    with pytest.raises(ValueError, match=r"between 0 and 12\^-½ = 0.2887; got 0.2888"):
        ema.power(0.2888)


@pytest.mark.thorough
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
