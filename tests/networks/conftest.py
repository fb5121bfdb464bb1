"""The tiny networks, each compiled once for the whole folder."""

import jax
import jax.numpy as jnp
import pytest

from flowguide.networks import NETWORKS
from tests.support.tiny_networks import SHAPES, build, noisy

RANKS = {"mlp": ("image",), "unet": tuple(SHAPES), "dit": tuple(SHAPES)}
CASES = [(name, rank) for name in NETWORKS for rank in RANKS[name]]


@pytest.fixture(scope="session")
def make():
    """(name, rank) -> (network, fresh params, params with noise, jitted velocity), the same ones each time."""
    known = {}

    def make(name, rank):
        if (name, rank) not in known:
            network = build(name, shape=SHAPES[rank])
            params = network.init(jax.random.key(0))
            known[name, rank] = network, params, noisy(params), jax.jit(network.velocity)
        return known[name, rank]

    return make


@pytest.fixture(scope="session", params=list(NETWORKS))
def tiny(request, make):
    """(name, network, fresh params, params with noise, jitted velocity) for images."""
    return request.param, *make(request.param, "image")


@pytest.fixture(scope="session", params=CASES, ids="-".join)
def each(request, make):
    """(name, shape, network, fresh params, params with noise, jitted velocity) for signals, images and volumes."""
    name, rank = request.param
    return name, SHAPES[rank], *make(name, rank)


@pytest.fixture(scope="session")
def gradient(tiny):
    """(params, t, x, c, weight (B,), target) -> the gradient of the weighted squared error."""
    _, network, *_ = tiny

    def loss(params, t, x, c, weight, target):
        return jnp.sum(weight[:, None, None, None] * jnp.square(network.velocity(params, t, x, c) - target))

    return jax.jit(jax.grad(loss))
