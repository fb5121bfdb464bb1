"""Calibration: an exact posterior passes, and each planted fault is found, in its own direction."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from flowguide import pictures
from flowguide.errors import UserError
from flowguide.metrics import c2st, coverage, density_ranks, sbc_ranks, tarp_ranks, uniformity
from flowguide.metrics.calibration import binomial_band

N, L, D = 2000, 63, 3
SCALE = np.array([1.0, 0.5, 2.0])


def trials(narrow=1.0, shift=0.0, seed=0):
    """θ ~ N(0, I), x|θ ~ N(θ, SCALE²), and samples of N(mean + shift, (narrow·deviation)²) for p(θ|x)'s moments."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(N, D))
    x = theta + SCALE * rng.normal(size=(N, D))
    mean, deviation = x / (1 + SCALE**2), np.sqrt(SCALE**2 / (1 + SCALE**2))
    mean, deviation = mean + shift * deviation, narrow * deviation
    samples = mean[:, None] + deviation * rng.normal(size=(N, L, D))

    def log_density(at):
        return -0.5 * np.sum(((at - mean[:, None]) / deviation) ** 2, -1)

    return theta, samples, log_density(theta[:, None])[:, 0], log_density(samples)


def found(**fault):
    theta, samples, log_theta, log_samples = trials(**fault)
    ranks = sbc_ranks(theta, samples), tarp_ranks(theta, samples), density_ranks(log_theta, log_samples)
    return ranks, [uniformity(r, L) for r in ranks]


def test_an_exact_posterior_passes():
    ranks, tests = found()
    assert ranks[0].shape == (N, D)
    assert all(r.min() == 0 and r.max() == L for r in ranks)
    for test in tests:
        assert test.uniform
        assert np.abs([test.shift, test.spread]).max() < 3.5
    for r in ranks[1:]:
        curve = coverage(r, L, level=0.9999)
        assert np.all((curve.low <= curve.expected) & (curve.expected <= curve.high))


@pytest.mark.parametrize(
    ("fault", "sign"), [({"narrow": 0.7}, 1), ({"narrow": 1.4}, -1)], ids=["too narrow", "too wide"]
)
def test_the_width_is_seen_in_the_spread_of_ranks_and_the_side_of_the_curve(fault, sign):
    (_, tarp, density), (sbc_test, tarp_test, density_test) = found(**fault)
    assert not any(test.uniform for test in (sbc_test, tarp_test, density_test))
    assert np.all(sign * sbc_test.spread > 10)
    assert np.abs(sbc_test.shift).max() < 3.5
    assert sign * tarp_test.spread > 5
    assert sign * density_test.shift > 10
    low, high = np.interp((0.25, 0.75), *coverage(tarp, L)[:2])
    assert sign * (0.5 - (high - low)) > 0.02  # flatter than the diagonal, or steeper
    curve = coverage(density, L)
    assert np.all(sign * (curve.credibility - curve.expected)[10:-10] > 0.03)


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_a_posterior_at_the_wrong_place_is_found(shift):
    """Samples too high have the truth at low ranks. Distances to random points know no direction."""
    _, (sbc_test, tarp_test, density_test) = found(shift=shift)
    assert not any(test.uniform for test in (sbc_test, tarp_test, density_test))
    assert np.all(-np.sign(shift) * sbc_test.shift > 10)
    assert tarp_test.spread > 3
    assert density_test.shift > 5


def test_one_bad_parameter_is_named():
    theta, samples, *_ = trials()
    samples[..., 1] += 0.2
    test = uniformity(sbc_ranks(theta, samples), L)
    np.testing.assert_array_equal(test.distance > test.band, [False, True, False])


def test_a_dependence_that_single_parameters_hide_is_found_by_random_points():
    """Posterior samples with the right margins, and the wrong sign of their correlation."""
    rng = np.random.default_rng(1)
    root = np.linalg.cholesky([[1, 0.9], [0.9, 1]])
    theta = rng.normal(size=(N, 2)) @ root.T
    samples = rng.normal(size=(N, L, 2)) @ root.T * (1, -1)
    assert uniformity(sbc_ranks(theta, samples), L).uniform
    assert not uniformity(tarp_ranks(theta, samples), L).uniform


def test_the_band_is_exceeded_as_rarely_as_it_says():
    """Uniform ranks: with probability 0.1 at most, and not never. Their moments have unit standard error."""
    rng = np.random.default_rng(0)
    tests = [uniformity(rng.integers(0, 10, (100, 2)), 9, level=0.9) for _ in range(1000)]
    assert 0.01 < np.mean([not t.uniform for t in tests]) < 0.12
    for values in (np.array([t.shift for t in tests]), np.array([t.spread for t in tests])):
        assert abs(values.mean()) < 0.1
        assert abs(values.std() - 1) < 0.05


@pytest.mark.parametrize(("num", "p"), [(50, 0.1), (2000, 0.5), (300, 0.99)])
def test_the_binomial_band_holds_what_it_says(num, p):
    assert binomial_band(num, p, 0.99) == (binom.ppf(0.005, num, p), binom.ppf(0.995, num, p))
    assert binomial_band(num, 1.0, 0.99) == (num, num)


def test_given_reference_points_are_used():
    """From a point far to the right, a sample is closer than the truth if it lies right of it."""
    theta, samples, *_ = trials()
    theta, samples = theta[:, :1], samples[..., :1]
    far = tarp_ranks(theta, samples, references=np.full((N, 1), 100.0))
    np.testing.assert_array_equal(far, L - sbc_ranks(theta, samples)[:, 0])


def test_pictures_are_drawn(tmp_path):
    theta, samples, *_ = trials()
    ranks = sbc_ranks(theta, samples)
    for bins in (20, 500):
        pictures.save_ranks(tmp_path / "ranks.png", ranks, L, ["a", "b", "c"], bins=bins)
    curves = {"right": coverage(tarp_ranks(theta, samples), L), "other": coverage(tarp_ranks(theta, samples * 0.5), L)}
    pictures.save_coverage(tmp_path / "coverage.png", curves)
    for name in ("ranks", "coverage"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 5


@pytest.mark.thorough
def test_a_classifier_tells_apart_what_differs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300, 2))
    assert c2st(a, b, folds=2) == pytest.approx(0.5, abs=0.06)
    assert c2st(1000 * a, 1000 * (b + 1.5), folds=2) == pytest.approx(0.86, abs=0.04)  # Φ(1.5/√2) by Bayes' rule
    assert c2st(a, a + 20, folds=2) == 1


REFUSED = {
    "one sample set": (lambda: sbc_ranks(np.zeros((3, 2)), np.zeros((3, 2))), r"samples \(N, L, d\); got"),
    "other d": (lambda: sbc_ranks(np.zeros((3, 2)), np.zeros((3, 4, 1))), "got"),
    "nan": (lambda: tarp_ranks(np.zeros((3, 2)), np.full((3, 4, 2), np.nan)), "must be finite"),
    "references": (lambda: tarp_ranks(np.zeros((3, 2)), np.zeros((3, 4, 2)), references=np.zeros(2)), "one reference"),
    "densities": (lambda: density_ranks(np.zeros((3, 1)), np.zeros((3, 4))), "expected log-densities"),
    "nan density": (lambda: density_ranks(np.full(3, np.nan), np.zeros((3, 4))), "are nan"),
    "shares": (lambda: uniformity(np.zeros(3), 4), "whole ranks"),
    "draws": (lambda: uniformity(np.array([5]), 4), "from 0 to draws = 4; got 5 to 5"),
    "level": (lambda: coverage(np.array([3]), 4, level=99), "between 0 and 1; got 99"),
    "columns": (lambda: coverage(np.zeros((3, 2), int), 4), "pass a column"),
    "unequal": (lambda: c2st(np.zeros((3, 2)), np.zeros((4, 2))), "same shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_ranks_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        call()
