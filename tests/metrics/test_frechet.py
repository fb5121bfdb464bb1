"""Fréchet distance against closed forms, and moments that do not depend on how they were gathered."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.linalg import sqrtm

from flowguide.metrics import Moments, combine, covariance, frechet_distance, merge, moments, update


def gaussian(mean, cov, count=101):
    """Moments with exactly this mean and covariance."""
    return Moments(count, np.asarray(mean, float), np.asarray(cov, float) * (count - 1))


def rotation(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def test_commuting_covariances():
    """Σ = Q diag(s²) Qᵀ on both sides: d² = ‖μ₁ − μ₂‖² + Σ (s₁ − s₂)²."""
    rng, q = np.random.default_rng(0), rotation(6)
    m, s = rng.standard_normal((2, 6)), rng.uniform(0, 3, (2, 6))
    a, b = (gaussian(mean, q * sd**2 @ q.T) for mean, sd in zip(m, s, strict=True))
    expected = np.sum((m[0] - m[1]) ** 2) + np.sum((s[0] - s[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_singular_covariances():
    """Variance 4 along one axis against 9 along another: nothing is shared, so the traces add."""
    a, b = gaussian(np.zeros(3), np.diag([4, 0, 0])), gaussian(np.zeros(3), np.diag([0, 9, 0]))
    assert frechet_distance(a, b) == pytest.approx(13)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_two_by_two_that_do_not_commute():
    """For 2×2 matrices tr (AB)^½ = √(tr AB + 2 √det AB)."""
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected, rel=1e-12)


def test_rotations_change_nothing():
    rng, q = np.random.default_rng(1), rotation(5)
    x, y = rng.standard_normal((40, 5)), rng.standard_normal((30, 5)) * 2 + 1
    turned = frechet_distance(moments([x @ q]), moments([y @ q]))
    assert turned == pytest.approx(frechet_distance(moments([x]), moments([y])), rel=1e-10)


def test_stream_equals_one_shot_even_far_from_the_origin():
    x = np.random.default_rng(2).standard_normal((50, 4)) + 1e6
    streamed = update(update(moments([x[:1]]), x[1:20]), x[20:])
    for m in (streamed, moments(np.split(x, [7, 7, 30])), merge(moments([x[:9]]), moments([x[9:]]))):
        assert m.count == 50
        np.testing.assert_allclose(m.mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(covariance(m), np.cov(x.T), rtol=1e-8)


def test_merge_is_associative_and_commutative():
    a, b, c = (moments([x]) for x in np.split(np.random.default_rng(3).standard_normal((30, 4)), [5, 12]))
    for other in (merge(merge(a, b), c), merge(c, merge(b, a))):
        for u, v in zip(merge(a, merge(b, c)), other, strict=True):
            np.testing.assert_allclose(u, v, rtol=1e-12, atol=1e-14)


def test_refusals():
    with pytest.raises(ValueError, match="at least one batch"):
        moments([])
    with pytest.raises(ValueError, match="finite"):
        moments([[[np.nan, 0.0]]])
    with pytest.raises(ValueError, match="shape"):
        moments([np.zeros(3)])
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(moments([np.zeros((1, 2))]), moments([np.zeros((3, 2))]))
    for function in (merge, frechet_distance):
        with pytest.raises(ValueError, match="lengths 2 and 3"):
            function(moments([np.zeros((3, 2))]), moments([np.zeros((3, 3))]))


def test_features_with_given_moments():
    """Whitened and coloured rows have exactly the mean and covariance they were given."""
    rng, q = np.random.default_rng(4), rotation(4)
    s, m = rng.uniform(0.5, 3, (2, 4)), rng.standard_normal((2, 4))

    def rows(mean, sd):
        x = rng.standard_normal((200, 4))
        white = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), (x - x.mean(0)).T).T
        return white * sd @ q.T + mean

    found = frechet_distance(*(moments(np.split(rows(mean, sd), [50])) for mean, sd in zip(m, s, strict=True)))
    assert found == pytest.approx(np.sum((m[0] - m[1]) ** 2) + np.sum((s[0] - s[1]) ** 2), rel=1e-10)


def test_scipy_takes_the_same_root():
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((50, 8)) @ rng.standard_normal((8, 8)), rng.standard_normal((40, 8)) + 1
    a, b = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(moments([x]), moments([y])) == pytest.approx(expected, rel=1e-8)


def test_processes_combine_to_the_moments_of_all():
    """Three threads stand for processes, one of which has seen nothing; ``total`` meets at a barrier."""
    x = np.random.default_rng(6).standard_normal((30, 4)) * (1, 10, 0.1, 1) + (1000, 0, 0, 3)
    shares, slots, barrier = [x[:11], x[11:], x[:0]], {}, threading.Barrier(3)

    def run(i):
        def total(a):
            slots[i] = a
            barrier.wait(10)
            result = slots[0] + slots[1] + slots[2]
            barrier.wait(10)
            return result

        return combine(moments([shares[i]]), total)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, range(3)))
    whole = moments([x])
    for m in (*found, merge(moments([x[:15]]), moments([x[15:]]))):
        assert m.count == 30
        np.testing.assert_allclose(m.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(m.scatter, whole.scatter, rtol=1e-12, atol=1e-10)
