"""Tiny networks, one of each kind, and inputs for them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from flowguide.condition import Condition, given
from flowguide.networks import NETWORKS, Network, as_network
from flowguide.schema import Label, Tokens, Vector

FIELDS = {
    "kind": Label(("a", "b", "c")),
    "place": Vector(3),
    "text": Tokens(4, ("", "red", "hat", "blue")),
}
SHAPE = (4, 4, 2)
# One shape of each rank; the first side is that of the U-Net's attention.
SHAPES = {"signal": (4, 2), "image": SHAPE, "volume": (4, 2, 6, 2)}
SMALL = {
    "mlp": {"width": 16, "depth": 2, "refine": 8},
    "unet": {"width": 4, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "heads": 2},
    "dit": {"width": 24, "depth": 2, "heads": 2, "unroll": 1},  # scanned, as on GPUs and TPUs
}
BATCH = 4


def build(name: str, fields=FIELDS, shape=SHAPE, **options) -> Network:
    return as_network(lambda rngs: NETWORKS[name](shape, fields, rngs=rngs, **(SMALL[name] | options)))


def full_condition() -> Condition:
    text = [[1, 2, 0, 0], [3, 2, 1, 0], [1, 0, 0, 0], [3, 2, 1, 2]]
    place = jnp.linspace(-1.0, 1.0, 3 * BATCH).reshape(BATCH, 3)
    return given({"kind": jnp.arange(BATCH) % 3, "place": place, "text": jnp.array(text)})


def draw(seed: int, *shape: int) -> jax.Array:
    """Normal numbers without the seconds that XLA takes to compile a draw of each new shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(shape=SHAPE) -> tuple[jax.Array, jax.Array]:
    return jnp.linspace(0.1, 0.9, BATCH), draw(1, BATCH, *shape)


def noisy(params):
    """Parameters away from their zero initialisation, so that every part of the network speaks."""
    flat, unravel = ravel_pytree(params)
    return unravel(flat + 0.2 * draw(2, *flat.shape))
