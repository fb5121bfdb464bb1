"""The loss: its exact minimum, its independence of the layout of the batch, and couplings."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from scipy.optimize import linear_sum_assignment

from flowguide import analytic, couplings, losses, paths, times
from flowguide.condition import given
from flowguide.training import transport

N = 50_000
GAUSSIAN = analytic.mixture([1.0], [[0.5, -1.0]], jnp.array([[[0.5, 0.2], [0.2, 1.0]]]))


def draw_data(n=N):
    c = given(jnp.zeros(n, int))
    return analytic.sample(jax.random.key(2), GAUSSIAN, c), c


@pytest.mark.parametrize("name", ["linear", "trig"])
def test_exact_velocity_has_the_least_loss(name):
    """The loss of the exact field is the conditional variance of the target, in closed form; other fields have more."""
    p = paths.PATHS[name]()
    x1, c = draw_data()
    recipe = losses.Recipe(p, times.uniform(), drop_rate=0.0)
    keys = losses.example_keys(jax.random.key(3), 0, jnp.arange(N))
    u = analytic.velocity(GAUSSIAN, p)
    loss = losses.flow_matching(u, recipe, keys, jnp.arange(N), x1, c)
    minimum = analytic.flow_matching_minimum(GAUSSIAN, p, jnp.linspace(0, 1, 20_001)).mean()
    error = float(loss.std()) / np.sqrt(N)
    assert abs(float(loss.mean() - minimum)) < 4 * error + 1e-4

    shifted = losses.flow_matching(lambda t, x, c: u(t, x, c) + 0.3, recipe, keys, jnp.arange(N), x1, c)
    # The gap is the squared distance of the fields, 0.09, up to the covariance with the noise of the target.
    assert float(shifted.mean() - loss.mean()) == pytest.approx(0.09, abs=4 * 0.6 * float(loss.mean()) ** 0.5 / N**0.5)


@pytest.mark.thorough
def test_examples_do_not_depend_on_their_neighbours():
    p = paths.linear()
    recipe = losses.Recipe(p, times.logit_normal())
    x1, c = draw_data(64)
    u = analytic.velocity(GAUSSIAN, p)
    index = jnp.arange(64)
    keys = losses.example_keys(jax.random.key(3), 5, index)
    whole = losses.flow_matching(u, recipe, keys, index, x1, c)
    part = slice(16, 24)
    some = losses.flow_matching(u, recipe, keys[part], index[part], x1[part], jax.tree.map(lambda a: a[part], c))
    np.testing.assert_allclose(whole[part], some, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["linear", "vp"])
def test_the_simple_loss_is_that_of_the_trainer_and_its_pairs_are_on_the_path(name):
    recipe = losses.Recipe(paths.PATHS[name](), times.uniform(), drop_rate=0.0)
    x1, c = draw_data(4096)
    u, key = analytic.velocity(GAUSSIAN, recipe.path), jax.random.key(5)
    keys = jax.random.split(key, 4096)
    expected = losses.flow_matching(u, recipe, keys, jnp.arange(4096), x1, c).mean()
    assert float(losses.loss(u, key, x1, c, recipe)) == pytest.approx(float(expected), rel=1e-6)
    assert float(losses.loss(lambda t, x: u(t, x, c), key, x1, recipe=recipe)) == pytest.approx(float(expected), 1e-5)

    t, x, target = losses.training_pair(key, x1, recipe)
    alpha, sigma, d_alpha, d_sigma = (f(t)[:, None] for f in recipe.path)
    noise = (x - alpha * x1) / sigma
    np.testing.assert_allclose(target, d_alpha * x1 + d_sigma * noise, rtol=1e-2, atol=1e-2)
    assert abs(float(noise.mean())) < 0.05
    assert float(jnp.mean(jnp.square(u(t, x, c) - target))) == pytest.approx(float(expected), rel=1e-4)


def test_a_training_loop_of_ones_own_takes_five_lines():
    """Plain gradient descent on an affine velocity reaches the loss of the best one."""
    x1 = draw_data(2048)[0]

    def network(params, t, x):
        return x @ params["a"] + params["b"] + t[:, None] * params["c"]

    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2), "c": jnp.zeros(2)}
    gradient = jax.jit(jax.value_and_grad(lambda p, key: losses.loss(lambda t, x: network(p, t, x), key, x1)))
    found = []
    for step in range(60):
        value, g = gradient(params, jax.random.key(step))
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, g)
        found.append(float(value))
    assert np.mean(found[-10:]) < 0.75 * found[0]


KEYS = jax.random.split(jax.random.key(9), 64)
ASSIGNED = couplings.assigned(optax.assignment.hungarian_algorithm)


def test_assigned_coupling_is_the_optimal_assignment():
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 12, 3))
    paired = couplings.minibatch(ASSIGNED)(KEYS[:12], x0, x1, given(jnp.arange(12)))
    cost = np.square(np.asarray(x0)[:, None] - np.asarray(x1)[None]).sum(-1)
    rows, columns = linear_sum_assignment(cost)
    assert float(jnp.sum((paired - x1) ** 2)) == pytest.approx(cost[rows, columns].sum(), rel=1e-5)
    np.testing.assert_allclose(np.sort(paired, 0), np.sort(x0, 0))  # the same noise, in another order


@pytest.mark.thorough
def test_sinkhorn_draws_from_a_plan_between_the_assignment_and_independence():
    """With little entropy the cost is that of the assignment, with much that of unpaired noise.

    The noise is always that of the batch, each equally likely.
    """
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 64, 2))
    c = given(jnp.arange(64))

    def cost(coupling):
        drawn = [coupling(jax.random.split(jax.random.key(i), 64), x0, x1, c) for i in range(8)]
        assert np.isin(np.asarray(drawn), np.asarray(x0)).all()
        return np.mean([jnp.mean(jnp.sum((d - x1) ** 2, -1)) for d in drawn]), np.mean(drawn)

    best, _ = cost(couplings.minibatch(ASSIGNED))
    sharp, mean = cost(jax.jit(transport.COUPLINGS["sinkhorn"](0.002)))
    flat, _ = cost(jax.jit(transport.COUPLINGS["sinkhorn"](100.0)))
    assert best * 0.99 < sharp < 1.1 * best
    every = float(jnp.mean(jnp.sum((x0[:, None] - x1) ** 2, -1)))
    assert flat == pytest.approx(every, rel=0.1)
    assert abs(mean - float(x0.mean())) < 0.05


COUPLINGS = [transport.COUPLINGS[name] for name in ("assigned", "sinkhorn")]


@pytest.mark.parametrize("make", COUPLINGS, ids=["assigned", "sinkhorn"])
@pytest.mark.parametrize(("weight", "skewed"), [(0.0, True), (100.0, False)])
def test_noise_given_a_condition_stays_standard_normal_only_if_the_coupling_knows_it(make, weight, skewed):
    """Two classes at ±2: plain transport gives each class the noise on its side, so E[x0|c] is not 0."""
    label = jnp.arange(64) % 2
    x1 = jnp.where(label == 1, 2.0, -2.0)[:, None] + 0.1 * jax.random.normal(jax.random.key(1), (64, 1))
    couple = jax.jit(make(condition_weight=weight))
    means, changed = [], []
    for seed in range(20):
        x0 = jax.random.normal(jax.random.key(100 + seed), (64, 1))
        paired = couple(KEYS, x0, x1, given({"kind": label}))
        means.append(float(paired[label == 1].mean()))
        changed.append(bool(jnp.any(paired != x0)))
    assert all(changed)  # it does exchange pairs, at least within a class
    error = 2 / np.sqrt(20 * 32)  # repeated noise raises it to up to twice the standard error
    assert abs(np.mean(means)) > 8 * error if skewed else abs(np.mean(means)) < 3 * error


def test_conditions_keep_apart_whatever_their_kind():
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 6, 1))
    kinds = {"vector": jnp.arange(6.0)[:, None] * 3, "tokens": jnp.arange(12).reshape(6, 2), "label": jnp.arange(6)}
    for value in kinds.values():
        couple = couplings.minibatch(ASSIGNED, 100.0)
        np.testing.assert_array_equal(couple(KEYS[:6], x0, x1, given(value)), x0)


@pytest.mark.parametrize("path", ["linear", "trig"])
def test_weights_turn_the_error_of_the_velocity_into_that_of_a_prediction(path):
    p, weigh = paths.PATHS[path](), {name: make() for name, make in losses.WEIGHTS.items()}
    t = jnp.linspace(0.05, 0.95, 7)
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 7, 3))
    x = paths.interpolate(p, t, x0, x1)
    u = jax.random.normal(jax.random.key(1), x.shape)
    error = jnp.mean((u - paths.conditional_velocity(p, t, x0, x1)) ** 2, -1)
    of_x1 = jnp.mean((paths.velocity_to_x1(p, t, x, u) - x1) ** 2, -1)
    of_x0 = jnp.mean((paths.velocity_to_x0(p, t, x, u) - x0) ** 2, -1)
    snr = (p.alpha(t) / p.sigma(t)) ** 2
    expected = {"constant": error, "x1_error": of_x1, "x0_error": of_x0, "min_snr": jnp.minimum(snr, 5.0) * of_x1}
    for name, value in expected.items():
        np.testing.assert_allclose(weigh[name](p, t) * error, value, rtol=1e-4)
        assert np.isfinite(weigh[name](p, jnp.array([0.0, 1.0]))).all()
    recipe = losses.Recipe(p, times.uniform(), weight=weigh["x1_error"])
    keys = losses.example_keys(jax.random.key(3), 0, jnp.arange(7))
    plain = losses.flow_matching(lambda t, x, c: x, recipe._replace(weight=losses.constant()), keys, t, x1, given(t))
    ratio = losses.flow_matching(lambda t, x, c: x, recipe, keys, t, x1, given(t)) / plain
    t_keys = jax.vmap(lambda key: jax.random.split(key, 3)[0])(keys)
    np.testing.assert_allclose(ratio, weigh["x1_error"](p, times.draw(t_keys, recipe.warp)), rtol=1e-5)


def test_stratified_times_lower_the_variance_of_the_loss():
    p = paths.linear()
    x1, c = draw_data(128)
    u = analytic.velocity(GAUSSIAN, p)
    index = jnp.arange(128)

    @jax.jit
    def spread(stratified_keys):
        def mean(stratified, key):
            recipe = losses.Recipe(p, times.uniform(), stratified=stratified)
            keys = losses.example_keys(key, 0, index)
            return losses.flow_matching(lambda t, x, c: 3 * u(t, x, c), recipe, keys, index, x1, c).mean()

        return [jax.vmap(lambda k, s=s: mean(s, k))(stratified_keys).var() for s in (0, 128)]

    plain, stratified = spread(jax.random.split(jax.random.key(9), 400))
    assert stratified < plain


def test_keys_differ_from_step_to_step_and_from_example_to_example():
    index = jnp.array([0, 1, 7, 2**31 - 1])
    found = [losses.example_keys(jax.random.key(k), step, index) for k in (0, 1) for step in (0, 5)]
    assert len(np.unique(jax.random.key_data(jnp.concatenate(found)), axis=0)) == 16


def test_stratified_times_lie_in_their_strata():
    """Example i of 8 has its t between the quantiles i/8 and (i + 1)/8 of a non-uniform distribution."""
    seen, index, warp = [], jnp.arange(8), times.shift(3.0)
    x1, c = draw_data(8)

    def velocity(t, x, c):
        seen.append(t)
        return x

    recipe = losses.Recipe(paths.linear(), warp, stratified=8)
    losses.flow_matching(velocity, recipe, losses.example_keys(jax.random.key(3), 0, index), index, x1, c)
    edges = warp(jnp.linspace(0, 1, 9))
    assert ((edges[:-1] <= seen[0]) & (seen[0] <= edges[1:])).all()


def test_classification_is_the_weighted_cross_entropy_of_noisy_data():
    """In NumPy, from the t and x_t that the classifier receives."""
    path, index, labels = paths.trig(), jnp.arange(64), jnp.arange(64) % 3
    x1, c = 100 + jnp.zeros((64, 2)), given(labels)
    recipe = losses.Recipe(path, times.uniform(), weight=losses.x1_error())
    keys, shown = losses.example_keys(jax.random.key(3), 0, index), []
    matrix = jnp.array([[0.1, -0.2, 0.3], [0.2, 0.0, 1.0]])

    def logits(t, x, c):
        shown.append((t, x))
        return x @ matrix

    got = losses.classification(logits, recipe, keys, index, x1, c)
    t, x = (np.asarray(a, np.float64) for a in shown[0])
    alpha, sigma = np.sin(np.pi / 2 * t), np.cos(np.pi / 2 * t)
    assert np.abs((x - 100 * alpha[:, None]) / sigma[:, None])[t < 0.9].max() < 4.5  # the noise x0
    scores = x @ np.asarray(matrix, np.float64)
    total: Any = scipy.special.logsumexp(scores, axis=1, keepdims=True)
    log_p = scores - total
    weight = (sigma / (np.pi / 2)) ** 2  # Δ = π/2
    np.testing.assert_allclose(got, -weight * log_p[index, labels], rtol=1e-4, atol=1e-4)


def test_reconstruction_is_the_bound_of_a_variational_autoencoder():
    """In NumPy; the divergence also by the density of a Gaussian, integrated."""
    rng = np.random.default_rng(0)
    x1, found, mean, log_variance = (rng.normal(size=(3, *shape)) for shape in ((4, 2), (4, 2), (5,), (5,)))
    keys, seen = losses.example_keys(jax.random.key(3), 0, jnp.arange(3)), []

    def network(keys, x, c):
        seen.append((keys, x, c))
        return SimpleNamespace(x=jnp.asarray(found), posterior=(jnp.asarray(mean), jnp.asarray(log_variance)))

    c = given(jnp.arange(3))
    recipe = losses.Recipe()
    got = losses.reconstruction(network, recipe, keys, jnp.arange(3), jnp.asarray(x1), c, kl=0.3, l1=0.7)
    np.testing.assert_array_equal(jax.random.key_data(seen[0][0]), jax.random.key_data(keys))
    np.testing.assert_allclose(seen[0][1], x1, 1e-6)
    assert seen[0][2] is c
    grid = np.linspace(-25, 25, 20_001)
    log_p = -0.5 * (grid - mean[..., None]) ** 2 * np.exp(-log_variance[..., None]) - 0.5 * log_variance[..., None]
    density = np.exp(log_p) / np.sqrt(2 * np.pi)
    divergence = (density * (log_p + 0.5 * grid**2)).sum(-1) * (grid[1] - grid[0])
    error = (found - x1).reshape(3, -1)
    expected = (error**2).mean(1) + 0.7 * np.abs(error).mean(1) + 0.3 * divergence.mean(1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    plain = losses.reconstruction(network, recipe, keys, jnp.arange(3), jnp.asarray(x1), c)
    np.testing.assert_allclose(plain, (error**2).mean(1) + 1e-4 * divergence.mean(1), rtol=1e-4)
