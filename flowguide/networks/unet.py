"""A U-Net for images (Ronneberger et al. 2015), in the residual form of Ho et al. 2020 and Dhariwal & Nichol 2021."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.attention import Attention
from flowguide.networks.embed import ConditionEmbedding, Embedded, TimeEmbedding, has_sequence
from flowguide.networks.layers import Dense, check_sizes, computing_dtype, conv, group_norm, modulate, sides, zeros
from flowguide.networks.perturbation import PLAIN, UNPERTURBED, Perturbation, Treatment, treatments
from flowguide.schema import Fields
from flowguide.typing import Array


class UNet(nnx.Module):
    """u(t, x, c) for images x (B, H, W, C), channels last."""

    def __init__(
        self,
        shape: Sequence[int],
        fields: Fields,
        *,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        heads: int = 4,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Builds the network; at initialisation the velocity is 0.

        Args:
          shape: (H, W, C) of one example.
          fields: fields of the condition; may be empty.
          width: channels of the first level; the embeddings are four times as wide.
          multipliers: channels of each level over ``width``; each further level halves H and W.
          blocks: residual blocks per level on the way down (one more on the way up).
          attention: heights H of the levels whose blocks have attention, e.g. ``(8,)``.
          heads: number of attention heads.
          dtype: dtype of the computation, "float32" or "bfloat16"; parameters and output are float32.
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if the examples are not images, a size is not positive, H or W cannot be halved often enough, an
            attention height matches no level, its channels cannot be split into heads, or there are token fields but no
            attention.
        """
        height, breadth, channels = sides(shape, "unet")
        check_sizes(width=width, multipliers=multipliers, blocks=blocks, attention=attention, heads=heads)
        if not multipliers:
            raise ValueError("a U-Net has a level for each multiplier; got multipliers=(): give at least one")
        levels = len(multipliers)
        heights = [height >> level for level in range(levels)]
        factor = 2 ** (levels - 1)
        if height % factor or breadth % factor:
            raise ValueError(
                f"{levels} levels need H and W divisible by {factor}; got {height}x{breadth}: give fewer multipliers"
            )
        if has_sequence(fields) and not attention:
            raise ValueError(f"token fields are read by attention; got attention=(): choose from {heights}")
        if not set(attention) <= set(heights):
            raise ValueError(f"attention must name heights among {heights}; got {tuple(attention)}")
        self.dtype = computing_dtype(dtype)
        embedding = 4 * width
        self.time = TimeEmbedding(embedding, rngs=rngs)
        self.condition = ConditionEmbedding(fields, embedding, rngs=rngs)
        context = embedding if has_sequence(fields) else None

        def stage(c_in: int, c_out: int, height: int) -> Stage:
            inner = heads if height in attention else 0
            return Stage(c_in, c_out, embedding, inner, context, dtype=self.dtype, rngs=rngs)

        widths = [width * m for m in multipliers]
        self.skip = Dense(embedding, 1, kernel_init=zeros, rngs=rngs)
        self.inlet = conv(channels, width, dtype=self.dtype, rngs=rngs)
        down, skips, c = [], [width], width
        for level, (c_out, h) in enumerate(zip(widths, heights, strict=True)):
            stages = []
            for _ in range(blocks):
                stages.append(stage(c, c_out, h))
                skips.append(c := c_out)
            if level < levels - 1:
                skips.append(c)
            down.append(stages)
        self.down = nnx.data(down)
        self.middle = nnx.data([stage(c, c, heights[-1]) for _ in range(2)])
        up = []
        for c_out, h in zip(widths[::-1], heights[::-1], strict=True):
            stages = []
            for _ in range(blocks + 1):
                stages.append(stage(c + skips.pop(), c_out, h))
                c = c_out
            up.append(stages)
        self.up = nnx.data(up)
        self.resize_up = nnx.data([conv(c, c, dtype=self.dtype, rngs=rngs) for c in widths[:0:-1]])
        self.outlet = conv(c, channels, kernel_init=zeros, rngs=rngs)

    @property
    def attends(self) -> tuple[bool, ...]:
        """For each block, in the order down, middle, up: whether it has attention."""
        stages = (stage for part in (*self.down, self.middle, *self.up) for stage in part)
        return tuple(stage.attention is not None for stage in stages)

    def __call__(self, t: Array, x: Array, c: Condition, perturbation: Perturbation = UNPERTURBED) -> Array:
        """t (B,), x (B, H, W, C), c of batch B -> float32 (B, H, W, C).

        A skipped block applies only its shortcut: the identity, or a learned projection if the channels change.
        """
        embedded = self.condition(c, x.shape[0])
        time = self.time(t)
        signal = nnx.silu(time + embedded.vector).astype(self.dtype)
        h = self.inlet(x.astype(self.dtype))
        plan = iter(treatments(perturbation, self.attends))
        skips = [h]
        for level, stages in enumerate(self.down):
            if level:
                h = _downsample(h)
                skips.append(h)
            for stage in stages:
                h = stage(h, signal, embedded, next(plan))
                skips.append(h)
        for stage in self.middle:
            h = stage(h, signal, embedded, next(plan))
        for level, stages in enumerate(self.up):
            if level:
                h = self.resize_up[level - 1](_upsample(h))
            for stage in stages:
                h = stage(jnp.concatenate([h, skips.pop()], axis=-1), signal, embedded, next(plan))
        h = nnx.silu(group_norm(h, _groups(h.shape[-1])))
        # The velocity has a component along x whose scale depends on t alone; it bypasses the layers.
        return self.skip(nnx.silu(time))[:, None, None] * x + self.outlet(h.astype(jnp.float32))


class Stage(nnx.Module):
    """A residual block with scale-shift conditioning, then attention if ``heads`` is positive."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        heads: int,
        context: int | None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.hidden = conv(c_in, c_out, dtype=dtype, rngs=rngs)
        self.film = Dense(embedding, 2 * c_out, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.out = conv(c_out, c_out, dtype=dtype, rngs=rngs)
        self.shortcut = None if c_in == c_out else Dense(c_in, c_out, dtype=dtype, rngs=rngs)
        self.attention = Attention(c_out, heads, context, dtype=dtype, rngs=rngs) if heads else None

    def __call__(self, x: Array, signal: Array, embedded: Embedded, treatment: Treatment = PLAIN) -> Array:
        if treatment.skipped:
            return self._shortcut(x)
        h = self.hidden(nnx.silu(group_norm(x, _groups(x.shape[-1]))))
        scale, shift = jnp.split(self.film(signal), 2, axis=-1)
        h = modulate(group_norm(h, _groups(h.shape[-1])), scale, shift)
        h = self.out(nnx.silu(h)) + self._shortcut(x)
        if self.attention is None:
            return h
        b, height, width, channels = h.shape
        z = group_norm(h, _groups(channels)).reshape(b, height * width, channels)
        mixed = self.attention(z, embedded.sequence, embedded.mask, (height, width), treatment)
        return h + mixed.reshape(h.shape)

    def _shortcut(self, x: Array) -> Array:
        return x if self.shortcut is None else self.shortcut(x)


def _groups(channels: int) -> int:
    """Returns the number of groups: a divisor of ``channels``, at most 32, with at least 4 channels per group."""
    return math.gcd(channels, min(32, max(channels // 4, 1)))


def _downsample(x: Array) -> Array:
    """Averages each 2x2 square: (B, H, W, C) -> (B, H/2, W/2, C)."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def _upsample(x: Array) -> Array:
    """Repeats each pixel four times: (B, H, W, C) -> (B, 2H, 2W, C)."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
