"""The variational autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), as Stable Diffusion has it.

Attributes are called as in diffusers' ``AutoencoderKL``: the path of a parameter is its key in a released file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.attention import attend
from flowguide.networks.layers import check_divisible, check_sizes, computing_dtype, group_norm, lecun, zeros
from flowguide.schema import Fields
from flowguide.typing import Array, PRNGKey

LOG_VARIANCES = (-30.0, 20.0)  # to which the encoder's are clipped


class Posterior(NamedTuple):
    """The law of the latents of images, a Gaussian in each number.

    Attributes:
      mean: ``(B, h, w, C)``, JAX or NumPy.
      log_variance: of the same shape.
    """

    mean: Any
    log_variance: Any

    def draw(self, noise: Any) -> Array:
        """Returns mean + std·noise."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise


class Reconstruction(NamedTuple):
    """Images after encoder and decoder ``(B, H, W, channels)``, and the posterior of their latents."""

    x: Array
    posterior: Posterior


class AutoencoderKL(nnx.Module):
    """Encoder and decoder of images (B, H, W, channels), float32 in [-1, 1]; latents (B, h, w, C) are unscaled."""

    def __init__(
        self,
        shape: Sequence[int],
        fields: Fields,
        *,
        widths: Sequence[int] = (128, 256, 512, 512),
        blocks: int = 2,
        latent: int = 4,
        groups: int = 32,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Builds the network; the defaults are Stable Diffusion's.

        Args:
          shape: (H, W, channels) of an image.
          fields: of the condition, which it does not see.
          widths: channels of each level; each further level halves both sides.
          blocks: residual blocks of each level in the encoder, one more in the decoder.
          latent: C, the channels of the latents.
          groups: of the group normalisation; they divide all widths.
          dtype: dtype of the computation, "float32" or "bfloat16"; parameters and output are float32.
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if examples are no images, a size is not positive, a side cannot be halved often enough, or
            ``groups`` do not divide the widths.
        """
        check_sizes(widths=widths, blocks=blocks, latent=latent, groups=groups)
        if len(shape) != 3:
            raise ValueError(f"autoencoder takes images (H, W, C); got shape {tuple(shape)}")
        if not widths or any(width % groups for width in widths):
            raise ValueError(f"groups must divide the widths of the levels; got groups={groups}, widths={widths}")
        factor = 2 ** (len(widths) - 1)
        check_divisible(shape[:-1], factor, f"autoencoder with {len(widths)} widths", "resize the images")
        self.grid = (shape[0] // factor, shape[1] // factor, latent)
        self.dtype = computing_dtype(dtype)
        same: dict[str, Any] = {"groups": groups, "dtype": self.dtype, "rngs": rngs}
        self.encoder = Encoder(shape[-1], tuple(widths), blocks, 2 * latent, **same)
        self.decoder = Decoder(latent, tuple(widths), blocks + 1, shape[-1], **same)
        self.quant_conv = _conv(2 * latent, 2 * latent, 1, dtype=self.dtype, rngs=rngs)
        self.post_quant_conv = _conv(latent, latent, 1, dtype=self.dtype, rngs=rngs)

    def encode(self, x: Array) -> Posterior:
        """Images (B, H, W, channels), H and W divisible by the factor -> the law of their latents, float32."""
        moments = self.quant_conv(self.encoder(x.astype(self.dtype))).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, *LOG_VARIANCES))

    def decode(self, z: Array) -> Array:
        """Latents (B, h, w, C) -> images float32 (B, H, W, channels), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z.astype(self.dtype))).astype(jnp.float32)

    def __call__(self, keys: PRNGKey, x: Array, c: Condition | None = None) -> Reconstruction:
        """Keys (B,) of the draws from the posterior, images (B, H, W, channels) -> their reconstruction. Ignores c."""
        posterior = self.encode(x)
        noise = jax.vmap(lambda key: jax.random.normal(key, self.grid))(keys)
        return Reconstruction(self.decode(posterior.draw(noise)), posterior)


class Encoder(nnx.Module):
    """Images -> moments of the latents, before ``quant_conv``."""

    def __init__(self, c_in: int, widths: tuple[int, ...], blocks: int, c_out: int, **same: Any):
        self.conv_in = _conv(c_in, widths[0], 3, dtype=same["dtype"], rngs=same["rngs"])
        levels = list(zip((widths[0], *widths), widths, strict=False))
        self.down_blocks = nnx.data(
            [DownBlock(a, b, blocks, level < len(widths) - 1, **same) for level, (a, b) in enumerate(levels)]
        )
        self.mid_block = MidBlock(widths[-1], **same)
        self.conv_norm_out = Norm(widths[-1], same["groups"])
        self.conv_out = _conv(widths[-1], c_out, 3, dtype=same["dtype"], rngs=same["rngs"])

    def __call__(self, x: Array) -> Array:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nnx.Module):
    """Latents, after ``post_quant_conv``, -> images."""

    def __init__(self, c_in: int, widths: tuple[int, ...], blocks: int, c_out: int, **same: Any):
        widths = widths[::-1]
        self.conv_in = _conv(c_in, widths[0], 3, dtype=same["dtype"], rngs=same["rngs"])
        self.mid_block = MidBlock(widths[0], **same)
        levels = list(zip((widths[0], *widths), widths, strict=False))
        self.up_blocks = nnx.data(
            [UpBlock(a, b, blocks, level < len(widths) - 1, **same) for level, (a, b) in enumerate(levels)]
        )
        self.conv_norm_out = Norm(widths[-1], same["groups"])
        self.conv_out = _conv(widths[-1], c_out, 3, dtype=same["dtype"], rngs=same["rngs"])

    def __call__(self, z: Array) -> Array:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(nnx.silu(self.conv_norm_out(h)))


class DownBlock(nnx.Module):
    """Residual blocks, then a convolution of stride 2 if ``halves``."""

    def __init__(self, c_in: int, c_out: int, blocks: int, halves: bool, **same: Any):
        self.resnets = nnx.data([Resnet(c_out if i else c_in, c_out, **same) for i in range(blocks)])
        self.downsamplers = nnx.data([Downsample(c_out, dtype=same["dtype"], rngs=same["rngs"])] if halves else [])

    def __call__(self, x: Array) -> Array:
        for block in (*self.resnets, *self.downsamplers):
            x = block(x)
        return x


class UpBlock(nnx.Module):
    """Residual blocks, then both sides doubled if ``doubles``."""

    def __init__(self, c_in: int, c_out: int, blocks: int, doubles: bool, **same: Any):
        self.resnets = nnx.data([Resnet(c_out if i else c_in, c_out, **same) for i in range(blocks)])
        self.upsamplers = nnx.data([Upsample(c_out, dtype=same["dtype"], rngs=same["rngs"])] if doubles else [])

    def __call__(self, x: Array) -> Array:
        for block in (*self.resnets, *self.upsamplers):
            x = block(x)
        return x


class MidBlock(nnx.Module):
    """Residual block, attention over all places, residual block."""

    def __init__(self, width: int, **same: Any):
        self.resnets = nnx.data([Resnet(width, width, **same) for _ in range(2)])
        self.attentions = nnx.data([SpatialAttention(width, **same)])

    def __call__(self, x: Array) -> Array:
        first, second = self.resnets
        return second(self.attentions[0](first(x)))


class Resnet(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); x is projected if the channels change."""

    def __init__(self, c_in: int, c_out: int, *, groups: int, dtype: Any, rngs: nnx.Rngs):
        self.norm1 = Norm(c_in, groups)
        self.conv1 = _conv(c_in, c_out, 3, dtype=dtype, rngs=rngs)
        self.norm2 = Norm(c_out, groups)
        self.conv2 = _conv(c_out, c_out, 3, dtype=dtype, kernel_init=zeros, rngs=rngs)
        self.conv_shortcut = None if c_in == c_out else _conv(c_in, c_out, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialAttention(nnx.Module):
    """x + attention of all places over all places, with one head."""

    def __init__(self, width: int, *, groups: int, dtype: Any, rngs: nnx.Rngs):
        def linear(kernel_init: Any = lecun) -> nnx.Linear:
            return nnx.Linear(width, width, dtype=dtype, kernel_init=kernel_init, rngs=rngs)

        self.group_norm = Norm(width, groups)
        self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
        self.to_out = nnx.data([linear(zeros)])

    def __call__(self, x: Array) -> Array:
        b, *grid, width = x.shape
        tokens = self.group_norm(x).reshape(b, math.prod(grid), 1, width)
        mixed = attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](mixed).reshape(x.shape)


class Downsample(nnx.Module):
    """A convolution of stride 2, padded only below and to the right."""

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = _conv(width, width, 3, dtype=dtype, strides=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.conv(x)


class Upsample(nnx.Module):
    """Each value repeated over a block of side 2, then a convolution."""

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = _conv(width, width, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        blocks = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
        return self.conv(blocks.reshape(b, 2 * h, 2 * w, c))


class Norm(nnx.Module):
    """Group normalisation with an affine part (Wu & He 2018), ε = 1e-6; float32 statistics."""

    def __init__(self, width: int, groups: int):
        self.groups = groups
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array) -> Array:
        z = group_norm(x.astype(jnp.float32), self.groups)
        return (z * self.scale[...] + self.bias[...]).astype(x.dtype)


def _conv(
    c_in: int,
    c_out: int,
    size: int,
    *,
    dtype: Any,
    rngs: nnx.Rngs,
    kernel_init: Any = lecun,
    strides: int = 1,
    padding: Any = "SAME",
) -> nnx.Conv:
    """Returns a convolution of images whose kernel has this side."""
    return nnx.Conv(
        c_in, c_out, (size, size), strides, padding=padding, dtype=dtype, kernel_init=kernel_init, rngs=rngs
    )
