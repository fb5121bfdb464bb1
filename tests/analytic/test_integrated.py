"""Integrated moments, against closed forms where they exist and against an exact flow elsewhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, paths, solvers, times
from flowguide.condition import given

LAW = (0.5, 2.0, 1.5, 1.0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", ["linear", "trig"])
def test_constant_scale_is_the_closed_form_on_any_path(name, eta):
    mean, covariance = analytic.integrated_moments(2.5, paths.PATHS[name](), *LAW, eta=eta)
    exact = analytic.guided_moments(2.5, *LAW, eta=eta)
    np.testing.assert_allclose([mean[0], covariance[0, 0]], exact, rtol=1e-7)


def test_scale_that_changes():
    p, inside = paths.linear(), lambda t: np.where((np.asarray(t) > 0.3) & (np.asarray(t) < 0.7), 3.0, 1.0)
    _, covariance = analytic.integrated_moments(inside, p, 0.0, 2.0, 0.0, 1.0, breaks=(0.3, 0.7))
    r = [((1 - t) / t) ** 2 for t in (0.3, 0.7)]
    start, end = ((1 + r) / (2 + r) for r in r)
    np.testing.assert_allclose(covariance[0, 0], (end / start) ** 2, rtol=1e-7)


def test_start_at_a_later_time():
    """By ODE V = V0·(v_u/S_u)^(1−γ)·(v_c/S_c)^γ with S = α²v + σ² at the start; η = 1 nearly forgets it."""
    p, t, gamma = paths.linear(), 0.1, 3.0
    _, covariance = analytic.integrated_moments(gamma, p, 0.0, 2.0, 0.0, 1.0, start=t)
    s_u, s_c = (t**2 * v + (1 - t) ** 2 for v in (2.0, 1.0))
    np.testing.assert_allclose(covariance[0, 0], (2 / s_u) ** (1 - gamma) * (1 / s_c) ** gamma, rtol=1e-7)
    _, forgets = analytic.integrated_moments(gamma, p, 0.0, 2.0, 0.0, 1.0, start=t, eta=1.0)
    memoryless = analytic.guided_moments(gamma, 0.0, 2.0, 0.0, 1.0, eta=1.0).variance
    np.testing.assert_allclose(forgets[0, 0], memoryless, rtol=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("gamma", [2.5, lambda t: 1.0 + 3.0 * t], ids=["constant", "ramp"])
def test_covariances_that_do_not_commute(gamma: float | Callable[[Any], Any]):
    """The flow of a linear field is affine, so its values at 0 and the unit vectors determine it."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        root = rng.normal(size=(3, 3)) * 0.5
        law = analytic.observation(rng.normal(size=(3, 2)), jnp.asarray(root @ root.T + 0.2 * np.eye(3)))
        p, c = paths.linear(), given(jnp.array([[0.7, -0.4]] * 4))
        nothing = c._replace(present=jnp.zeros(4, bool))
        u, scale = analytic.velocity(law, p), gamma if callable(gamma) else lambda t: gamma

        def guided(t, x):
            return (1 - scale(t)) * u(t, x, nothing) + scale(t) * u(t, x, c)

        start = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
        ends = np.asarray(solvers.solve(solvers.rk4(), guided, start, times.grid(400).astype(float)))
        ((m_c, *_), (s_c, *_)), ((m_u, *_), (s_u, *_)) = (
            tuple(map(np.asarray, analytic.moments(law, condition))) for condition in (c, nothing)
        )
    shape = (ends[1:] - ends[0]).T
    mean, covariance = analytic.integrated_moments(gamma, p, m_u, s_u, m_c, s_c)
    assert np.abs(s_u @ s_c - s_c @ s_u).max() > 0.05
    np.testing.assert_allclose(mean, ends[0], atol=1e-6)
    np.testing.assert_allclose(covariance, shape @ shape.T, atol=1e-6)


@pytest.mark.thorough
def test_strong_noise_tends_to_the_tilted_law_in_three_dimensions():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(2, 3, 3)) * 0.4
    s_u = root[0] @ root[0].T + np.eye(3)
    s_c = np.linalg.inv(np.linalg.inv(s_u) + root[1] @ root[1].T)
    m_u, m_c = rng.normal(size=(2, 3))
    tilted = analytic.tilted_moments(2.0, m_u, s_u, m_c, s_c)
    far, near = (
        analytic.integrated_moments(2.0, paths.trig(), m_u, s_u, m_c, s_c, eta=eta, tolerance=1e-7) for eta in (20, 80)
    )
    for limit, a, b in zip(tilted, far, near, strict=True):
        np.testing.assert_allclose((4 * b - a) / 3, limit, atol=2e-3)  # the error falls like 1/η
        assert np.abs(b - limit).max() < 0.35 * np.abs(a - limit).max()


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"eta >= 0 and 0 <= start < 1; got eta = 0.0 and start = 1.0"):
        analytic.integrated_moments(2.0, paths.linear(), *LAW, start=1.0)
    with pytest.raises(ValueError, match=r"with the same d; got shapes \(2,\), \(1, 1\)"):
        analytic.integrated_moments(2.0, paths.linear(), np.zeros(2), *LAW[1:])
