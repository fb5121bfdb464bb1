"""Metrics of features against the papers' formulas, written out over all pairs, and against closed forms."""

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from flowguide.errors import UserError
from flowguide.metrics import (
    authenticity,
    density_coverage,
    kid,
    neighbourhoods,
    precision_recall,
    sliced_wasserstein,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 5)), RNG.normal(size=(45, 5)) * 1.1 + 0.2
# Far from the origin, float32, and with rows that occur in both sets and more than once.
TIED = np.concatenate([X, X[:10]]).astype(np.float32) + 100, np.concatenate([X[5:40], Y]).astype(np.float32) + 100
SETS = {"apart": (X, Y), "tied": TIED}


def all_pairs(x, y, k):
    """(distances, radii of x, radii of y), by SciPy, radii to the k-th neighbour other than the row itself."""
    x, y = (np.asarray(s, np.float64) for s in (x, y))
    radii = [np.sort(cdist(s, s), 1)[:, k] for s in (x, y)]
    return cdist(x, y), *radii


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_counted_as_in_the_papers(name, k):
    x, y = SETS[name]
    d, rx, ry = all_pairs(x, y, k)
    slack = 1e-9  # ties count as inside
    precision, recall = precision_recall(x, y, k=k)
    assert precision == np.mean([any(d[i, j] <= rx[i] + slack for i in range(len(x))) for j in range(len(y))])
    assert recall == np.mean([any(d[i, j] <= ry[j] + slack for j in range(len(y))) for i in range(len(x))])
    density, coverage = density_coverage(x, y, k=k)
    inside = np.array([[d[i, j] <= rx[i] + slack for j in range(len(y))] for i in range(len(x))])
    assert density == pytest.approx(inside.sum() / (k * len(y)), rel=1e-12)
    assert coverage == np.mean(inside.any(1))


@pytest.mark.parametrize("name", SETS)
def test_authenticity_is_that_of_the_paper(name):
    x, y = SETS[name]
    d, rx, _ = all_pairs(x, y, 1)
    nearest = d.argmin(0)
    expected = np.mean([d[nearest[j], j] > rx[nearest[j]] + 1e-9 for j in range(len(y))])
    assert authenticity(x, y) == expected
    assert 0 < expected < 1


@pytest.mark.parametrize("block", [7, 35, 60])
@pytest.mark.parametrize("metric", [precision_recall, density_coverage, authenticity])
def test_blocks_of_any_size_give_the_same(metric, block):
    for x, y in SETS.values():
        assert metric(x, y, block=block) == metric(x, y)


@pytest.mark.parametrize("name", SETS)
def test_neighbourhoods_are_found_once_for_all_metrics(name):
    x, y = SETS[name]
    near = neighbourhoods(x, k=5, block=7)
    np.testing.assert_allclose(near.squared, np.sort(cdist(*[x.astype(float)] * 2) ** 2, 1)[:, 1:6], atol=1e-8)
    for metric in (precision_recall, density_coverage, authenticity):
        assert metric(near, y) == metric(x, y)
    assert precision_recall(near, y, k=2) == precision_recall(x, y, k=2)
    with pytest.raises(UserError, match="needs k=6 neighbours; got neighbourhoods of 5"):
        precision_recall(near, y, k=6)


def test_no_matrix_of_all_pairs_is_in_memory():
    x, y = RNG.normal(size=(2, 2000, 4))
    tracemalloc.start()
    try:
        for metric in (precision_recall, density_coverage, authenticity):
            metric(x, y, block=100)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(x) * len(y) / 10
    finally:
        tracemalloc.stop()


def test_the_same_law_has_the_expected_density_and_coverage():
    """E density = 1, E coverage = 1 − Π_{i=1..k} (N − i)/(N + M − i), for any law: Naeem et al. 2020, §3."""
    n, m, k, draws = 30, 20, 3, 400
    found = [density_coverage(RNG.uniform(size=(n, 2)), RNG.uniform(size=(m, 2)), k=k) for _ in range(draws)]
    expected = 1, 1 - np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    error = np.std(found, 0) / np.sqrt(draws)
    assert np.all(np.abs(np.mean(found, 0) - expected) < 4 * error), (np.mean(found, 0), expected, error)
    assert np.all(error < 0.02)


def test_kid_is_the_u_statistic_of_the_cubic_kernel():
    x, y = X[:12], Y[:12]

    def k(a, b):
        return (a @ b / 5 + 1) ** 3

    def within(s):
        return np.mean([k(s[i], s[j]) for i, j in itertools.permutations(range(12), 2)])

    expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    whole = kid(x, y, subsets=3, size=12)
    assert whole.mean == pytest.approx(expected, rel=1e-10)
    assert whole.std == pytest.approx(0, abs=1e-12)


def test_kid_of_subsets_has_the_mean_of_the_law():
    """For F = 1 the kernel is 1 + 3xy + 3x²y² + x³y³, so MMD² = 3Δm₁² + 3Δm₂² + Δm₃² with moments m of the laws."""
    x, y = RNG.normal(size=(20_000, 1)), 0.5 + RNG.normal(size=(20_000, 1))
    expected = 3 * 0.5**2 + 3 * 0.25**2 + (0.5**3 + 3 * 0.5) ** 2
    found = kid(x, y, subsets=1500, size=20)
    assert found.mean == pytest.approx(expected, abs=4 * found.std / np.sqrt(1500))
    assert kid(x, y, size=20) == kid(x, y, size=20)
    assert kid(x, y, size=20) != kid(x, y, size=20, seed=1)


def test_in_one_dimension_the_distance_is_that_of_the_quantiles():
    x, y = X[:, :1], Y[:, :1]
    assert sliced_wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-12)
    assert sliced_wasserstein(x[:45], y, power=2) == pytest.approx(
        np.sqrt(np.mean((np.sort(x[:45, 0]) - np.sort(y[:, 0])) ** 2)), rel=1e-12
    )


def test_a_shift_moves_every_projection():
    """W_2 along θ is |θᵀv|, of mean square |v|²/F. A repeated set is the same law."""
    v = np.array([3.0, 0, -4, 0, 0])
    assert sliced_wasserstein(X, X + v, power=2, directions=4000) == pytest.approx(5 / np.sqrt(5), rel=0.05)
    assert sliced_wasserstein(X, np.repeat(X, 3, 0)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(X, Y) == pytest.approx(sliced_wasserstein(Y, X), rel=1e-12)


METRICS = {
    "precision_recall": precision_recall,
    "density_coverage": density_coverage,
    "authenticity": authenticity,
    "kid": kid,
    "sliced_wasserstein": sliced_wasserstein,
}


@pytest.mark.parametrize("name", METRICS)
def test_sets_that_do_not_compare_are_refused(name):
    metric = METRICS[name]
    with pytest.raises(UserError, match=rf"{name} compares .*\(60, 5\) and \(45, 4\)"):
        metric(X, Y[:, :4])
    with pytest.raises(UserError, match=rf"{name} compares finite .* in the samples"):
        metric(X, np.where(Y > 2, np.nan, Y))
    with pytest.raises(UserError, match=f"{name} .*rows"):
        metric(X[:1], Y[:0])


def test_settings_without_a_meaning_are_refused():
    for call, message in [
        (lambda: kid(X, Y, size=50), "lower size"),
        (lambda: kid(X, Y, subsets=0), "at least 1 subset"),
        (lambda: precision_recall(X, Y[:3]), "at least 4 rows"),
        (lambda: precision_recall(X, Y, k=0), "k=0"),
        (lambda: authenticity(X[:1], Y), "more than k=1"),
        (lambda: sliced_wasserstein(X, Y, power=0.5), "power"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
