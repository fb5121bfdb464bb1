"""Data parallelism: the one file that says pmap.

State is one replicated tree of global arrays without a device axis, so that checkpoints and sampling need not know how
training was spread. JAX implements pmap as jit of shard_map and keeps it in maintenance mode: should it go, only this
file changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowguide.typing import Device, PyTree

AXIS = "data"


def data_parallel(
    step_with: Callable[[Callable[[PyTree], PyTree]], Callable], devices: Sequence[Device], donate: bool = True
) -> Callable:
    """A function of (replicated tree, batch, a replicated tree to be read only) over ``devices``; outputs replicated.

    The last may be left out, and is then None.

    Args:
      step_with: given the mean over devices, the function of one device's share of the batch. All its outputs must be
        the same on every device; ``replicas_agree`` checks that they are.
      devices: where it runs. The leading axis of the batch must be a multiple of their number.
      donate: give the memory of the first argument to the outputs; the caller must not use it again.
    """
    mean = partial(jax.lax.pmean, axis_name=AXIS)
    parallel = jax.pmap(
        step_with(mean),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
        devices=devices,
    )
    count = len(devices)

    def run(tree: PyTree, batch: PyTree, fixed: PyTree = None) -> PyTree:
        split = jax.tree.map(lambda a: a.reshape(count, a.shape[0] // count, *a.shape[1:]), batch)
        return parallel(tree, split, fixed)

    return run


def replicate(tree: PyTree, devices: Sequence[Device]) -> PyTree:
    """``tree`` on every device, laid out as ``data_parallel`` returns it; it may take the memory of ``tree``."""
    return jax.device_put(tree, NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec()))


def replicas_agree(tree: PyTree) -> bool:
    """Whether every device holds the same bits of a replicated tree."""

    def agree(a: jax.Array) -> bool:
        first, *others = (np.asarray(shard.data).tobytes() for shard in a.addressable_shards)
        return all(other == first for other in others)

    return all(agree(a) for a in jax.tree.leaves(tree))
