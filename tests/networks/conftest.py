"""The tiny networks, each compiled once for the whole folder."""

import jax
import pytest
from tiny_networks import build, noisy

from flowguide.networks import NETWORKS


@pytest.fixture(scope="session", params=list(NETWORKS))
def tiny(request):
    """(name, network, fresh params, params with noise, jitted velocity)."""
    network = build(request.param)
    params = network.init(jax.random.key(0))
    return request.param, network, params, jax.jit(noisy)(params), jax.jit(network.velocity)
