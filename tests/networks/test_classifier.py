"""The classifier of noisy data: the exact posterior has the least loss, and its gradient is a difference of scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, losses, paths, times
from flowguide.condition import Condition, given
from flowguide.networks import Classifier, Network, as_network, log_probability
from flowguide.schema import Label, Vector

N, P = 4096, paths.linear()
LAW = analytic.mixture([0.2, 0.3, 0.5], [[1.0, -0.5], [-0.8, 0.4], [0.3, 1.2]], jnp.array([0.3, 0.5, 0.2]))
INDEX = jnp.arange(N)
LABEL = jax.random.choice(jax.random.key(1), 3, (N,), p=LAW.weights)
X1 = analytic.sample(jax.random.key(2), LAW, given(LABEL))
FIELDS = {"label": Label(("a", "b", "c"))}


def posterior(t, x, c=None):
    """Exact logits: log π_c p_t(x|c)."""
    logs = [analytic.log_density(LAW, P, t, x, given(jnp.full(len(x), k))) for k in range(3)]
    return jnp.stack(logs, axis=1) + jnp.log(LAW.weights)


def loss(logits):
    recipe = losses.Recipe(P, times.uniform())
    keys = losses.example_keys(jax.random.key(3), 0, INDEX)
    return losses.classification(logits, recipe, keys, INDEX, X1, given({"label": LABEL}))


def test_the_exact_posterior_has_the_least_loss():
    """Its slope is 0 along every direction, up to the error of the mean, and every step aside costs."""
    push = jnp.array([1.0, 0.0, -1.0])
    aside = {
        "bias": lambda t, x: jnp.broadcast_to(push, (N, 3)),
        "sharpness": lambda t, x: posterior(t, x),
        "time": lambda t, x: push * (1 - 2 * t)[:, None],
        "place": lambda t, x: push * x[:, :1],
    }
    for name, direction in aside.items():

        @jax.jit
        def values(e, direction=direction):
            return jax.jvp(lambda e: loss(lambda t, x, c: posterior(t, x) + e * direction(t, x)), (e,), (1.0,))

        (best, slope), (worse, _) = values(0.0), values(0.5)
        assert abs(float(slope.mean())) < 4 * float(slope.std()) / N**0.5, name
        assert float(worse.mean() - best.mean()) > 5e-3, name


def test_log_probability_is_that_of_the_label_and_its_gradient_the_difference_of_scores():
    log_p = log_probability(Network(lambda key: {}, lambda params, t, x, c: posterior(t, x)), {})
    score, t, x, c = analytic.score(LAW, P), jnp.float32(0.6), X1[:32], given({"label": LABEL[:32]})
    null = Condition(c.value, {"label": jnp.arange(32) < 16})
    exact = jax.nn.log_softmax(posterior(t, x))[jnp.arange(32), LABEL[:32]]
    np.testing.assert_allclose(log_p(t, x, c), exact, rtol=1e-5)
    np.testing.assert_allclose(log_p(t, x, null), jnp.where(jnp.arange(32) < 16, exact, 0.0), rtol=1e-5)
    gradient = jax.grad(lambda x: log_p(t, x, null).sum())(x)
    both = given(LABEL[:32])
    difference = score(t, x, both) - score(t, x, Condition(both.value, jnp.zeros(32, bool)))
    np.testing.assert_allclose(gradient[:16], difference[:16], atol=1e-4)
    assert not gradient[16:].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_gives_logits_of_each_example_alone(dtype):
    network = as_network(lambda rngs: Classifier((4, 4, 1), FIELDS, width=16, dtype=dtype, rngs=rngs))
    params = network.init(jax.random.key(0))
    x, t = jax.random.normal(jax.random.key(1), (3, 4, 4, 1)), jnp.array([0.1, 0.5, 0.9])
    c = given({"label": jnp.arange(3)})
    logits_of = jax.jit(network.velocity)
    fresh = logits_of(params, t, x, c)
    assert (fresh.shape, fresh.dtype) == ((3, 3), jnp.float32)
    np.testing.assert_array_equal(fresh, 0)
    noisy = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
    logits = logits_of(noisy, t, x, c)
    np.testing.assert_allclose(logits[1:2], logits_of(noisy, t[1:2], x[1:2], c), rtol=2e-2, atol=1e-2)
    assert (jnp.abs(logits - logits_of(noisy, t + 0.05, x, c)).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("fields", [{}, {"a": Vector(2)}, {"a": Label(("x", "y")), "b": Label(("x", "y"))}])
def test_it_needs_one_label(fields):
    with pytest.raises(ValueError, match="one label apart; got fields"):
        as_network(lambda rngs: Classifier((2,), fields, rngs=rngs))
