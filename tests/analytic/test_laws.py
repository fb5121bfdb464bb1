"""Exact fields: two independent derivations of the same number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, paths, solvers, times
from flowguide.condition import Condition, bind, given

COVARIANCES = jnp.array([[[0.3, 0.1], [0.1, 0.5]], [[0.4, -0.2], [-0.2, 0.3]], [[0.2, 0.0], [0.0, 0.6]]])
LAW = analytic.mixture([0.5, 0.3, 0.2], [[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], COVARIANCES, labels=[0, 1, 1])
NAMES = sorted(paths.PATHS)


def condition(label, n):
    """Label 0 or 1, or None for null."""
    c = given(jnp.full(n, label or 0))
    return c if label is not None else Condition(c.value, jnp.zeros(n, bool))


@pytest.mark.parametrize("label", [0, 1, None])
@pytest.mark.parametrize("name", NAMES)
def test_velocity_and_score_agree_with_the_density(name, label):
    """The score and u = (α̇/α)x + κ∇log p, with the density differentiated automatically."""
    with jax.enable_x64(True):
        p, c = paths.PATHS[name](), condition(label, 5)
        law = jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.float32 else a, LAW)
        x = jax.random.normal(jax.random.key(0), (5, 2))
        for t in (0.1, 0.5, 0.9):
            score = jax.grad(lambda x, t=t: analytic.log_density(law, p, t, x, c).sum())(x)
            expected = paths.score_to_velocity(p, jnp.asarray(t), x, score)
            np.testing.assert_allclose(analytic.velocity(law, p)(jnp.full(5, t), x, c), expected, rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(analytic.score(law, p)(jnp.full(5, t), x, c), score, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("label", [0, 1, None])
def test_density_integrates_to_one(label):
    axis = jnp.linspace(-5, 5, 201)
    x = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    density = jnp.exp(analytic.log_density(LAW, paths.linear(), 0.7, x, condition(label, len(x))))
    assert float(density.sum()) * 0.05**2 == pytest.approx(1, abs=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("label", [0, 1, None])
def test_the_flow_carries_noise_to_the_law(label):
    """Moments of samples drawn through the velocity against those of exact draws, within Monte Carlo error."""
    n = 20_000
    c = condition(label, n)
    exact = np.asarray(analytic.sample(jax.random.key(1), LAW, c))
    u = bind(analytic.velocity(LAW, paths.linear()), c)
    drawn = np.asarray(solvers.solve(solvers.rk4(), u, jax.random.normal(jax.random.key(2), (n, 2)), times.grid(40)))
    error = exact.std(0) * (2 / n) ** 0.5
    assert (np.abs(exact.mean(0) - drawn.mean(0)) < 5 * error).all()
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(exact.T), atol=0.03)


def test_label_without_other_components_is_that_gaussian():
    c = condition(0, 50_000)
    x = np.asarray(analytic.sample(jax.random.key(3), LAW, c))
    np.testing.assert_allclose(x.mean(0), [1.0, 0.0], atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCES[0], atol=0.02)


@pytest.mark.parametrize("name", ["linear", "trig"])
def test_minimum_of_the_loss_in_one_dimension(name):
    """Var(α̇x1 + σ̇x0 | x_t) by regression: the variance of the target minus that of its best linear predictor."""
    p, v, t = paths.PATHS[name](), 0.7, jnp.array([0.2, 0.6])
    a, b, da, db = p.alpha(t), p.sigma(t), p.d_alpha(t), p.d_sigma(t)
    target, seen, both = da**2 * v + db**2, a**2 * v + b**2, a * da * v + b * db
    law = analytic.mixture([1.0], [[3.0]], v)
    np.testing.assert_allclose(analytic.flow_matching_minimum(law, p, t), target - both**2 / seen, rtol=1e-5)


def test_minimum_is_only_known_for_one_gaussian():
    with pytest.raises(ValueError, match="one component; got 3"):
        analytic.flow_matching_minimum(LAW, paths.linear(), jnp.array([0.5]))


@pytest.mark.parametrize("value", [1.7, None])
@pytest.mark.parametrize("name", NAMES)
def test_a_joint_gaussian_by_numpy(name, value):
    """p(x|c) by the regression of x on c; x_t ~ N(αm, α²Σ + σ²I), its density, its score and E[α̇x1 + σ̇x0|x_t]."""
    with jax.enable_x64(True):
        p, t = paths.PATHS[name](), 0.4
        a, s, da, ds = (float(f(jnp.float64(t))) for f in p)
        law = analytic.joint([0.5, -1.0], [0.3], [[1.0, 0.3], [0.3, 0.6]], [[0.4], [-0.2]], [[2.0]])
        mean, spread = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 0.6]])
        if value is not None:
            gain = np.array([0.2, -0.1])  # Σ_xc/Σ_cc
            mean, spread = mean + gain * (value - 0.3), spread - 2.0 * np.outer(gain, gain)
        c = Condition(jnp.full((5, 1), value or 9.0), jnp.full(5, value is not None))
        np.testing.assert_allclose(analytic.moments(law, c)[0], np.broadcast_to(mean, (5, 2)))
        np.testing.assert_allclose(analytic.moments(law, c)[1], np.broadcast_to(spread, (5, 2, 2)))
        x, ts = np.random.default_rng(0).normal(size=(5, 2)), jnp.full(5, t)
        whole = a * a * spread + s * s * np.eye(2)
        centred = x - a * mean
        score = -centred @ np.linalg.inv(whole)
        np.testing.assert_allclose(analytic.score(law, p)(ts, jnp.asarray(x), c), score, rtol=1e-9)
        velocity = da * mean - score @ (a * da * spread + s * ds * np.eye(2))
        np.testing.assert_allclose(analytic.velocity(law, p)(ts, jnp.asarray(x), c), velocity, rtol=1e-9)
        log_p = 0.5 * np.sum(centred * score, 1) - 0.5 * np.log(np.linalg.det(2 * np.pi * whole))
        np.testing.assert_allclose(analytic.log_density(law, p, jnp.float64(t), jnp.asarray(x), c), log_p, rtol=1e-9)


def test_an_observation_is_a_joint_gaussian():
    """x = Ac + noise, c ~ N(0, I)."""
    matrix = np.array([[1.0, 0.5], [0.2, -0.3]])
    for noise, spread in ((0.7, 0.7 * np.eye(2)), (np.array([[0.4, 0.1], [0.1, 0.3]]),) * 2):
        law = analytic.observation(matrix, noise)
        np.testing.assert_allclose(law.covariance_x, matrix @ matrix.T + spread, rtol=1e-6)
        np.testing.assert_allclose(law.cross, matrix, rtol=1e-6)


def test_minimum_of_the_loss_in_two_dimensions_is_a_mean():
    """Var(α̇x1 + σ̇x0|x_t) a dimension: α̇²v + σ̇² − (αα̇v + σσ̇)²/(α²v + σ²), over the eigenvalues v."""
    p, t = paths.trig(), np.array([0.2, 0.7])
    law = analytic.mixture([1.0], [[0.5, -1.0]], jnp.array([[[0.5, 0.2], [0.2, 1.0]]]))
    a, s = np.sin(np.pi / 2 * t)[:, None], np.cos(np.pi / 2 * t)[:, None]
    da, ds, v = np.pi / 2 * s, -np.pi / 2 * a, np.linalg.eigvalsh([[0.5, 0.2], [0.2, 1.0]])
    expected = (da**2 * v + ds**2 - (a * da * v + s * ds) ** 2 / (a * a * v + s * s)).mean(1)
    np.testing.assert_allclose(analytic.flow_matching_minimum(law, p, jnp.asarray(t)), expected, rtol=1e-5)
