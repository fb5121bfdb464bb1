"""Paths: exact conversions on a Gaussian, derivatives, and the endpoints of the interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, paths
from flowguide.condition import given

PATHS = sorted(paths.PATHS)
INNER = np.array([0.05, 0.3, 0.5, 0.7, 0.95])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", PATHS)
def test_derivatives_are_those_of_the_coefficients(name):
    p, h, t = paths.PATHS[name](), 1e-6, jnp.asarray(INNER)
    for f, df in ((p.alpha, p.d_alpha), (p.sigma, p.d_sigma)):
        np.testing.assert_allclose(df(t), (f(t + h) - f(t - h)) / (2 * h), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_ends(name):
    p = paths.PATHS[name]()
    slack = {"vp": 7e-3}.get(name, 0.0)
    assert abs(p.alpha(jnp.asarray(0.0))) <= slack
    assert abs(p.sigma(jnp.asarray(1.0))) <= slack
    assert float(p.alpha(jnp.asarray(1.0))) == pytest.approx(1, abs=1e-5)
    assert float(p.sigma(jnp.asarray(0.0))) == pytest.approx(1, abs=1e-4)


def test_path_from_two_coefficients_has_their_derivatives():
    p, q, t = paths.path(lambda t: t**2, lambda t: 1 - t**2), paths.linear(), jnp.asarray(INNER)
    np.testing.assert_allclose(p.d_alpha(t), 2 * t)
    np.testing.assert_allclose(p.d_sigma(t), -2 * t)
    np.testing.assert_allclose(paths.path(q.alpha, q.sigma).d_sigma(t), q.d_sigma(t))


@pytest.mark.parametrize("name", PATHS)
def test_conversions_agree_with_a_gaussian(name):
    """For x1 ~ N(m, v) every quantity has a closed form, so each conversion is tested on its own."""
    p, m, v = paths.PATHS[name](), 0.7, 0.4
    t = jnp.asarray(INNER)
    x = jnp.linspace(-2.0, 2.0, t.size)[:, None] + jnp.zeros((1, 3))
    a, b = p.alpha(t)[:, None], p.sigma(t)[:, None]
    s = a**2 * v + b**2
    x1 = m + a * v / s * (x - a * m)
    x0 = b / s * (x - a * m)
    score = -(x - a * m) / s
    u = p.d_alpha(t)[:, None] * x1 + p.d_sigma(t)[:, None] * x0
    kappa = b * (p.d_alpha(t)[:, None] * b - a * p.d_sigma(t)[:, None]) / a

    for got, expected in (
        (paths.velocity_to_x1(p, t, x, u), x1),
        (paths.velocity_to_x0(p, t, x, u), x0),
        (paths.velocity_to_score(p, t, x, u), score),
        (paths.velocity_to_scaled_score(p, t, x, u), kappa * score),
        (paths.x1_to_velocity(p, t, x, x1), u),
        (paths.x0_to_velocity(p, t, x, x0), u),
        (paths.score_to_velocity(p, t, x, score), u),
        (a * x1 + b * x0, x),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_regular_directions_are_exact_at_both_ends(name):
    """u -> x1 and u -> x0 are accurate at t = 0 and t = 1, also in float32."""
    p = paths.PATHS[name]()
    for dtype, tolerance in ((jnp.float64, 1e-9), (jnp.float32, 2e-3 if name == "vp" else 1e-5)):
        t = jnp.asarray([0.0, 1e-4, 1 - 1e-4, 1.0], dtype)
        x0 = jnp.asarray([[0.3], [-1.0], [0.8], [-0.4]], dtype)
        x1 = jnp.asarray([[1.0], [0.5], [-0.7], [0.2]], dtype)
        x, u = paths.interpolate(p, t, x0, x1), paths.conditional_velocity(p, t, x0, x1)
        np.testing.assert_allclose(paths.velocity_to_x1(p, t, x, u), x1, atol=tolerance)
        np.testing.assert_allclose(paths.velocity_to_x0(p, t, x, u), x0, atol=tolerance)


@pytest.mark.parametrize("name", PATHS)
def test_singular_directions_stay_finite(name):
    p, x = paths.PATHS[name](), jnp.ones((2, 3), jnp.float32)
    t = jnp.asarray([0.0, 1.0], jnp.float32)
    for convert in (
        paths.velocity_to_score,
        paths.velocity_to_scaled_score,
        paths.x1_to_velocity,
        paths.x0_to_velocity,
        paths.score_to_velocity,
    ):
        assert np.isfinite(convert(p, t, x, 0.5 * x)).all(), convert.__name__


@pytest.mark.parametrize("name", PATHS)
def test_continuity_equation(name):
    """∂_t p + ∇·(p u) = 0 for the exact velocity of a two-mode mixture, by finite differences in 1-D."""
    p, h = paths.PATHS[name](), 1e-4
    m = analytic.mixture([0.3, 0.7], [[-1.0], [1.5]], [0.2, 0.5])
    x = jnp.linspace(-3.0, 3.0, 41)[:, None]
    c = given(jnp.zeros(41, int))
    c = c._replace(present=jnp.zeros(41, bool))
    u = analytic.velocity(m, p)

    def density(t, x):
        return jnp.exp(analytic.log_density(m, p, t, x, c))

    def flux(t, x):
        return density(t, x) * u(t, x, c)[:, 0]

    for t in INNER:
        change = (density(t + h, x) - density(t - h, x)) / (2 * h)
        divergence = (flux(t, x + h) - flux(t, x - h)) / (2 * h)
        np.testing.assert_allclose(change, -divergence, atol=2e-5)
