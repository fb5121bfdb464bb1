"""The tiny networks, each compiled once for the whole folder."""

import jax
import jax.numpy as jnp
import pytest

from flowguide.networks import NETWORKS
from tests.support.tiny_networks import build, noisy


@pytest.fixture(scope="session", params=list(NETWORKS))
def tiny(request):
    """(name, network, fresh params, params with noise, jitted velocity)."""
    network = build(request.param)
    params = network.init(jax.random.key(0))
    return request.param, network, params, noisy(params), jax.jit(network.velocity)


@pytest.fixture(scope="session")
def gradient(tiny):
    """(params, t, x, c, weight (B,), target) -> the gradient of the weighted squared error."""
    _, network, *_ = tiny

    def loss(params, t, x, c, weight, target):
        return jnp.sum(weight[:, None, None, None] * jnp.square(network.velocity(params, t, x, c) - target))

    return jax.jit(jax.grad(loss))
