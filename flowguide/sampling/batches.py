"""Draws in batches, spread over devices and processes. Each draw has its own key, so that batches change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from flowguide import processes
from flowguide.errors import UserError, shown
from flowguide.sampling.request import SampleRequest
from flowguide.typing import Array, Device, PRNGKey, PyTree

# params, keys (and whatever else each draw has of its own), request -> what is drawn
Draw: TypeAlias = Callable[[PyTree, PyTree, SampleRequest], PyTree]

_EACH, _SAME = PartitionSpec("data"), PartitionSpec()
# Of a request, everything but the weights has one entry a draw.
_REQUEST = SampleRequest(_EACH, _EACH, _EACH, _EACH, _SAME, _SAME, _EACH)  # pyright: ignore[reportArgumentType]


class Devices(NamedTuple):
    """Devices in a row, and the shardings of arrays that are split among them or whole on each."""

    mesh: jax.sharding.Mesh
    split: NamedSharding
    whole: NamedSharding


def in_a_row(devices: Sequence[Device] | None) -> Devices:
    """Returns the given devices, or all of them, those of other processes too."""
    given = devices if isinstance(devices, list | tuple) else () if devices is None else (devices,)
    if not all(isinstance(device, jax.Device) for device in given):
        raise UserError(f"devices takes some of jax.devices(); got {shown(devices)}")
    mesh = jax.sharding.Mesh(np.asarray(devices or jax.devices()), ("data",))
    return Devices(mesh, NamedSharding(mesh, _EACH), NamedSharding(mesh, _SAME))


def batches(
    request: SampleRequest,
    num: int,
    size: int,
    seed: int,
    over: Devices,
    *,
    x: Any = None,
    progress: bool = False,
    samples_each: int = 1,
    first: int = 0,
) -> Iterator[tuple[int, PyTree, SampleRequest]]:
    """Yields ``num`` draws in batches: how many of the batch count, a key for each draw, and its part of the request.

    All batches have the same size, so that they share one program; the last repeats its final draw to fill up. With
    ``x``, ``(num, ...)``, each key comes in a pair with its row of x. ``samples_each`` is the number of samples a draw
    makes, for the progress bar. The first draw has the number ``first``, from which its key follows.
    """
    devices = over.mesh.size
    size = -(-min(size, num) // devices) * devices
    root = np.asarray(jax.random.key_data(jax.random.key(seed)))
    each = request._replace(gamma_negative=None, weights=None)
    with tqdm(total=num * samples_each, disable=not progress, unit="sample", dynamic_ncols=True) as bar:
        for start in range(0, num, size):
            index = np.minimum(np.arange(start, start + size), num - 1)
            part = processes.put(jax.tree.map(lambda a, index=index: np.asarray(a)[index], each), over.split)
            part = part._replace(gamma_negative=request.gamma_negative, weights=request.weights)
            kept = min(size, num - start)
            keys = _keys(root, processes.put(first + index, over.split))
            yield kept, keys if x is None else (keys, processes.put(x[index], over.split)), part
            bar.update(kept * samples_each)


def spread(draw: Draw, mesh: jax.sharding.Mesh) -> Draw:
    """Jits a function of (params, keys, request) so that each device draws its share without talking to others."""
    specs = (_SAME, _EACH, _REQUEST)
    return jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=specs, out_specs=_EACH, check_vma=False))


@jax.jit
def _keys(root: Array, index: Array) -> PRNGKey:
    return jax.vmap(partial(jax.random.fold_in, jax.random.wrap_key_data(root)))(index)
