"""Closed forms of guided sampling, against known values and an independent integration."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, paths

LAB = (0.0, 2.0, 0.0, 1.0)  # c = 0, x|c ~ N(c, 1), c ~ N(0, 1)
GAMMAS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5)


def by_integration(gamma, m_u, v_u, m_c, v_c, eta, steps=50_000):
    """The linear equations of mean and variance in ρ = log r, Euler's method backwards from r = e^40 (from noise)."""
    r = np.exp(np.linspace(40, -30, steps))
    mean, spread = 0.0, 1.0  # of y/√r: at r = ∞ the variance of y is r
    k = (1 + eta) / 2
    y, c = mean * np.sqrt(r[0]), spread * r[0]
    for a, b in pairwise(r):
        dr = b - a
        slope = (1 - gamma) / (v_u + a) + gamma / (v_c + a)
        y += dr * k * (slope * y - (1 - gamma) * m_u / (v_u + a) - gamma * m_c / (v_c + a))
        c += dr * (2 * k * slope * c - eta)
    return y, c


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bradley_nakkiran(gamma):
    """2^(1−γ) by ODE and (2 − 2^(2−2γ))/(2γ−1) by SDE, 2·log 2 at γ = ½."""
    np.testing.assert_allclose(analytic.guided_moments(gamma, *LAB).variance, 2 ** (1 - gamma), rtol=1e-12)
    sde = 2 * np.log(2) if gamma == 0.5 else (2 - 2 ** (2 - 2 * gamma)) / (2 * gamma - 1)
    np.testing.assert_allclose(analytic.guided_moments(gamma, *LAB, eta=1.0).variance, sde, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("law", [(0.5, 2.0, 1.5, 1.0), (0.0, 1.0, 1.5, 1.5)], ids=str)
def test_moments_solve_their_equations(law, eta):
    exact = analytic.guided_moments(2.5, *law, eta=eta)
    mean, variance = by_integration(2.5, *law, eta=eta)
    np.testing.assert_allclose([exact.mean, exact.variance], [mean, variance], rtol=2e-3)


def test_at_gamma_one_and_zero_nothing_is_guided():
    for eta in (0.0, 0.5, 2.0):
        for gamma, mean, variance in ((0.0, 0.5, 2.0), (1.0, 1.5, 1.0)):
            exact = analytic.guided_moments(gamma, 0.5, 2.0, 1.5, 1.0, eta=eta)
            np.testing.assert_allclose(exact, (mean, variance), rtol=1e-10)


def test_equal_variances_all_samplers_agree_with_the_tilted_law():
    """z = 0: ODE = SDE = tilted = N(m_u + γ(m_c − m_u), v)."""
    for eta in (0.0, 1.0, 7.0):
        np.testing.assert_allclose(analytic.guided_moments(4.0, 1.0, 0.7, 2.0, 0.7, eta=eta), (5.0, 0.7), rtol=1e-12)
    mean, covariance = analytic.tilted_moments(4.0, 1.0, 0.7, 2.0, 0.7)
    np.testing.assert_allclose([mean[0], covariance[0, 0]], [5.0, 0.7], rtol=1e-12)


def test_strong_noise_tends_to_the_tilted_law():
    """var ≈ (1/P)[1 − (1 + f₂/P²)/η]; for the lab at γ = 3 the deviation is −0.1875/η."""
    mean, covariance = analytic.tilted_moments(3.0, *LAB)
    assert mean[0] == 0
    np.testing.assert_allclose(covariance[0, 0], 2 / (1 + 3.0))
    for eta in (100.0, 1000.0):
        deviation = analytic.guided_moments(3.0, *LAB, eta=eta).variance - 0.5
        np.testing.assert_allclose(deviation * eta, -0.1875, rtol=10 / eta)


def test_tilted_law_is_the_normalised_product():
    """In two dimensions, against the product of the densities on a grid."""
    s_u, s_c = np.array([[2.0, 0.3], [0.3, 1.5]]), np.array([[1.0, -0.2], [-0.2, 0.6]])
    m_u, m_c = np.array([0.2, 0.0]), np.array([1.0, -0.5])
    axis = np.linspace(-6, 6, 241)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)

    def log_normal(m, s):
        return -0.5 * np.einsum("ni,ij,nj->n", x - m, np.linalg.inv(s), x - m)

    log_p = -1.5 * log_normal(m_u, s_u) + 2.5 * log_normal(m_c, s_c)
    w = np.exp(log_p - log_p.max())
    w /= w.sum()
    mean, covariance = analytic.tilted_moments(2.5, m_u, s_u, m_c, s_c)
    np.testing.assert_allclose(mean, w @ x, atol=1e-6)
    np.testing.assert_allclose(covariance, (x - mean).T @ ((x - mean) * w[:, None]), atol=1e-6)


def test_existence():
    """For v_c > v_u only γ < v_c/(v_c − v_u); otherwise γ is only bounded from below."""
    np.testing.assert_allclose(analytic.existence(1.0, 1.5), (-np.inf, 3.0))
    np.testing.assert_allclose(analytic.existence(2.0, 1.0), (-1.0, np.inf))
    assert analytic.existence(1.0, 1.0) == (-np.inf, np.inf)
    np.testing.assert_allclose(analytic.existence(np.diag([1.0, 2.0]), np.diag([1.5, 1.0])), (-1.0, 3.0))
    with pytest.raises(ValueError, match=r"at γ = 3.5: these Gaussians need -inf < γ < 3"):
        analytic.tilted_moments(3.5, 0.0, 1.0, 0.0, 1.5)


@pytest.mark.parametrize("name", ["linear", "trig"])
def test_schedules(name):
    p = paths.PATHS[name]()
    for gamma in (2.0, 5.0):
        constant = analytic.scheduled_variance(lambda t, g=gamma: g, p, 2.0, 1.0)
        np.testing.assert_allclose(constant, 2 ** (1 - gamma), rtol=1e-6)
    part = analytic.scheduled_variance(
        lambda t: np.where((t > 0.3) & (t < 0.7), 3.0, 1.0), p, 2.0, 1.0, breaks=(0.3, 0.7)
    )
    r = [(float(p.sigma(jnp.float32(t))) / float(p.alpha(jnp.float32(t)))) ** 2 for t in (0.3, 0.7)]
    start, end = ((1 + r) / (2 + r) for r in r)
    np.testing.assert_allclose(part, (end / start) ** 2, rtol=1e-5)


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="variances must be positive"):
        analytic.guided_moments(2.0, 0.0, -1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="eta must be 0 or more"):
        analytic.guided_moments(2.0, *LAB, eta=-1.0)
