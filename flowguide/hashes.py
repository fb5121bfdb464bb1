"""Hashes of arrays, computed where the arrays are: what a checkpoint is compared with when it is read back."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

from flowguide.typing import Array, PyTree


def leaf_hashes(tree: PyTree) -> dict[str, int]:
    """A 32-bit hash of the bits of each leaf, by its place in the tree; dtype and shape are part of it.

    Σ mix(bits_i + mix(i)) modulo 2^32, with the finaliser of MurmurHash3 as mix, a bijection: any one changed element
    changes the sum, several do but for one case in 2^32. Sums of integers do not depend on their order, so neither on
    how the leaf is spread over devices or hosts; nothing but the hashes leaves the devices.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = jax.device_get([array_hash(leaf) for _, leaf in leaves])  # all at once
    return {
        jax.tree_util.keystr(place): int(total) ^ json_hash([str(leaf.dtype), list(leaf.shape)])
        for (place, leaf), total in zip(leaves, sums, strict=True)
    }


def json_hash(value: Any) -> int:
    """A 32-bit hash of what can be written as JSON."""
    text = json.dumps(value, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


@jax.jit  # for each shape: one program for all leaves of a large network takes minutes to compile
def array_hash(a: Array) -> Array:
    """The hash uint32 () of the bits of one array: the sum that ``leaf_hashes`` tells of."""
    if jnp.issubdtype(a.dtype, jnp.bool_):
        a = a.astype(jnp.uint8)
    size = min(a.dtype.itemsize, 4)
    # An element of eight bytes becomes two of four.
    bits = jax.lax.bitcast_convert_type(a, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
    return jnp.sum(_mix(bits + _mix(_positions(bits.shape))), dtype=jnp.uint32)


def _positions(shape: tuple[int, ...]) -> Array:
    """The place of each element in the flattened array. Not by flattening it: of one that is split, every device would
    need the whole."""
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return places


def _mix(h: Array) -> Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
