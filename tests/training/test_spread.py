"""Data parallelism: the same training on any number of devices, and replicas that stay equal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from flowguide import losses, paths, targets, times
from flowguide.condition import Label
from flowguide.networks import MLP, Network, as_network
from flowguide.training import ema
from flowguide.training.spread import data_parallel, replicas_agree, replicate
from flowguide.training.step import Batch, init_state, make_loss, make_step

SIZE, STEPS = 32, 20
FIELDS = {"a": Label(("x", "y", "z")), "b": Label(("x", "y"))}
NETWORK = as_network(lambda rngs: MLP((2,), FIELDS, width=16, depth=2, rngs=rngs))
RECIPE = losses.Recipe(paths.linear(), times.logit_normal())
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))
LOSS = make_loss(NETWORK, RECIPE, lambda x: x, jax.random.key(1))


def batch(step):
    random = np.random.default_rng(step)
    value = {"a": random.integers(0, 3, SIZE).astype(np.int32), "b": random.integers(0, 2, SIZE).astype(np.int32)}
    x = random.standard_normal((SIZE, 2)).astype(np.float32) + value["a"][:, None]
    return Batch(x, value, np.arange(SIZE, dtype=np.int32))


def train(devices, accumulate=1, steps=STEPS, step_with=None):
    state = replicate(init_state(NETWORK, OPTIMIZER, jax.random.key(0)), jax.devices()[:devices])
    step_with = step_with or make_step(LOSS, OPTIMIZER, ema.constant(0.9), accumulate)
    step = data_parallel(step_with, jax.devices()[:devices])
    for i in range(steps):
        state, metrics = step(state, batch(i))
        jax.block_until_ready(metrics)
    return state, metrics


@pytest.fixture(scope="module")
def alone():
    return train(1)


@pytest.mark.parametrize(("devices", "accumulate"), [(2, 1), (8, 1), (1, 4), (2, 4)])
def test_same_parameters_on_any_number_of_devices_and_parts(alone, devices, accumulate):
    state, metrics = train(devices, accumulate)
    assert replicas_agree(state)
    assert int(state.step) == STEPS
    for a, b in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(metrics["loss"], alone[1]["loss"], rtol=1e-5)


def test_training_moves_the_parameters(alone):
    start = init_state(NETWORK, OPTIMIZER, jax.random.key(0))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.params, alone[0].params)
    assert max(jax.tree.leaves(moved)) > 1e-2


def test_replicas_drift_without_the_mean_and_the_check_sees_it():
    step_with = make_step(LOSS, OPTIMIZER, ema.constant(0.9))
    state, _ = train(2, steps=2, step_with=lambda mean: step_with(lambda tree: tree))
    assert not replicas_agree(state)


def test_state_has_no_device_axis(alone):
    fresh = init_state(NETWORK, OPTIMIZER, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, train(8, steps=1)[0])


def test_step_compiles_once():
    traces = []
    step_with = make_step(LOSS, OPTIMIZER, ema.constant(0.9))

    def counting(mean):
        step = step_with(mean)
        return lambda *given: traces.append(0) or step(*given)

    train(2, steps=3, step_with=counting)
    assert len(traces) == 1


def test_flip_mirrors_half_of_the_images():
    """Images that are 1 on the left; a prediction of 1 on the right errs by 1 on them and by 0 on mirrored ones."""
    images = np.zeros((256, 2, 2, 1), np.float32)
    images[:, :, 0] = 1.0
    right = jnp.asarray(images[:1, :, ::-1])
    network = Network(lambda key: {}, lambda params, t, x, c: jnp.broadcast_to(right, x.shape))
    recipe = losses.Recipe(paths.path(lambda t: t, lambda t: 0 * t), times.uniform())  # the target is x1 itself
    b = Batch(images, {"a": np.zeros(256, np.int32)}, np.arange(256, dtype=np.int32))
    share = 1 - float(make_loss(network, recipe, lambda x: x, jax.random.key(2), flip=True)({}, 0, b))
    assert abs(share - 0.5) < 4.5 * 0.5 / 256**0.5
    assert float(make_loss(network, recipe, lambda x: x, jax.random.key(2))({}, 0, b)) == 1.0


def test_the_moving_average_teaches_unless_another_does():
    recipe = RECIPE._replace(target=targets.model_guidance(3.0))
    loss = make_loss(NETWORK, recipe, lambda x: x, jax.random.key(1))
    state = init_state(NETWORK, OPTIMIZER, jax.random.key(0))
    flat, unravel = ravel_pytree(state.params)
    noisy = unravel(flat + 0.3 * jax.random.normal(jax.random.key(4), flat.shape))
    state, other = state._replace(ema=noisy), jax.tree.map(lambda a: 2 * a, noisy)
    step, error = jax.jit(make_step(loss, OPTIMIZER, ema.constant(0.9))(lambda tree: tree)), jax.jit(loss)
    b = batch(0)
    b = b._replace(x=jnp.asarray(b.x, jnp.float32))
    for given, teacher in ((None, noisy), (other, other)):
        assert float(step(state, b, given)[1]["loss"]) == pytest.approx(float(error(state.params, 0, b, teacher)))
    assert abs(error(state.params, 0, b, noisy) - error(state.params, 0, b)) > 1e-3
    # Nothing is learnt through the teacher.
    through = jax.jit(jax.grad(lambda teacher: loss(state.params, 0, b, teacher)))(noisy)
    assert not any(np.any(g) for g in jax.tree.leaves(through))
