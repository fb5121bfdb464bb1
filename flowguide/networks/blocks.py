"""Blocks of the diffusion transformer: attention and an MLP, modulated and gated by time and condition."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from flowguide.networks.attention import Attention, CrossAttention, joint_attention
from flowguide.networks.layers import Dense, RMSNorm, modulate, normalised, zeros
from flowguide.networks.perturbation import PLAIN, Treatment
from flowguide.typing import Array

NORMS = ("layer", "rms")
MLPS = ("gelu", "swiglu")
CONTEXTS = ("keys", "cross", "joint")


class BlockSettings(NamedTuple):
    """What a block is made of; ``DiT`` explains the settings.

    Attributes:
      width: size of a token, of the signal and of a row of the sequence.
      heads: number of attention heads.
      ratio: hidden size of the MLP over ``width``.
      norm: one of ``NORMS``.
      qk_norm: whether queries and keys are normalised.
      rope: whether queries and keys are rotated.
      mlp: one of ``MLPS``.
      context: how a conditioning sequence enters, one of ``CONTEXTS``; None without one.
      shared_film: whether the block gets a modulation that all blocks share.
      kernel: one of ``attention.KERNELS``.
      dtype: dtype of the computation.
    """

    width: int
    heads: int
    ratio: int = 4
    norm: str = "layer"
    qk_norm: bool = False
    rope: bool = False
    mlp: str = "gelu"
    context: str | None = None
    shared_film: bool = False
    kernel: str = "xla"
    dtype: jnp.dtype = jnp.dtype("float32")


class BlockInputs(NamedTuple):
    """What every block gets besides its tokens.

    Attributes:
      signal: (B, width), time and condition; with ``shared_film`` the modulation (B, 6·width) that blocks share.
      sequence: conditioning sequence (B, L, width); None without one.
      mask: bool (B, L), False where it is padded; None without a sequence.
      grid: number of tokens along each axis; the last of the block's tokens form it, in row-major order.
    """

    signal: Array
    sequence: Array | None
    mask: Array | None
    grid: tuple[int, ...]


class Film(NamedTuple):
    """Modulation of a block: scale, shift and gate (B, width) of attention, then of the MLP."""

    scale: Array
    shift: Array
    gate: Array
    scale_2: Array
    shift_2: Array
    gate_2: Array


class DiTBlock(nnx.Module):
    """Attention and MLP, each normalised, modulated and gated by time and condition; the gates are 0 at first.

    This is adaLN-Zero (Peebles & Xie 2023, §3.2), or with ``shared_film`` adaLN-single (Chen et al. 2023, §2.3). With
    ``context="cross"``, attention to the sequence lies between the two, without modulation.
    """

    def __init__(self, settings: BlockSettings, *, rngs: nnx.Rngs):
        width, dtype = settings.width, settings.dtype
        attention: dict[str, Any] = {"qk_norm": settings.qk_norm, "kernel": settings.kernel, "dtype": dtype}
        if settings.shared_film:
            self.film = nnx.Param(jnp.zeros((6, width)))
        else:
            self.film = Dense(width, 6 * width, kernel_init=zeros, dtype=dtype, rngs=rngs)
        context = width if settings.context == "keys" else None
        self.attention = Attention(width, settings.heads, context, rope=settings.rope, **attention, rngs=rngs)
        cross = partial(CrossAttention, width, settings.heads, width, **attention)
        self.cross = cross(rngs=rngs) if settings.context == "cross" else None
        self.gated = settings.mlp == "swiglu"
        hidden = hidden_size(settings)
        self.hidden = Dense(width, (1 + self.gated) * hidden, dtype=dtype, rngs=rngs)
        self.out = Dense(hidden, width, dtype=dtype, rngs=rngs)
        self.norm, self.norm_2 = (RMSNorm(width) if settings.norm == "rms" else None for _ in range(2))

    def __call__(self, x: Array, inputs: BlockInputs, treatment: Treatment = PLAIN) -> Array:
        """x (B, N, width) -> (B, N, width)."""
        if treatment.skipped:
            return x
        film = self.modulation(inputs.signal)
        sequence, mask = inputs.sequence, inputs.mask
        z = self.to_attend(x, film)
        x = x + film.gate[:, None] * self.attention(z, sequence, mask, inputs.grid, treatment)
        if self.cross is not None and sequence is not None and mask is not None:
            x = x + self.cross(x, sequence, mask)
        return self.with_mlp(x, film)

    def modulation(self, signal: Array) -> Film:
        """Returns the modulation of this block."""
        if isinstance(self.film, Dense):
            return Film(*jnp.split(self.film(signal), 6, axis=-1))
        shared = signal.reshape(signal.shape[0], *self.film.shape)
        return Film(*jnp.moveaxis(shared + self.film[...].astype(signal.dtype), 1, 0))

    def to_attend(self, x: Array, film: Film) -> Array:
        """Returns the tokens that attention reads."""
        return modulate(normalised(x, self.norm), film.scale, film.shift)

    def with_mlp(self, x: Array, film: Film) -> Array:
        """Returns x plus the gated MLP of it."""
        h = self.hidden(modulate(normalised(x, self.norm_2), film.scale_2, film.shift_2))
        if self.gated:
            a, b = jnp.split(h, 2, axis=-1)
            h = nnx.silu(a) * b
        else:
            h = nnx.gelu(h)
        return x + film.gate_2[:, None] * self.out(h)


class JointBlock(nnx.Module):
    """A block of an image's and one of a text's tokens that attend together (MMDiT, Esser et al. 2024, §4)."""

    def __init__(self, settings: BlockSettings, *, rngs: nnx.Rngs):
        alone = settings._replace(context=None)
        self.image = DiTBlock(alone, rngs=rngs)
        self.text = DiTBlock(alone._replace(rope=False), rngs=rngs)

    def __call__(
        self, both: tuple[Array, Array], inputs: BlockInputs, treatment: Treatment = PLAIN
    ) -> tuple[Array, Array]:
        """Tokens of the image (B, N, width) and of the text (B, L, width) -> the same.

        Both streams are carried, so ``inputs.sequence`` is not read.
        """
        if treatment.skipped:
            return both
        x, sequence = both
        assert inputs.mask is not None  # DiT makes this block only where there is a sequence
        film, film_text = self.image.modulation(inputs.signal), self.text.modulation(inputs.signal)
        z, z_text = self.image.to_attend(x, film), self.text.to_attend(sequence, film_text)
        layers = self.image.attention, self.text.attention
        mixed, mixed_text = joint_attention(*layers, z, z_text, inputs.mask, inputs.grid, treatment)
        x, sequence = x + film.gate[:, None] * mixed, sequence + film_text.gate[:, None] * mixed_text
        return self.image.with_mlp(x, film), self.text.with_mlp(sequence, film_text)


def hidden_size(settings: BlockSettings) -> int:
    """Returns the hidden size of the MLP: ratio · width, and two thirds of it for "swiglu" (Shazeer 2020, §4)."""
    whole = settings.ratio * settings.width
    return 2 * whole // 3 if settings.mlp == "swiglu" else whole
