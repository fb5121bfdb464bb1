"""Post-hoc EMA: coefficients by quadrature, and averages that were tracked directly."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from flowguide.training import ema, posthoc

WIDTHS = (0.05, 0.1)  # that are tracked
STEPS, EVERY = 600, 20


def weights(t, width):
    """The weights p(τ) of a power-function average at step t."""
    gamma = ema.power_exponent(width)
    return lambda tau: (gamma + 1) * (tau / t) ** gamma / t


def product(a, b):
    """∫p_a·p_b dτ by quadrature; a and b are pairs of step and width."""
    p, q = weights(*a), weights(*b)
    end = min(a[0], b[0])
    return quad(lambda tau: p(tau) * q(tau), 0, end, points=[0.8 * end], epsabs=0, epsrel=1e-11)[0]


def test_coefficients_are_the_minimum_with_inner_products_by_quadrature():
    """The minimum in coordinates of the plane Σx = 1: all coefficients but the last."""
    snapshots = [(30.0, 0.05), (30.0, 0.1), (70.0, 0.2), (100.0, 0.05), (100.0, 0.1)]
    wanted = (90.0, 0.08)
    gram = np.array([[product(a, b) for b in snapshots] for a in snapshots])
    inner = np.array([product(a, wanted) for a in snapshots])
    plane, last = np.vstack([np.eye(4), -np.ones(4)]), np.eye(5)[4]
    expected = last + plane @ np.linalg.solve(plane.T @ gram @ plane, plane.T @ (inner - gram @ last))
    square = product(wanted, wanted)
    missed = square - 2 * inner @ expected + expected @ gram @ expected

    steps, widths = zip(*snapshots, strict=True)
    found = posthoc.mixture(steps, widths, *wanted)
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-7)
    assert found.coefficients.dtype == np.float64
    assert found.error == pytest.approx(np.sqrt(missed / square), rel=1e-6)


def test_norms_and_cosines_are_those_of_quadrature():
    cases = [((40.0, 0.05), (90.0, 0.1)), ((90.0, 0.05), (40.0, 0.1)), ((50.0, 0.2), (50.0, 0.05))]
    for a, b in cases:
        (t_a, gamma_a), (t_b, gamma_b) = ((t, ema.power_exponent(width)) for t, width in (a, b))
        norms = [np.sqrt(product(one, one)) for one in (a, b)]
        assert posthoc.norm(t_a, gamma_a) == pytest.approx(norms[0], rel=1e-9)
        expected = product(a, b) / (norms[0] * norms[1])
        assert posthoc.cosine(t_a, gamma_a, t_b, gamma_b) == pytest.approx(expected, rel=1e-9)


@cache
def tracked(width):
    """The average of a drift with a random walk after each step ``(STEPS, 50)``, by training's float32 update."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((STEPS, 50)), axis=0) / np.sqrt(STEPS)
    drift = rng.standard_normal(50) * (1 - np.exp(-4 * np.arange(1, STEPS + 1)[:, None] / STEPS))
    path = jnp.asarray(walk + 2 * drift, jnp.float32)

    def update(average, now):
        average = ema.update(ema.power(width), now[0], average, now[1])
        return average, average

    return np.asarray(jax.lax.scan(update, 1e3 * jnp.ones(50), (jnp.arange(STEPS), path))[1], np.float64)


def made(step, width, until=STEPS):
    """The average of snapshots up to ``until``, and the error of its weights."""
    steps = np.arange(EVERY, until + 1, EVERY)
    found = posthoc.mixture(np.repeat(steps, 2), np.tile(WIDTHS, len(steps)), step, width)
    kept = np.stack([tracked(w)[steps - 1] for w in WIDTHS], axis=1).reshape(2 * len(steps), -1)
    return found.coefficients @ kept, found.error


def apart(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# Between the two widths, beside them, and far out, where 30 snapshots know less.
@pytest.mark.parametrize(
    ("width", "bound"),
    [
        *[(0.05, 1e-6), (0.06, 2e-5), (0.08, 2e-5), (0.12, 2e-5)],
        *[(0.02, 1e-3), (0.03, 3e-4), (0.15, 5e-5), (0.2, 1e-3), (0.25, 1e-2)],
    ],
)
def test_an_average_that_was_tracked_comes_out_of_the_snapshots_of_two_others(width, bound):
    expected = tracked(width)[-1]
    average, error = made(STEPS, width)
    assert apart(average, expected) < bound
    assert apart(average, expected) < max(error, 1e-6)
    nearest = min(apart(tracked(w)[-1], expected) for w in WIDTHS)
    assert apart(average, expected) < max(0.03 * nearest, 1e-6)  # that of a tracked one would be further off


def test_an_average_in_the_middle_of_training():
    for until in (STEPS, 400):  # later snapshots do no harm
        assert apart(made(400, 0.08, until)[0], tracked(0.08)[399]) < 1e-4


def test_what_does_not_change_comes_back_as_it_is():
    """Coefficients have the sum 1 where three snapshots give the weights badly."""
    found = posthoc.mixture(np.repeat([100, 200, 300], 2), np.tile(WIDTHS, 3), 300, 0.2)
    assert found.error > 0.1
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)


def test_many_snapshots_of_a_long_run_stay_exact():
    """Hundreds of them in a run of ten million steps, and a narrow width whose γ is 1000: nothing overflows."""
    steps = np.linspace(1e4, 1e7, 300)
    for width, bound in ((0.08, 1e-5), (0.001, 1.0)):
        found = posthoc.mixture(np.repeat(steps, 2), np.tile(WIDTHS, 300), 1e7, width)
        assert np.isfinite(found.coefficients).all()
        assert found.coefficients.sum() == pytest.approx(1, abs=1e-6)
        assert found.error < bound


def test_an_impossible_width_is_refused():
    for widths, width in (((0.05, 0.1), 0.3), ((0.05, 0.3), 0.1), ((0.05, 0.1), float("nan"))):
        with pytest.raises(ValueError, match=r"between 0 and 12\^-½ = 0.2887; got"):
            posthoc.mixture((10, 10), widths, 10, width)


def test_snapshots_that_are_kept_are_evenly_spread():
    assert posthoc.spread([100, 200, 300], 3) == [100, 200, 300]
    kept = []
    for step in range(100, 3300, 100):
        kept = posthoc.spread([*kept, step], 8)
        assert kept[-1] == step
        assert len(kept) == min(8, step // 100)
        gaps = np.diff([0, *kept])
        assert gaps.max() <= max(100, 2 * step / 8)
        assert gaps.max() <= 2 * gaps[:-1].min(initial=10_000)  # the newest may be any
    assert posthoc.spread([100, 200, 250, 300, 400], 4) == [100, 200, 300, 400]  # a stop between two others
    assert posthoc.spread([100, 200], 0) == [200]
