"""The diffusion transformer with adaLN-Zero (DiT, Peebles & Xie 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.attention import Attention
from flowguide.networks.embed import ConditionEmbedding, TimeEmbedding, has_sequence
from flowguide.networks.layers import Dense, check_sizes, computing_dtype, gathered, layer_norm, modulate, sides, zeros
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
    """u(t, x, c) for images x (B, H, W, C), cut into patches.

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
          shape: (H, W, C) of one example.
          fields: fields of the condition; may be empty.
          patch: side of the square patches.
          width: size of a token and of the embeddings. ``**SIZES["B"]`` sets width, depth and heads.
          depth: number of blocks.
          heads: number of attention heads.
          ratio: hidden size of the MLPs over ``width``.
          remat: whether to recompute each block in the backward pass instead of storing its activations.
          unroll: number of blocks in the scan's body; ``depth`` is fastest to run and slowest to compile.
          dtype: dtype of the computation, "float32" or "bfloat16"; parameters and output are float32.
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if the examples are not images, a size is not positive, the patches do not tile the image, or the
            width cannot be split into heads or positions.
        """
        height, breadth, channels = sides(shape, "dit")
        check_sizes(patch=patch, width=width, depth=depth, heads=heads, ratio=ratio, unroll=unroll)
        if height % patch or breadth % patch:
            raise ValueError(f"patches of {patch}x{patch} do not tile {height}x{breadth}: patch must divide both")
        if width % heads or width % 4:
            raise ValueError(f"width must be a multiple of heads and of 4; got width={width}, heads={heads}")
        self.dtype = computing_dtype(dtype)
        self.patch, self.depth, self.remat, self.unroll = patch, depth, remat, unroll
        self.time = TimeEmbedding(width, rngs=rngs)
        self.condition = ConditionEmbedding(fields, width, rngs=rngs)
        self.inlet = Dense(patch * patch * channels, width, dtype=self.dtype, rngs=rngs)
        context = width if has_sequence(fields) else None

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> DiTBlock:
            return DiTBlock(width, heads, ratio, context, dtype=self.dtype, rngs=rngs)

        self.blocks = stack(rngs)
        self.film = Dense(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.outlet = Dense(width, patch * patch * channels, kernel_init=zeros, rngs=rngs)

    @property
    def stacked(self) -> tuple[str, ...]:
        """Names of the submodules whose parameters are stacked; the scan gathers them layer by layer."""
        return ("blocks",)

    @property
    def attends(self) -> tuple[bool, ...]:
        """For each block, whether it has attention."""
        return (True,) * self.depth

    def __call__(self, t: Array, x: Array, c: Condition, perturbation: Perturbation = UNPERTURBED) -> Array:
        """t (B,), x (B, H, W, C), c of batch B -> float32 (B, H, W, C)."""
        embedded = self.condition(c, x.shape[0])
        signal = nnx.silu(self.time(t) + embedded.vector)
        tokens = self.inlet(_to_patches(x, self.patch).astype(self.dtype))
        grid = (x.shape[1] // self.patch, x.shape[2] // self.patch)
        tokens = tokens + sincos_2d(*grid, tokens.shape[-1]).astype(self.dtype)

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
        grid: tuple[int, int],
        treatment: Treatment = PLAIN,
    ) -> Array:
        """x (B, N, width), signal (B, width), sequence (B, L, width) and its mask -> (B, N, width).

        The N tokens form a ``grid`` (height, width).
        """
        if treatment.skipped:
            return x
        scale, shift, gate, scale_2, shift_2, gate_2 = jnp.split(self.film(signal), 6, axis=-1)
        z = modulate(layer_norm(x), scale, shift)
        x = x + gate[:, None] * self.attention(z, sequence, mask, grid, treatment)
        z = modulate(layer_norm(x), scale_2, shift_2)
        return x + gate_2[:, None] * self.out(nnx.gelu(self.hidden(z)))


def sincos_2d(height: int, width: int, size: int) -> Array:
    """Returns sinusoidal positions of a grid, float32 (height·width, size): one half for rows, the other for columns.

    Each half is the encoding of Vaswani et al. 2017, §3.5, with frequencies 10000^(-4i/size), as in Peebles & Xie 2023.
    """
    frequency = 10_000.0 ** (-np.arange(size // 4) / (size // 4))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = np.concatenate([axis.reshape(-1, 1) * frequency for axis in (rows, columns)], axis=-1)
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)


def _to_patches(x: Array, p: int) -> Array:
    """(B, H, W, C) -> (B, H/p · W/p, p·p·C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // p, p, w // p, p, c)
    return x.swapaxes(2, 3).reshape(b, (h // p) * (w // p), p * p * c)


def _from_patches(tokens: Array, p: int, shape: tuple[int, ...]) -> Array:
    """The inverse of ``_to_patches``."""
    b, h, w, c = shape
    return tokens.reshape(b, h // p, w // p, p, p, c).swapaxes(2, 3).reshape(shape)
