"""A residual MLP, for points and for small aligned images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.embed import ConditionEmbedding, TimeEmbedding, beside_shapes
from flowguide.networks.layers import Dense, check_sizes, computing_dtype, embedding, layer_norm, modulate, zeros
from flowguide.networks.perturbation import PLAIN, UNPERTURBED, Perturbation, Treatment, treatments
from flowguide.schema import Fields
from flowguide.typing import Array


class MLP(nnx.Module):
    """u(t, x, c) for x (B, *shape): residual blocks on the flattened x, each modulated by time and condition."""

    def __init__(
        self,
        shape: Sequence[int],
        fields: Fields,
        *,
        width: int = 128,
        depth: int = 4,
        refine: int = 0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Builds the network; at initialisation the velocity is 0.

        Args:
          shape: shape of one example.
          fields: fields of the condition; may be empty.
          width: size of the hidden layers and of the embeddings.
          depth: number of residual blocks.
          refine: if positive, the hidden size of a small MLP that corrects each pixel of an image ``(H, W, C)``
            separately (see ``Refinement``).
          dtype: dtype of the computation, "float32" or "bfloat16"; parameters and output are float32.
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if a size is not positive, or ``refine`` is set and the examples are not images.
        """
        check_sizes(width=width, depth=depth)
        check_sizes(0, refine=refine)
        if refine and len(shape) != 3:
            raise ValueError(f"refine corrects the pixels of images (H, W, C); got shape {tuple(shape)}: set it to 0")
        size = math.prod(shape)
        self.dtype = computing_dtype(dtype)
        self.time = TimeEmbedding(width, rngs=rngs)
        self.condition = ConditionEmbedding(fields, width, rngs=rngs)
        seen = size + sum(map(math.prod, beside_shapes(fields)))
        self.inlet = Dense(seen, width, dtype=self.dtype, rngs=rngs)
        self.blocks = nnx.data([MLPBlock(width, dtype=self.dtype, rngs=rngs) for _ in range(depth)])
        self.outlet = Dense(width, size, kernel_init=zeros, rngs=rngs)
        self.skip = Dense(width, size, kernel_init=zeros, rngs=rngs)
        self.refinement = nnx.data(Refinement(shape, width, refine, dtype=self.dtype, rngs=rngs) if refine else None)

    @property
    def attends(self) -> tuple[bool, ...]:
        """For each block, whether it has attention."""
        return (False,) * len(self.blocks)

    def __call__(self, t: Array, x: Array, c: Condition, perturbation: Perturbation = UNPERTURBED) -> Array:
        """t (B,), x (B, *shape), c of batch B -> float32 (B, *shape)."""
        flat = x.reshape(x.shape[0], -1)
        embedded = self.condition(c, x.shape[0])
        signal = nnx.silu(self.time(t) + embedded.vector).astype(self.dtype)
        beside = [channels.reshape(x.shape[0], -1) for channels in embedded.beside]
        h = self.inlet(jnp.concatenate([flat, *beside], axis=-1).astype(self.dtype))
        for block, treatment in zip(self.blocks, treatments(perturbation, self.attends), strict=True):
            h = block(h, signal, treatment)
        h = nnx.silu(h)
        # For a coordinate that t and c nearly determine, u ≈ (x̂1 − x)/(1 − t) (linear path). Its term in x has a scale
        # of its own for each coordinate; without the skip, the hidden layers would have to carry it.
        u = self.skip(signal.astype(jnp.float32)) * flat + self.outlet(h.astype(jnp.float32))
        u = u.reshape(x.shape)
        return u if self.refinement is None else u + self.refinement(x, u, h, signal)


class MLPBlock(nnx.Module):
    """h + W₂ silu(W₁ silu(modulate(norm(h)))), on (B, width)."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.film = Dense(width, 2 * width, dtype=dtype, rngs=rngs)
        self.hidden = Dense(width, width, dtype=dtype, rngs=rngs)
        self.out = Dense(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, h: Array, signal: Array, treatment: Treatment = PLAIN) -> Array:
        if treatment.skipped:
            return h
        scale, shift = jnp.split(self.film(signal), 2, axis=-1)
        z = nnx.silu(modulate(layer_norm(h), scale, shift))
        return h + self.out(nnx.silu(self.hidden(z)))


class Refinement(nnx.Module):
    """Corrects u pixel by pixel, from x, u and a few features that the hidden layer predicts for that pixel.

    The hidden layer represents the whole image and is too narrow to resolve the small noise of each pixel late in the
    flow. For a single pixel, noise and colour are easy to separate. It has few parameters and only matrix products.
    """

    def __init__(
        self, shape: Sequence[int], width: int, size: int, features: int = 8, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        height, breadth, channels = shape
        self.shape = height, breadth, features
        self.features = Dense(width, height * breadth * features, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(embedding(rngs.params(), (height, breadth, size)))
        self.film = Dense(width, 4 * size, dtype=dtype, rngs=rngs)
        self.inlet = Dense(2 * channels + features, size, dtype=dtype, rngs=rngs)
        self.hidden = Dense(size, size, dtype=dtype, rngs=rngs)
        self.outlet = Dense(size, channels, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Array, u: Array, h: Array, signal: Array) -> Array:
        """x and u (B, H, W, C), h and signal (B, width) -> float32 (B, H, W, C)."""
        features = self.features(h).reshape(x.shape[0], *self.shape)
        scale, shift, scale2, shift2 = jnp.split(self.film(signal), 4, axis=-1)
        z = jnp.concatenate([x.astype(h.dtype), u.astype(h.dtype), features], axis=-1)
        z = self.inlet(z) + self.position[...].astype(h.dtype)
        z = nnx.silu(modulate(z, scale, shift))
        z = nnx.silu(modulate(self.hidden(z), scale2, shift2))
        return self.outlet(z.astype(jnp.float32))
