"""The diffusion transformer with adaLN-Zero (DiT, Peebles & Xie 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.attention import Attention
from flowguide.networks.embed import ConditionEmbedding, TimeEmbedding, channels_beside, concatenated, has_sequence
from flowguide.networks.layers import (
    Dense,
    check_divisible,
    check_sizes,
    computing_dtype,
    gathered,
    in_blocks,
    layer_norm,
    modulate,
    sides_and_channels,
    zeros,
)
from flowguide.networks.perturbation import PLAIN, UNPERTURBED, Perturbation, Treatment, treatments
from flowguide.schema import Fields
from flowguide.typing import Array

# Peebles & Xie 2023, Table 1.
SIZES: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}


class DiT(nnx.Module):
    """u(t, x, c) for signals x (B, T, C), images (B, H, W, C) and volumes (B, D, H, W, C), cut into patches.

    ``lax.scan`` applies one block with stacked parameters, so compile time does not grow with depth.
    """

    def __init__(
        self,
        shape: Sequence[int],
        fields: Fields,
        *,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        ratio: int = 4,
        remat: bool = False,
        unroll: int = 1,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Builds the network; at initialisation the velocity is 0 and the blocks are identities.

        Args:
          shape: (T, C), (H, W, C) or (D, H, W, C) of one example.
          fields: fields of the condition; may be empty.
          patch: side of a patch, the same along every axis: an interval, a square or a cube.
          width: size of a token and of the embeddings; a multiple of ``heads`` and of twice the number of axes.
            ``**SIZES["B"]`` sets width, depth and heads.
          depth: number of blocks.
          heads: number of attention heads.
          ratio: hidden size of the MLPs over ``width``.
          remat: whether to recompute each block in the backward pass instead of storing its activations.
          unroll: number of blocks in the scan's body; ``depth`` is fastest to run and slowest to compile.
          dtype: dtype of the computation, "float32" or "bfloat16"; parameters and output are float32.
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if the examples have no spatial axis or more than 3, a size is not positive, the patches do not
            tile an example, or the width cannot be split into heads or positions.
        """
        sides, channels = sides_and_channels(shape, "dit")
        check_sizes(patch=patch, width=width, depth=depth, heads=heads, ratio=ratio, unroll=unroll)
        axes = len(sides)
        check_divisible(sides, patch, f"dit with patch={patch}", "give a patch that divides every side")
        if width % heads or width % (2 * axes):
            wider = width + -width % math.lcm(heads, 2 * axes)
            raise ValueError(
                f"dit over {axes} axes needs a width divisible by heads and by {2 * axes}; got width={width}, "
                f"heads={heads}: try width={wider}"
            )
        self.dtype = computing_dtype(dtype)
        self.patch, self.depth, self.remat, self.unroll = patch, depth, remat, unroll
        self.time = TimeEmbedding(width, rngs=rngs)
        self.condition = ConditionEmbedding(fields, width, rngs=rngs)
        seen = channels + channels_beside(fields, axes)
        self.inlet = Dense(patch**axes * seen, width, dtype=self.dtype, rngs=rngs)
        context = width if has_sequence(fields) else None

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> DiTBlock:
            return DiTBlock(width, heads, ratio, context, dtype=self.dtype, rngs=rngs)

        self.blocks = stack(rngs)
        self.film = Dense(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.outlet = Dense(width, patch**axes * channels, kernel_init=zeros, rngs=rngs)

    @property
    def stacked(self) -> tuple[str, ...]:
        """Names of the submodules whose parameters are stacked; the scan gathers them layer by layer."""
        return ("blocks",)

    @property
    def attends(self) -> tuple[bool, ...]:
        """For each block, whether it has attention."""
        return (True,) * self.depth

    def __call__(self, t: Array, x: Array, c: Condition, perturbation: Perturbation = UNPERTURBED) -> Array:
        """t (B,), x (B, *sides, C), c of batch B -> float32 (B, *sides, C)."""
        embedded = self.condition(c, x.shape[0])
        signal = nnx.silu(self.time(t) + embedded.vector)
        tokens = self.inlet(_to_patches(concatenated(x, embedded), self.patch).astype(self.dtype))
        grid = tuple(side // self.patch for side in x.shape[1:-1])
        tokens = tokens + sincos_positions(grid, tokens.shape[-1]).astype(self.dtype)

        structure, layers = nnx.split(self.blocks)
        # The scan's body holds each distinct treatment once and looks up the one of a layer. If all layers have the
        # same, as in the plain network, ``switch`` is optimised away.
        plan = treatments(perturbation, self.attends)
        different = sorted(set(plan))
        which = jnp.array([different.index(treatment) for treatment in plan], jnp.int32)

        def under(treatment: Treatment) -> Callable[[Array, nnx.State[Any, Any]], Array]:
            def apply(h: Array, layer: nnx.State[Any, Any]) -> Array:
                block = nnx.merge(structure, layer)
                return block(h, signal.astype(self.dtype), embedded.sequence, embedded.mask, grid, treatment)

            return apply

        branches = [under(treatment) for treatment in different]

        def apply(h: Array, layer: tuple[Array, nnx.State[Any, Any]]) -> tuple[Array, None]:
            return jax.lax.switch(layer[0], branches, h, gathered(layer[1])), None

        body = jax.checkpoint(apply, prevent_cse=False) if self.remat else apply
        tokens, _ = jax.lax.scan(body, tokens, (which, layers), unroll=self.unroll)
        scale, shift = jnp.split(self.film(signal), 2, axis=-1)
        tokens = modulate(layer_norm(tokens.astype(jnp.float32)), scale, shift)
        return _from_patches(self.outlet(tokens), self.patch, x.shape)


class DiTBlock(nnx.Module):
    """Attention and MLP, each normalised, modulated and gated by time and condition; the gates are 0 at first."""

    def __init__(self, width: int, heads: int, ratio: int, context: int | None, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.film = Dense(width, 6 * width, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, context, dtype=dtype, rngs=rngs)
        self.hidden = Dense(width, ratio * width, dtype=dtype, rngs=rngs)
        self.out = Dense(ratio * width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Array,
        signal: Array,
        sequence: Array | None,
        mask: Array | None,
        grid: tuple[int, ...],
        treatment: Treatment = PLAIN,
    ) -> Array:
        """x (B, N, width), signal (B, width), sequence (B, L, width) and its mask -> (B, N, width).

        The N tokens form a row-major ``grid``.
        """
        if treatment.skipped:
            return x
        scale, shift, gate, scale_2, shift_2, gate_2 = jnp.split(self.film(signal), 6, axis=-1)
        z = modulate(layer_norm(x), scale, shift)
        x = x + gate[:, None] * self.attention(z, sequence, mask, grid, treatment)
        z = modulate(layer_norm(x), scale_2, shift_2)
        return x + gate_2[:, None] * self.out(nnx.gelu(self.hidden(z)))


def sincos_positions(grid: tuple[int, ...], size: int) -> Array:
    """Returns sinusoidal positions of the tokens of a row-major grid, float32 (T, size).

    Each of the n axes has size/2n frequencies, 10000^(-2n·i/size): the encoding of Vaswani et al. 2017, §3.5, per axis,
    as in Peebles & Xie 2023. All sines come first, then all cosines; both are ordered by axis.

    Args:
      grid: number of tokens along each axis; T is their product.
      size: a multiple of 2n.
    """
    count = size // (2 * len(grid))
    frequency = 10_000.0 ** (-np.arange(count) / count)
    angles = np.concatenate([place.reshape(-1, 1) * frequency for place in np.indices(grid)], axis=-1)
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)


def _to_patches(x: Array, p: int) -> Array:
    """(B, H, W, C) -> (B, H/p · W/p, p·p·C), and likewise for other ranks; tokens and patches are row-major."""
    b, *sides, c = x.shape
    n = len(sides)
    blocks = in_blocks(x, p).transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return blocks.reshape(b, math.prod(side // p for side in sides), p**n * c)


def _from_patches(tokens: Array, p: int, shape: tuple[int, ...]) -> Array:
    """The inverse of ``_to_patches``: tokens -> an array of ``shape``."""
    b, *sides, c = shape
    n = len(sides)
    blocks = tokens.reshape(b, *(side // p for side in sides), *(p,) * n, c)
    pairs = (axis for i in range(1, n + 1) for axis in (i, n + i))
    return blocks.transpose(0, *pairs, 2 * n + 1).reshape(shape)
