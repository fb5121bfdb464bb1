"""One step: what is not finite changes nothing but the count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowguide.schema import Batch
from flowguide.training import ema
from flowguide.training.optimizer import OPTIMIZERS, learning_rate
from flowguide.training.step import ReadOnly, TrainState, make_step


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan, 3e38])
def test_a_step_whose_update_alone_is_not_finite_is_skipped(bad):
    """The loss and its gradient are finite; what the optimiser makes of them is not, or its norm is beyond float32."""

    def loss(params, step, batch, teacher):
        return jnp.sum(params["w"] ** 2)

    scaled = optax.stateless(lambda updates, _: jax.tree.map(lambda u: bad * u, updates))
    optimizer = optax.chain(optax.trace(0.9), scaled)
    params = {"w": jnp.arange(1.0, 4.0)}
    state = TrainState(jnp.int32(4), params, params, optimizer.init(params))
    step = make_step(loss, optimizer, ema.constant(0.9))(lambda tree: tree)
    after, metrics = jax.jit(step)(state, Batch(jnp.zeros(2), {}, jnp.arange(2)))
    assert int(after.step) == 5
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=0), state._replace(step=0))
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert not np.isfinite(metrics["update_norm"])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_factor_is_one_of_the_learning_rate(name):
    """Three steps with a tenth of the rate, by the factor and by the schedule, with all that the optimiser keeps."""

    def loss(params, step, batch, teacher):
        return jnp.sum(jnp.sin(params["kernel"]) ** 2) + jnp.sum(params["bias"] ** 4)

    def run(rate, factor):
        optimizer = OPTIMIZERS[name](learning_rate(rate, 10, decay="linear"))
        params = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3), "bias": jnp.arange(3.0)}
        state = TrainState(jnp.int32(0), params, params, optimizer.init(params))
        step = jax.jit(make_step(loss, optimizer, ema.constant(0.9))(lambda tree: tree))
        for _ in range(3):
            state, _ = step(state, Batch(jnp.zeros(2), {}, jnp.arange(2)), ReadOnly(slower=factor))
        return state.params, state.ema

    found, expected = run(0.1, np.float32(0.1)), run(0.01, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), found[0], run(0.1, None)[0])
    assert min(jax.tree.leaves(moved)) > 1e-2
