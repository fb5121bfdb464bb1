"""Layers that the networks share: dense and convolutional layers, normalisation and its modulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flowguide.typing import Array, PRNGKey, PyTree

zeros = nnx.initializers.zeros_init()


def computing_dtype(name: str) -> jnp.dtype:
    """Returns the dtype in which a network computes.

    Raises:
      ValueError: for any name but "float32" and "bfloat16".
    """
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be 'float32' or 'bfloat16'; got {name!r}")
    return jnp.dtype(name)


def check_sizes(least: int = 1, **sizes: Any) -> None:
    """Raises ``ValueError`` unless all sizes, and the items of those that are sequences, are integers ≥ ``least``."""
    for name, size in sizes.items():
        for n in size if isinstance(size, list | tuple) else (size,):
            if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {n!r}")


def sides_and_channels(shape: Sequence[int], network: str) -> tuple[tuple[int, ...], int]:
    """Returns the spatial sides and the channels of an example: ((T,), C), ((H, W), C) or ((D, H, W), C).

    Raises:
      ValueError: for a shape of other than 1 to 3 spatial axes.
    """
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"{network} takes signals (T, C), images (H, W, C) and volumes (D, H, W, C); got shape {tuple(shape)}: "
            "use mlp, or add or merge axes"
        )
    *sides, channels = shape
    return tuple(sides), channels


def check_among(names: Sequence[str], **settings: str) -> None:
    """Raises ``ValueError`` unless every setting is one of ``names``."""
    for setting, name in settings.items():
        if name not in names:
            raise ValueError(f"{setting} must be one of {', '.join(map(repr, names))}; got {name!r}")


def check_divisible(sides: Sequence[int], divisor: int, needing: str, remedy: str) -> None:
    """Raises ``ValueError`` unless ``divisor`` divides every side; ``needing`` and ``remedy`` complete the message."""
    if any(side % divisor for side in sides):
        raise ValueError(f"{needing} needs sides divisible by {divisor}; got {tuple(sides)}: {remedy}")


def normal(key: PRNGKey, shape: Sequence[int], dtype: Any = jnp.float32, *, std: float = 1.0) -> Array:
    """Draws N(0, std²) as a flat array and reshapes it: XLA:CPU compiles random bits with several axes 5x slower."""
    return std * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def lecun(key: PRNGKey, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Draws N(0, 1/fan-in), which preserves unit variance (LeCun et al. 1998, eq. 16); the last axis is the fan-out."""
    return normal(key, shape, dtype, std=math.prod(shape[:-1]) ** -0.5)


def embedding(key: PRNGKey, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Draws N(0, 1/4), for rows of embedding tables and null tokens."""
    return normal(key, shape, dtype, std=0.5)


class Dense(nnx.Linear):
    """``nnx.Linear`` that reshapes an input (B, N, d) to (B·N, d).

    Without the reshape, XLA:CPU computes the weight gradient through a transposed copy of the cotangent.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        kernel_init: Any = lecun,
        rngs: nnx.Rngs,
    ):
        super().__init__(d_in, d_out, use_bias=use_bias, dtype=dtype, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, inputs: Array, out_sharding: object = None) -> Array:
        rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return rows.reshape(*inputs.shape[:-1], -1)


def conv(axes: int, c_in: int, c_out: int, *, dtype: Any = None, kernel_init: Any = lecun, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a convolution of (B, *sides, C) over ``axes`` sides, which it keeps; its kernel spans 3 along each."""
    return nnx.Conv(c_in, c_out, (3,) * axes, dtype=dtype, kernel_init=kernel_init, rngs=rngs)


def in_blocks(x: Array, size: int) -> Array:
    """Splits each side into blocks: (B, H, W, C) -> (B, H/size, size, W/size, size, C); likewise for other ranks."""
    b, *sides, c = x.shape
    return x.reshape(b, *(n for side in sides for n in (side // size, size)), c)


def gathered(params: PyTree) -> PyTree:
    """Constrains parameters that are sharded over devices (FSDP) to be gathered on each device.

    Layers call it on their parameters right before use. Without the constraint XLA may shard the activations instead,
    which are larger.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return params  # a single device, or the per-device view inside shard_map
    return jax.lax.with_sharding_constraint(params, NamedSharding(mesh, PartitionSpec()))


def layer_norm(x: Array) -> Array:
    """Layer normalisation over the last axis, without affine part (Ba et al. 2016); float32 statistics."""
    z = x.astype(jnp.float32)
    z = z - jnp.mean(z, axis=-1, keepdims=True)
    return (z * jax.lax.rsqrt(jnp.mean(z * z, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / RMS(x) · weight over the last axis (Zhang & Sennrich 2019, eq. 4), ε = 1e-6; float32 statistics."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: Array) -> Array:
        z = x.astype(jnp.float32)
        z = z * jax.lax.rsqrt(jnp.mean(z * z, axis=-1, keepdims=True) + 1e-6)
        return (z * self.scale[...]).astype(x.dtype)


def normalised(x: Array, norm: RMSNorm | None) -> Array:
    """Normalises the last axis with ``norm``, or with ``layer_norm`` if it is None."""
    return layer_norm(x) if norm is None else norm(x)


def group_norm(x: Array, groups: int) -> Array:
    """Group normalisation of (B, *sides, C), without affine part (Wu & He 2018); float32 statistics."""
    b, *sides, c = x.shape
    z = x.astype(jnp.float32).reshape(b, math.prod(sides), c)
    z = z - _mean_of_group(z, groups)
    z = z * jax.lax.rsqrt(_mean_of_group(z * z, groups) + 1e-6)
    return z.reshape(x.shape).astype(x.dtype)


def _mean_of_group(z: Array, groups: int) -> Array:
    """Returns the mean over the places and the channels of each group: (B, T, C) -> (B, 1, C).

    It first takes the mean of each channel. XLA:CPU needs up to three times as long over both axes at once.
    """
    b, _, c = z.shape
    each = jnp.mean(z, axis=1).reshape(b, groups, c // groups)
    return jnp.broadcast_to(jnp.mean(each, axis=-1, keepdims=True), each.shape).reshape(b, 1, c)


def modulate(x: Array, scale: Array, shift: Array) -> Array:
    """Returns x·(1 + scale) + shift (FiLM, Perez et al. 2018): x (B, ..., d), scale and shift (B, d)."""
    over = (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],)
    return x * (1 + scale.reshape(over)) + shift.reshape(over)
