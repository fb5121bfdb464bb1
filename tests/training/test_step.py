"""One step: what is not finite changes nothing but the count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowguide.schema import Batch
from flowguide.training import ema
from flowguide.training.step import TrainState, make_step


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
