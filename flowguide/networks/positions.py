"""Positions of the tokens of a grid: tables to add to the tokens, and rotations of queries and keys."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from flowguide.typing import Array


def sincos_positions(grid: tuple[int, ...], size: int) -> Array:
    """Returns sinusoidal positions of the tokens of a row-major grid, float32 (T, size).

    Each of the n axes has size/2n frequencies, 10000^(-2n·i/size): the encoding of Vaswani et al. 2017, §3.5, per axis,
    as in Peebles & Xie 2023. All sines come first, then all cosines; both are ordered by axis.

    Args:
      grid: number of tokens along each axis; T is their product.
      size: a multiple of 2n.
    """
    angles = np.concatenate(_angles(grid, size // (2 * len(grid))), axis=-1)
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)


def dit_positions(grid: tuple[int, ...], size: int) -> Array:
    """Returns the numbers of ``sincos_positions`` in the order of released networks, float32 (T, size).

    The sines and then the cosines of the last axis come first, those of the first axis last: [sin col, cos col, sin
    row, cos row], as in the code of MAE (He et al. 2022) and DiT (Peebles & Xie 2023).
    """
    angles = _angles(grid, size // (2 * len(grid)))
    return jnp.asarray(np.concatenate([f(a) for a in angles[::-1] for f in (np.sin, np.cos)], axis=-1), jnp.float32)


TABLES = {"sincos": sincos_positions, "dit": dit_positions}


def rotated(x: Array, grid: tuple[int, ...]) -> Array:
    """Rotates queries or keys by the places of their tokens in a row-major grid (RoPE, Su et al. 2021, eq. 15).

    The head is split evenly over the n axes, the first part by the place along the first axis. Within a part of size d,
    the pair (2i, 2i + 1) turns by place · 10000^(-2i/d).

    Args:
      x: (B, T, heads, H), H a multiple of 2n.
      grid: number of tokens along each axis; T is their product.
    """
    angles = np.concatenate(_angles(grid, x.shape[-1] // (2 * len(grid))), axis=-1)[:, None]
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _angles(grid: tuple[int, ...], count: int) -> list[np.ndarray]:
    """Returns for each axis the place of every token times ``count`` frequencies, 10000^(-i/count): (T, count)."""
    frequency = 10_000.0 ** (-np.arange(count) / count)
    return [place.reshape(-1, 1) * frequency for place in np.indices(grid)]
