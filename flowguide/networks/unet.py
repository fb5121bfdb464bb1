"""A U-Net (Ronneberger et al. 2015), in the residual form of Ho et al. 2020 and Dhariwal & Nichol 2021.

One code serves signals, images and volumes: convolutions, down- and upsampling treat all spatial axes alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.attention import Attention, CrossAttention
from flowguide.networks.embed import (
    ConditionEmbedding,
    Embedded,
    TimeEmbedding,
    channels_beside,
    concatenated,
    has_sequence,
)
from flowguide.networks.layers import (
    Dense,
    check_among,
    check_divisible,
    check_sizes,
    computing_dtype,
    conv,
    group_norm,
    in_blocks,
    modulate,
    sides_and_channels,
    zeros,
)
from flowguide.networks.perturbation import PLAIN, UNPERTURBED, Perturbation, Treatment, treatments
from flowguide.schema import Fields
from flowguide.typing import Array

RESAMPLINGS = ("mean", "residual")
CONTEXTS = ("keys", "cross")


class UNet(nnx.Module):
    """u(t, x, c) for signals x (B, T, C), images (B, H, W, C) and volumes (B, D, H, W, C)."""

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
        head_channels: int = 0,
        resampling: str = "mean",
        context: str = "keys",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Builds the network; at initialisation the velocity is 0.

        Args:
          shape: (T, C), (H, W, C) or (D, H, W, C) of one example.
          fields: fields of the condition; may be empty.
          width: channels of the first level; the embeddings are four times as wide.
          multipliers: channels of each level over ``width``; each further level halves every side.
          blocks: residual blocks per level on the way down (one more on the way up).
          attention: levels whose blocks have attention, each named by its first side (T, H or D), e.g. ``(8,)``.
          heads: number of attention heads.
          head_channels: channels of a head, instead of ``heads``: ADM (Dhariwal & Nichol 2021) has 64; 0 for ``heads``.
          resampling: how sides are halved and doubled: "mean" averages, and repeats before a convolution; "residual"
            is a residual block that does either within (BigGAN, Brock et al. 2019; ADM).
          context: how words and series enter a block with attention: "keys" adds keys and values to self-attention;
            "cross" attends to them after it.
          dtype: dtype of the computation, "float32" or "bfloat16"; parameters and output are float32.
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if the examples have no spatial axis or more than 3, a size is not positive, a side cannot be
            halved often enough, an entry of ``attention`` matches no level, its channels cannot be split into heads,
            there are token fields but no attention, or ``context`` is set but there are no token fields.
        """
        sides, channels = sides_and_channels(shape, "unet")
        check_sizes(width=width, multipliers=multipliers, blocks=blocks, attention=attention, heads=heads)
        check_sizes(0, head_channels=head_channels)
        check_among(RESAMPLINGS, resampling=resampling)
        check_among(CONTEXTS, context=context)
        if not multipliers:
            raise ValueError("a U-Net has a level for each multiplier; got multipliers=(): give at least one")
        axes, levels = len(sides), len(multipliers)
        remedy = "give fewer multipliers, or pad the examples"
        check_divisible(sides, 2 ** (levels - 1), f"unet with {levels} levels", remedy)
        first_sides = [sides[0] >> level for level in range(levels)]
        if has_sequence(fields) and not attention:
            raise ValueError(f"token fields are read by attention; got attention=(): choose from {first_sides}")
        if not set(attention) <= set(first_sides):
            raise ValueError(f"attention must name first sides of levels, among {first_sides}; got {tuple(attention)}")
        if context != "keys" and not has_sequence(fields):
            raise ValueError(
                f"context={context!r} is how words or a series enter, and the condition has neither: add such a field, "
                "or leave context at 'keys'"
            )
        self.dtype = computing_dtype(dtype)
        embedding = 4 * width
        self.time = TimeEmbedding(embedding, rngs=rngs)
        self.condition = ConditionEmbedding(fields, embedding, rngs=rngs)
        words = embedding if has_sequence(fields) else None

        def stage(c_in: int, c_out: int, first_side: int) -> Stage:
            inner = _heads(c_out, heads, head_channels) if first_side in attention else 0
            cross = context == "cross"
            return Stage(axes, c_in, c_out, embedding, inner, words, cross=cross, dtype=self.dtype, rngs=rngs)

        def resampled(channels: int, resize: Callable[[Array], Array]) -> Stage:
            return Stage(axes, channels, channels, embedding, 0, None, resize=resize, dtype=self.dtype, rngs=rngs)

        widths = [width * m for m in multipliers]
        self.skip = Dense(embedding, 1, kernel_init=zeros, rngs=rngs)
        self.inlet = conv(axes, channels + channels_beside(fields, axes), width, dtype=self.dtype, rngs=rngs)
        down, skips, c = [], [width], width
        for level, (c_out, side) in enumerate(zip(widths, first_sides, strict=True)):
            stages = []
            for _ in range(blocks):
                stages.append(stage(c, c_out, side))
                skips.append(c := c_out)
            if level < levels - 1:
                skips.append(c)
            down.append(stages)
        self.down = nnx.data(down)
        self.middle = nnx.data([stage(c, c, first_sides[-1]) for _ in range(2)])
        up = []
        for c_out, side in zip(widths[::-1], first_sides[::-1], strict=True):
            stages = []
            for _ in range(blocks + 1):
                stages.append(stage(c + skips.pop(), c_out, side))
                c = c_out
            up.append(stages)
        self.up = nnx.data(up)
        self.residual = resampling == "residual"
        if self.residual:
            self.resize_down = nnx.data([resampled(c, _downsample) for c in widths[:-1]])
            self.resize_up = nnx.data([resampled(c, _upsample) for c in widths[:0:-1]])
        else:
            self.resize_up = nnx.data([conv(axes, c, c, dtype=self.dtype, rngs=rngs) for c in widths[:0:-1]])
        self.outlet = conv(axes, c, channels, kernel_init=zeros, rngs=rngs)

    @property
    def attends(self) -> tuple[bool, ...]:
        """For each block, in the order down, middle, up: whether it has attention."""
        stages = (stage for part in (*self.down, self.middle, *self.up) for stage in part)
        return tuple(stage.attention is not None for stage in stages)

    def __call__(self, t: Array, x: Array, c: Condition, perturbation: Perturbation = UNPERTURBED) -> Array:
        """t (B,), x (B, *sides, C), c of batch B -> float32 (B, *sides, C).

        A skipped block applies only its shortcut: the identity, or a learned projection if the channels change. The
        blocks that resample are not counted among the blocks, and no perturbation reaches them.
        """
        embedded = self.condition(c, x.shape[0])
        time = self.time(t)
        signal = nnx.silu(time + embedded.vector).astype(self.dtype)
        h = self.inlet(concatenated(x, embedded).astype(self.dtype))
        plan = iter(treatments(perturbation, self.attends))
        skips = [h]
        for level, stages in enumerate(self.down):
            if level:
                h = self.resize_down[level - 1](h, signal, embedded) if self.residual else _downsample(h)
                skips.append(h)
            for stage in stages:
                h = stage(h, signal, embedded, next(plan))
                skips.append(h)
        for stage in self.middle:
            h = stage(h, signal, embedded, next(plan))
        for level, stages in enumerate(self.up):
            if level:
                resize: Any = self.resize_up[level - 1]
                h = resize(h, signal, embedded) if self.residual else resize(_upsample(h))
            for stage in stages:
                h = stage(jnp.concatenate([h, skips.pop()], axis=-1), signal, embedded, next(plan))
        h = nnx.silu(group_norm(h, _groups(h.shape[-1])))
        # The velocity has a component along x whose scale depends on t alone; it bypasses the layers.
        scale = jnp.expand_dims(self.skip(nnx.silu(time)), range(1, x.ndim - 1))
        return scale * x + self.outlet(h.astype(jnp.float32))


class Stage(nnx.Module):
    """A residual block with scale-shift conditioning, then attention if ``heads`` is positive.

    With ``resize``, the block resamples before its first convolution and in its shortcut. With ``cross``, the
    conditioning sequence gets a cross-attention of its own after self-attention.
    """

    def __init__(
        self,
        axes: int,
        c_in: int,
        c_out: int,
        embedding: int,
        heads: int,
        context: int | None,
        *,
        resize: Callable[[Array], Array] | None = None,
        cross: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.resize = resize
        self.hidden = conv(axes, c_in, c_out, dtype=dtype, rngs=rngs)
        self.film = Dense(embedding, 2 * c_out, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.out = conv(axes, c_out, c_out, dtype=dtype, rngs=rngs)
        self.shortcut = None if c_in == c_out else Dense(c_in, c_out, dtype=dtype, rngs=rngs)
        keys, words = (None, context) if cross else (context, None)
        self.attention = Attention(c_out, heads, keys, dtype=dtype, rngs=rngs) if heads else None
        self.cross = (
            CrossAttention(c_out, heads, words, dtype=dtype, rngs=rngs) if heads and words is not None else None
        )

    def __call__(self, x: Array, signal: Array, embedded: Embedded, treatment: Treatment = PLAIN) -> Array:
        if treatment.skipped:
            return self._shortcut(x)
        h = self.hidden(self._resized(nnx.silu(group_norm(x, _groups(x.shape[-1])))))
        scale, shift = jnp.split(self.film(signal), 2, axis=-1)
        h = modulate(group_norm(h, _groups(h.shape[-1])), scale, shift)
        h = self.out(nnx.silu(h)) + self._shortcut(x)
        if self.attention is None:
            return h
        b, *grid, channels = h.shape
        z = group_norm(h, _groups(channels)).reshape(b, math.prod(grid), channels)
        mixed = self.attention(z, embedded.sequence, embedded.mask, tuple(grid), treatment)
        h = h + mixed.reshape(h.shape)
        if self.cross is None or embedded.sequence is None or embedded.mask is None:
            return h
        z = group_norm(h, _groups(channels)).reshape(z.shape)
        return h + self.cross(z, embedded.sequence, embedded.mask).reshape(h.shape)

    def _shortcut(self, x: Array) -> Array:
        x = self._resized(x)
        return x if self.shortcut is None else self.shortcut(x)

    def _resized(self, x: Array) -> Array:
        return x if self.resize is None else self.resize(x)


def _heads(channels: int, heads: int, head_channels: int) -> int:
    """Returns the number of heads: ``heads``, or as many as have ``head_channels`` channels.

    Raises:
      ValueError: if they do not divide the channels.
    """
    if head_channels and channels % head_channels:
        raise ValueError(
            f"head_channels must divide the channels of attention; got {channels} channels and head_channels="
            f"{head_channels}: change width or multipliers"
        )
    return channels // head_channels if head_channels else heads


def _groups(channels: int) -> int:
    """Returns the number of groups: a divisor of ``channels``, at most 32, with at least 4 channels per group."""
    return math.gcd(channels, min(32, max(channels // 4, 1)))


def _downsample(x: Array) -> Array:
    """Averages blocks of side 2 and so halves every side: (B, H, W, C) -> (B, H/2, W/2, C)."""
    return in_blocks(x, 2).mean(axis=_within_blocks(x))


def _upsample(x: Array) -> Array:
    """Repeats each value over a block of side 2 and so doubles every side: (B, H, W, C) -> (B, 2H, 2W, C)."""
    b, *sides, c = x.shape
    blocks = jnp.expand_dims(x, _within_blocks(x))
    blocks = jnp.broadcast_to(blocks, (b, *(n for side in sides for n in (side, 2)), c))
    return blocks.reshape(b, *(2 * side for side in sides), c)


def _within_blocks(x: Array) -> tuple[int, ...]:
    """Returns the axes of ``in_blocks(x, size)`` that run within a block: 2, 4, ..."""
    return tuple(range(2, 2 * (x.ndim - 1), 2))
