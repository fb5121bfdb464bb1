"""A residual multi-layer perceptron, for points and for small images that are aligned with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition, Fields
from flowguide.networks.embed import ConditionEmbedding, TimeEmbedding
from flowguide.networks.layers import Dense, layer_norm, modulate, zeros
from flowguide.typing import Array


class MLP(nnx.Module):
    """u(t, x, c) for x (B, *shape), flattened: residual blocks, each modulated by time and condition."""

    def __init__(
        self,
        shape: Sequence[int],
        fields: Fields,
        *,
        width: int = 128,
        depth: int = 4,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Builds the network; the velocity of a fresh one is 0.

        Args:
          shape: shape of one example.
          fields: the fields of the condition; may be empty.
          width: size of the hidden layers and of the embeddings.
          depth: number of residual blocks.
          dtype: of the computation, "float32" or "bfloat16"; parameters and result are float32.
          rngs: for the initialisation.
        """
        size = math.prod(shape)
        self.dtype = jnp.dtype(dtype)
        self.time = TimeEmbedding(width, rngs=rngs)
        self.condition = ConditionEmbedding(fields, width, rngs=rngs)
        self.inlet = Dense(size, width, dtype=self.dtype, rngs=rngs)
        self.blocks = nnx.data([MLPBlock(width, dtype=self.dtype, rngs=rngs) for _ in range(depth)])
        self.outlet = Dense(width, size, kernel_init=zeros, rngs=rngs)
        self.skip = Dense(width, size, kernel_init=zeros, rngs=rngs)

    def __call__(self, t: Array, x: Array, c: Condition) -> Array:
        """t (B,), x (B, *shape), c of batch B -> float32 (B, *shape)."""
        flat = x.reshape(len(x), -1)
        signal = nnx.silu(self.time(t) + self.condition(c, len(x)).vector).astype(self.dtype)
        h = self.inlet(flat.astype(self.dtype))
        for block in self.blocks:
            h = block(h, signal)
        # A coordinate that t and c nearly determine has u ≈ (x̂1 − x)/(1 − t) (linear path): a multiple of x itself, of
        # its own size for each coordinate, that the hidden layers would have to carry through.
        u = self.skip(signal.astype(jnp.float32)) * flat + self.outlet(nnx.silu(h).astype(jnp.float32))
        return u.reshape(x.shape)


class MLPBlock(nnx.Module):
    """h + W₂ silu(W₁ silu(modulated norm(h))), on (B, width)."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.film = Dense(width, 2 * width, dtype=dtype, rngs=rngs)
        self.hidden = Dense(width, width, dtype=dtype, rngs=rngs)
        self.out = Dense(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, h: Array, signal: Array) -> Array:
        scale, shift = jnp.split(self.film(signal), 2, axis=-1)
        z = nnx.silu(modulate(layer_norm(h), scale, shift))
        return h + self.out(nnx.silu(self.hidden(z)))
