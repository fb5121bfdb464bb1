"""Parallel training over devices and processes; pmap, shard_map and FSDP appear only in this file.

Arrays are global and have no device axis, so checkpoints, the EMA and sampling do not depend on how a run was sharded.
All layouts compute the same update up to rounding.
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

Step: TypeAlias = Callable[..., PyTree]  # (tree, batch, optional read-only tree) -> trees
StepWith: TypeAlias = Callable[[Callable[[PyTree], PyTree]], Step]  # mean over all shares of the batch -> Step of one

DATA, FSDP = "data", "fsdp"


class Layout(NamedTuple):
    """The layout of a run over devices.

    Attributes:
      mesh: mesh of the devices of all processes; the batch is split along all its axes.
      shardings: a tree of arrays, concrete or abstract -> the sharding of each leaf.
      program: (step_with, donate) -> the jitted function of (tree, batch, read-only tree), all laid out. Its outputs
        have the shardings of ``shardings``, so they can be its next input. With ``donate`` they reuse the memory of the
        first argument, which the caller must then not use again.
      batch: this process's share of the batch, in NumPy arrays, or the shapes and dtypes of the whole batch -> the
        batch for ``program``.
      shares: number of shares into which a program that sees the global batch splits it; 1 if each device sees only its
        own share.
    """

    mesh: Mesh
    shardings: Callable[[PyTree], PyTree]
    program: Callable[[StepWith, bool], Step]
    batch: Callable[[PyTree], PyTree]
    shares: int = 1


def data_parallel(devices: Sequence[Device]) -> Layout:
    """Replicates the state, splits the batch over devices and averages the gradients.

    For a single process this is ``jax.pmap``. That does not take the global arrays of several processes; for these it
    is ``jit`` of ``shard_map``, with which pmap is implemented, so the results agree bit for bit.
    """
    mesh = Mesh(np.asarray(devices), (DATA,))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA))
    mean = partial(jax.lax.pmean, axis_name=DATA)
    alone = _of_one_process(devices)

    def program(step_with: StepWith, donate: bool) -> Step:
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
        partial(jax.tree.map, by_device if alone else partial(_split_batch, split)),
    )


def fsdp(
    devices: Sequence[Device],
    shards: int = 0,
    min_size: int = 2**14,
    overrides: Sequence[tuple[str, int | None]] = (),
) -> Layout:
    """Also splits parameters, their EMA and the optimiser state over devices ("fully sharded", ZeRO-3).

    The same step is jitted over a mesh (data, fsdp): XLA gathers a layer's parameters where they are used and scatters
    their gradient (Rajbhandari et al. 2020, §5; Xu et al. 2020). A leaf is split along its largest axis divisible by
    the number of shards; among equal ones, the last.

    Args:
      devices: the devices of all processes.
      shards: number of parts of a leaf; each part is on ``len(devices) / shards`` devices. 0 for all devices.
      min_size: leaves with fewer elements are replicated.
      overrides: pairs (regular expression, axis, or None to replicate) for leaves whose path, such as
        ``.params/blocks/film/kernel``, contains a match. The first match wins.

    Raises:
      ValueError: if the shards do not divide the devices, or an override names an axis that cannot be split.
    """
    shards = shards or len(devices)
    if shards < 1 or len(devices) % shards:
        raise ValueError(f"shards must divide the number of devices, {len(devices)}; got {shards}")
    mesh = _mesh((len(devices) // shards, shards), devices)
    split = NamedSharding(mesh, PartitionSpec((DATA, FSDP)))

    def sharding(place: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(place, simple=True, separator="/")
        axis = split_axis(name, leaf.shape, shards, min_size, overrides)
        return NamedSharding(mesh, PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, FSDP))

    def shardings(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(sharding, tree)

    def program(step_with: StepWith, donate: bool) -> Step:
        step = step_with(lambda tree: tree)  # the mean over the global batch is already global

        def laid_out(tree: PyTree, batch: PyTree, fixed: PyTree = None) -> PyTree:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                out = step(tree, batch, fixed)
            return jax.lax.with_sharding_constraint(out, shardings(out))

        return jax.jit(laid_out, donate_argnums=(0,) if donate else ())

    return Layout(mesh, shardings, program, partial(jax.tree.map, partial(_split_batch, split)), len(devices))


LAYOUTS: dict[str, Callable[..., Layout]] = {"data_parallel": data_parallel, "fsdp": fsdp}


def split_axis(
    place: str, shape: Sequence[int], shards: int, min_size: int, overrides: Sequence[tuple[str, int | None]] = ()
) -> int | None:
    """Returns the axis along which ``fsdp`` splits a leaf, or None; the arguments are those of ``fsdp``.

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


def parallelize(layout: Layout, step_with: StepWith, donate: bool = True) -> Step:
    """Returns the step as a function of (tree, this process's share of the batch, optional read-only tree)."""
    program = layout.program(step_with, donate)
    return lambda tree, batch, fixed=None: program(tree, layout.batch(batch), fixed)


def abstract(tree: PyTree, layout: Layout) -> PyTree:
    """Returns the shapes, dtypes and shardings of a tree."""
    return jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree, layout.shardings(tree)
    )


def lay_out(tree: PyTree, layout: Layout) -> PyTree:
    """Shards ``tree``, of which every process has a whole copy; the result may share its memory."""
    return processes.put(tree, layout.shardings(tree))


def replicas_agree(tree: PyTree) -> bool:
    """Returns whether replicas on different devices agree bit for bit. Collective; transfers only hashes."""
    found = [_agreement_check(leaf.sharding.mesh, leaf.sharding.spec)(leaf) for leaf in jax.tree.leaves(tree)]
    return all(jax.device_get(found))


@lru_cache(maxsize=64)
def _agreement_check(mesh: Mesh, spec: PartitionSpec) -> Callable[[Array], Array]:
    """Returns a function of a leaf, compiled for each shape, that returns whether its replicas agree."""
    others = tuple(axis for axis in mesh.axis_names if axis not in spec)

    def agree(leaf: Array) -> Array:
        bits = array_hash(leaf)
        same = jax.lax.pmax(bits, others) == jax.lax.pmin(bits, others) if others else jnp.bool_(True)
        return jax.lax.pmin(same.astype(jnp.int32), mesh.axis_names)

    return jax.jit(jax.shard_map(agree, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False))


def _mesh(shape: tuple[int, int], devices: Sequence[Device]) -> Mesh:
    axes = (AxisType.Auto, AxisType.Auto)
    try:  # places neighbours in the mesh close to each other in the network
        return jax.make_mesh(shape, (DATA, FSDP), axis_types=axes, devices=devices)
    except (ValueError, NotImplementedError):  # several GPU nodes, or a shape that does not fit the TPU torus
        return Mesh(np.asarray(devices).reshape(shape), (DATA, FSDP), axis_types=axes)


def _of_one_process(devices: Any) -> bool:
    return len({device.process_index for device in devices}) == 1


def _split_batch(split: NamedSharding, a: Any) -> Any:
    if isinstance(a, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=split)
    return jax.make_array_from_process_local_data(split, a)
