"""Hashes of arrays and JSON: they notice every bit, and do not depend on where an array lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flowguide.hashes import array_hash, json_hash, leaf_hashes

HASHED = {
    "float32": np.linspace(-1, 1, 1000, dtype=np.float32).reshape(10, 100),
    "bfloat16": np.asarray(jnp.linspace(-1, 1, 77, dtype=jnp.bfloat16)),
    "int32": np.arange(50, dtype=np.int32),
    "bool": np.arange(9) % 2 == 0,
    "scalar": np.float32(3.0),
}


@pytest.mark.parametrize("name", HASHED)
def test_hashes_notice_every_bit_and_every_exchange(name):
    a = HASHED[name]
    before = leaf_hashes({"a": jnp.asarray(a)})
    assert list(before) == ["['a']"]
    raw, itemsize = a.tobytes(), a.dtype.itemsize
    for bit in range(0, 8 * len(raw), max(1, len(raw) // 40)):
        if a.dtype == bool and bit % 8:
            continue  # a bool has one bit
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        b = np.frombuffer(bytes(changed), a.dtype).reshape(a.shape)
        assert leaf_hashes({"a": jnp.asarray(b)}) != before
    if a.size > 2:
        flat = a.reshape(-1).copy()
        flat[[0, 1]] = flat[[1, 0]]
        assert leaf_hashes({"a": jnp.asarray(flat.reshape(a.shape))}) != before
        assert leaf_hashes({"a": jnp.asarray(a.reshape(1, *a.shape))}) != before
    assert itemsize


def test_hashes_do_not_depend_on_where_an_array_lies():
    a = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    places = [PartitionSpec(), PartitionSpec("a"), PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b"))]
    found = {leaf_hashes([jax.device_put(a, NamedSharding(mesh, place))])["[0]"] for place in places}
    assert found == {leaf_hashes([jnp.asarray(a)])["[0]"]}
    # Of an array that is split no device sees the whole, only sums travel.
    split = jax.device_put(a, NamedSharding(mesh, places[-1]))
    program = jax.jit(array_hash).lower(split).compile().as_text()
    assert program is not None
    assert "all-gather" not in program
    assert json_hash({"a": 1, "b": [2]}) == json_hash({"b": [2], "a": 1}) != json_hash({"a": 1, "b": [3]})
