"""How training lies over devices, and over processes: the one file that says pmap, shard_map and FSDP.

Arrays are global and have no device axis, so that checkpoints, the moving average and sampling need not know how a run
was spread. Whatever the layout, an update is the same up to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowguide import processes
from flowguide.errors import UserError
from flowguide.hashes import array_hash
from flowguide.typing import Array, Device, PyTree

# Given the mean over all shares of the batch, the function of a share: (tree, batch, a tree to be read only) -> trees.
StepWith: TypeAlias = Callable[[Callable[[PyTree], PyTree]], Callable]

DATA, FSDP = "data", "fsdp"


class Layout(NamedTuple):
    """How a run lies over devices.

    Attributes:
      mesh: of all devices, those of all processes; every axis of it takes part in splitting the batch.
      shardings: a tree of arrays, concrete or abstract -> the sharding of each leaf.
      program: (step_with, donate) -> the jitted function of (tree, batch, a tree to be read only), all laid out. Its
        outputs are laid out by ``shardings``, so that they can be its next input; ``donate`` gives them the memory of
        the first argument, which the caller must then not use again.
      batch: this process's share of the batch, arrays of NumPy, or the shape and type of the whole -> as ``program``
        takes it.
      shares: into how many shares a program of the global batch splits it itself; 1 where each device sees its own.
    """

    mesh: Mesh
    shardings: Callable[[PyTree], PyTree]
    program: Callable[[StepWith, bool], Callable]
    batch: Callable[[PyTree], PyTree]
    shares: int = 1


def data_parallel(devices: Sequence[Device]) -> Layout:
    """The whole state on every device, each with its share of the batch; gradients are averaged.

    With the devices of one process this is ``jax.pmap``. It takes none of the global arrays that several processes
    have, so with these it is jit of shard_map, which pmap is made of: the bits are the same.
    """
    mesh = Mesh(np.asarray(devices), (DATA,))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA))
    mean = partial(jax.lax.pmean, axis_name=DATA)
    alone = _of_one_process(devices)

    def program(step_with: StepWith, donate: bool) -> Callable:
        given = (0,) if donate else ()
        if alone:
            return jax.pmap(
                step_with(mean), DATA, in_axes=(None, 0, None), out_axes=None, donate_argnums=given, devices=devices
            )
        each, same = PartitionSpec(DATA), PartitionSpec()
        spread = jax.shard_map(step_with(mean), mesh=mesh, in_specs=(same, each, same), out_specs=same, check_vma=False)
        return jax.jit(spread, donate_argnums=given)

    def by_device(a: Any) -> Any:
        shape = (len(devices), a.shape[0] // len(devices), *a.shape[1:])
        return jax.ShapeDtypeStruct(shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a.reshape(shape)

    return Layout(
        mesh,
        lambda tree: jax.tree.map(lambda a: whole, tree),
        program,
        partial(jax.tree.map, by_device if alone else partial(_cut, split)),
    )


def fsdp(
    devices: Sequence[Device],
    shards: int = 0,
    min_size: int = 2**14,
    overrides: Sequence[tuple[str, int | None]] = (),
) -> Layout:
    """Parameters, their average and the optimiser's state are split among devices too ("fully sharded", ZeRO-3).

    The same step, jitted over a mesh (data, fsdp): XLA gathers a layer's parameters where they are used, and scatters
    their gradient (Rajbhandari et al. 2020, §5; Xu et al. 2020). A leaf is split along its largest axis that the shards
    divide; of equal ones, the last.

    Args:
      devices: all of them, those of other processes too.
      shards: into how many parts a leaf is split; each part is on ``len(devices) / shards`` devices. 0 for all devices.
      min_size: leaves of fewer elements are whole on every device.
      overrides: (regular expression, axis, or None to stay whole) for leaves in whose place, such as
        ``.params/blocks/film/kernel``, it is found. The first that fits counts.

    Raises:
      ValueError: if the shards do not divide the devices, or an override names an axis that cannot be split.
    """
    shards = shards or len(devices)
    if shards < 1 or len(devices) % shards:
        raise ValueError(f"shards must divide the number of devices, {len(devices)}; got {shards}")
    mesh = _mesh((len(devices) // shards, shards), devices)
    split = NamedSharding(mesh, PartitionSpec((DATA, FSDP)))

    def sharding(place: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(place, simple=True, separator="/")
        axis = split_axis(name, leaf.shape, shards, min_size, overrides)
        return NamedSharding(mesh, PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, FSDP))

    def shardings(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(sharding, tree)

    def program(step_with: StepWith, donate: bool) -> Callable:
        step = step_with(lambda tree: tree)  # a mean over the global batch is global already

        def laid_out(tree: PyTree, batch: PyTree, fixed: PyTree = None) -> PyTree:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                out = step(tree, batch, fixed)
            return jax.lax.with_sharding_constraint(out, shardings(out))

        return jax.jit(laid_out, donate_argnums=(0,) if donate else ())

    return Layout(mesh, shardings, program, partial(jax.tree.map, partial(_cut, split)), len(devices))


LAYOUTS: dict[str, Callable[..., Layout]] = {"data_parallel": data_parallel, "fsdp": fsdp}


def split_axis(
    place: str, shape: Sequence[int], shards: int, min_size: int, overrides: Sequence[tuple[str, int | None]] = ()
) -> int | None:
    """The axis along which ``fsdp`` splits a leaf, or None; its arguments are those of ``fsdp``.

    Raises:
      UserError: if an override names an axis that cannot be split.
    """
    for pattern, axis in overrides:
        if re.search(pattern, place):
            if axis is not None and not (0 <= axis < len(shape) and shape[axis] % shards == 0):
                raise UserError(f"axis {axis} of {place} {tuple(shape)} cannot be split into {shards} (by {pattern!r})")
            return axis
    if shards == 1 or np.prod(shape) < min_size:
        return None
    fitting = [i for i, size in enumerate(shape) if size % shards == 0]
    return max(fitting, key=lambda i: (shape[i], i)) if fitting else None


def parallelize(layout: Layout, step_with: StepWith, donate: bool = True) -> Callable:
    """A function of (tree, this process's share of the batch, a tree to be read only or nothing)."""
    program = layout.program(step_with, donate)
    return lambda tree, batch, fixed=None: program(tree, layout.batch(batch), fixed)


def abstract(tree: PyTree, layout: Layout) -> PyTree:
    """The shapes and types of a tree, and where its leaves are to lie."""
    return jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree, layout.shardings(tree)
    )


def lay_out(tree: PyTree, layout: Layout) -> PyTree:
    """``tree``, which every process has as a whole, laid out; it may take the memory of ``tree``."""
    return processes.put(tree, layout.shardings(tree))


def replicas_agree(tree: PyTree) -> bool:
    """Whether all devices that hold the same part of an array hold the same bits; collective, nothing else moves."""
    found = [_agreement(leaf.sharding.mesh, leaf.sharding.spec)(leaf) for leaf in jax.tree.leaves(tree)]
    return all(jax.device_get(found))


@lru_cache(maxsize=64)
def _agreement(mesh: Mesh, spec: PartitionSpec) -> Callable[[Array], Array]:
    """Whether one leaf agrees, compiled for each shape."""
    others = tuple(axis for axis in mesh.axis_names if axis not in spec)

    def agree(leaf: Array) -> Array:
        bits = array_hash(leaf)
        same = jax.lax.pmax(bits, others) == jax.lax.pmin(bits, others) if others else jnp.bool_(True)
        return jax.lax.pmin(same.astype(jnp.int32), mesh.axis_names)

    return jax.jit(jax.shard_map(agree, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False))


def _mesh(shape: tuple[int, int], devices: Sequence[Device]) -> Mesh:
    axes = (AxisType.Auto, AxisType.Auto)
    try:  # such that neighbours in the mesh are neighbours in the network
        return jax.make_mesh(shape, (DATA, FSDP), axis_types=axes, devices=devices)
    except (ValueError, NotImplementedError):  # several nodes of GPUs, or a shape that the torus of a TPU has not
        return Mesh(np.asarray(devices).reshape(shape), (DATA, FSDP), axis_types=axes)


def _of_one_process(devices: Any) -> bool:
    return len({device.process_index for device in devices}) == 1


def _cut(split: NamedSharding, a: Any) -> Any:
    if isinstance(a, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=split)
    return jax.make_array_from_process_local_data(split, a)
