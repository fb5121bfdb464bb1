"""Hashes of arrays, computed on the devices that hold them; checkpoints store them to verify what is read back."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

from flowguide.typing import Array, PyTree


def leaf_hashes(tree: PyTree) -> dict[str, int]:
    """Returns a 32-bit hash of each leaf's bits, dtype and shape, keyed by its path in the tree.

    The hash is Σ mix(bits_i + mix(i)) modulo 2^32, where mix is the finaliser of MurmurHash3, a bijection. One changed
    element always changes the sum; several fail to with probability 2^-32. An integer sum does not depend on its order,
    so the sharding over devices and hosts does not matter. Only the hashes leave the devices.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = jax.device_get([array_hash(leaf) for _, leaf in leaves])  # one transfer for all leaves
    return {
        jax.tree_util.keystr(place): int(total) ^ json_hash([str(leaf.dtype), list(leaf.shape)])
        for (place, leaf), total in zip(leaves, sums, strict=True)
    }


def json_hash(value: Any) -> int:
    """Returns a 32-bit hash of a JSON-serializable value."""
    text = json.dumps(value, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


@jax.jit  # one program per shape: a single program for all leaves of a large network takes minutes to compile
def array_hash(a: Array) -> Array:
    """Returns the hash uint32 () of the bits of one array, the sum in ``leaf_hashes``."""
    if jnp.issubdtype(a.dtype, jnp.bool_):
        a = a.astype(jnp.uint8)
    size = min(a.dtype.itemsize, 4)
    # An 8-byte element becomes two 4-byte ones.
    bits = jax.lax.bitcast_convert_type(a, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
    return jnp.sum(_mix(bits + _mix(_positions(bits.shape))), dtype=jnp.uint32)


def _positions(shape: tuple[int, ...]) -> Array:
    """Returns the index of each element in the flattened array.

    It does not flatten the array: if that is sharded, every device would have to gather all of it.
    """
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return places


def _mix(h: Array) -> Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
