"""What networks learn, against exact laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowguide import analytic, build, losses, paths, sampling, times
from flowguide.condition import Condition, given
from flowguide.data.builders import mixture2d
from flowguide.model import from_config
from flowguide.networks import MLP, as_network, log_probability
from flowguide.schema import Batch
from flowguide.training import ema, loop
from flowguide.training.step import init_state, make_loss, make_step


@pytest.mark.slow
def test_a_trained_network_is_the_exact_field(data_dir, tmp_path):
    """configs/points.py on a mixture whose velocity is known: fields, moments and classes agree with theory."""
    from configs.points import get_config

    config = get_config()
    config.data.data_dir, config.preview.every, config.steps = str(data_dir), 0, 2000
    loop.train(config, tmp_path)
    trained = sampling.load(tmp_path)
    exact = analytic.velocity(analytic.mixture(mixture2d.WEIGHTS, mixture2d.MEANS, mixture2d.STD**2), paths.linear())
    n = 4000
    key = jax.random.split(jax.random.key(0), 3)
    label = jnp.arange(n) % mixture2d.CLASSES
    x1 = jnp.asarray(mixture2d.MEANS)[label] + mixture2d.STD * jax.random.normal(key[0], (n, 2))
    t = jax.random.uniform(key[1], (n,))
    x = paths.interpolate(paths.linear(), t, jax.random.normal(key[2], (n, 2)), x1)
    for c in (given({"label": label}), Condition({"label": label}, {"label": jnp.zeros(n, bool)})):
        u, v = trained.network.velocity(trained.params, t, x, c), exact(t, x, c)
        assert float(jnp.mean((u - v) ** 2) / jnp.mean(v**2)) < 0.02

    s = sampling.sample(
        trained, [str(i) for i in range(8)] * 250, gamma=1.0, batch_size=2000, config=sampling.SamplerConfig("rk4", 20)
    )
    for k in range(8):
        own = s.x[k::8]
        np.testing.assert_allclose(own.mean(0), mixture2d.MEANS[k], atol=5 * mixture2d.STD / 250**0.5)
        np.testing.assert_allclose(own.std(0), mixture2d.STD, rtol=0.25)


@pytest.mark.slow
def test_the_loss_of_a_gaussian_reaches_its_minimum(tmp_path):
    """A small network on N(m, Σ): its loss on fresh draws comes within 3 % of the known least value."""
    law, p, size = analytic.mixture([1.0], [[0.5, -1.0]], jnp.array([[[0.5, 0.2], [0.2, 1.0]]])), paths.linear(), 512
    network = as_network(lambda rngs: MLP((2,), {}, width=32, depth=2, rngs=rngs))
    loss = make_loss(network, losses.Recipe(p, times.uniform()), lambda keys, x, coins: x, jax.random.key(1))
    optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, 600))
    step = make_step(loss, optimizer, ema.constant(0.99))(lambda tree: tree)
    label = given(jnp.zeros(size, int))

    def batch(key):
        return Batch(analytic.sample(key, law, label), {}, jnp.arange(size))

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, key: step(s, batch(key)), state, jax.random.split(jax.random.key(2), 600))

    state, _ = train(init_state(network, optimizer, jax.random.key(0)))
    fresh = jax.vmap(lambda i, key: loss(state.ema, 10_000 + i, batch(key)))
    measured = fresh(jnp.arange(100), jax.random.split(jax.random.key(3), 100))
    minimum = float(analytic.flow_matching_minimum(law, p, jnp.linspace(0, 1, 20_001)).mean())
    error = float(measured.std()) / 10
    assert minimum - 4 * error < float(measured.mean()) < 1.03 * minimum + 4 * error


@pytest.mark.slow
def test_a_digits_classifier_knows_clean_digits_and_not_noise(data_dir, tmp_path):
    """configs/digits_classifier.py, shortened: accuracy and the sharpness of the posterior grow with t."""
    from configs.digits_classifier import get_config

    config = get_config()
    config.data.data_dir = str(data_dir)
    config.steps = 300
    state = loop.train(config, tmp_path)
    test = build.dataset(config, "test")
    batch = test.read(np.arange(test.size))
    x1, c = test.info.examples.to_model(batch.x), given(batch.value)
    network = from_config(config, test.info).network
    log_p, p = log_probability(network, state.ema), paths.linear()
    x0 = jax.random.normal(jax.random.key(0), x1.shape)

    def accuracy(t):
        x = paths.interpolate(p, jnp.full(test.size, t), x0, x1)
        guesses = [log_p(jnp.float32(t), x, given({"label": jnp.full(test.size, k)})) for k in range(10)]
        assert float(jnp.mean(log_p(jnp.float32(t), x, c))) > -2.4  # never worse than to know nothing, log(1/10)
        np.testing.assert_allclose(jnp.exp(jnp.stack(guesses)).sum(axis=0), 1.0, rtol=1e-4)
        return float(jnp.mean(jnp.argmax(jnp.stack(guesses), axis=0) == c.value["label"]))

    early, middle, late = map(accuracy, (0.05, 0.5, 0.95))
    assert early < 0.35
    assert early < middle < late
    assert late > 0.85
