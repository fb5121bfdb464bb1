"""Estimates the memory and FLOPs of a training run: compiles its step from shapes, for devices that may be absent."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowguide import build
from flowguide.config import Config, check_numbers, check_types, choose, complete
from flowguide.errors import UserError
from flowguide.flops import flops
from flowguide.networks import count_parameters
from flowguide.schema import Batch, DataInfo, example_spec, spec, stored
from flowguide.training.assembly import assemble
from flowguide.training.parallel import FSDP, abstract
from flowguide.typing import PyTree


class Chip(NamedTuple):
    """Peak dense bfloat16 matmul throughput in FLOP/s, and the memory in bytes that a program can use.

    The peaks are the vendors' figures. JAX takes three quarters of a GPU's memory by default
    (XLA_CLIENT_MEM_FRACTION); the system keeps a little of a TPU's.
    """

    peak: float
    memory: float


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30),
    "v5e": Chip(197e12, 15.75 * 2**30),
    "v5p": Chip(459e12, 95 * 2**30),
    "v6e": Chip(918e12, 32 * 2**30),
    "a100": Chip(312e12, 60e9),
    "h100": Chip(989e12, 60e9),
    "h200": Chip(989e12, 105e9),
}


class Plan(NamedTuple):
    """Memory in bytes, and floating-point operations per step, that a run would need.

    Attributes:
      parameters: number of parameters of the network.
      state: bytes of parameters, averages and optimiser state in total.
      state_each: bytes of the state on one device.
      temporary: bytes on one device during a step, besides the state and the batch.
      preview: bytes on one device for a preview, besides the state: the preview gathers the whole EMA. 0 if the EMA is
        replicated anyway, or there are no previews.
      batch: bytes of one device's share of the batch.
      operations: operations per step on all devices.
      shards: number of parts into which the state is split.
      best_shards: number of parts that minimises the state on one device; ``shards`` if the state is not split.
      best_each: bytes of the state on one device with ``best_shards``.
    """

    parameters: int
    state: int
    state_each: int
    temporary: int
    preview: int
    batch: int
    operations: int
    shards: int
    best_shards: int
    best_each: int


def plan(config: Config, info: DataInfo, devices: list[Any]) -> Plan:
    """Returns what a run of ``config`` on ``devices`` would need; compiles the step but runs nothing.

    Raises:
      UserError: if the config is invalid, or does not fit that many devices.
    """
    check_types(config)
    config = complete(config)
    check_numbers(config, len(devices))
    if choose("target", config).teacher is not None:  # before it is asked for its folder
        raise UserError(
            "a run cannot be planned without its teacher: plan it with another target, and add the bytes "
            "of the teacher's parameters"
        )
    assembly = assemble(config, info, devices)
    layout, step_with = assembly.layout, assembly.step_with
    like = jax.eval_shape(assembly.init, assembly.init_key)
    state, batch = abstract(like, layout), _batch(config.batch_size, info)
    compiled = layout.program(step_with(layout.shares), True).lower(state, layout.batch(batch), None).compile()
    shards, each = layout.mesh.shape.get(FSDP, 1), _bytes_each(state)
    best = (shards, each) if shards == 1 else _best_shards(config, like, devices)
    return Plan(
        parameters=count_parameters(like.params),
        state=_bytes(like),
        state_each=each,
        preview=_bytes(like.ema) if shards > 1 and config.preview.every and config.task == "flow" else 0,
        temporary=compiled.memory_analysis().temp_size_in_bytes,
        batch=_bytes(batch) // len(devices),
        operations=flops(step_with(len(devices))(lambda tree: tree), like, batch),
        shards=shards,
        best_shards=best[0],
        best_each=best[1],
    )


def _best_shards(config: Config, like: PyTree, devices: list[Any]) -> tuple[int, int]:
    """Returns the number of shards that minimises the state on one device, and its bytes."""
    held = {}
    for shards in (n for n in range(2, len(devices) + 1) if len(devices) % n == 0):
        changed = config.copy_and_resolve_references()
        changed.layout.shards = shards
        with contextlib.suppress(UserError):  # an override does not divide into this many shards
            held[shards] = _bytes_each(abstract(like, build.layout(changed, devices)))
    best = min(held, key=held.__getitem__)
    return best, held[best]


def _bytes(tree: PyTree) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _bytes_each(tree: PyTree) -> int:
    parts = [(a.sharding.shard_shape(a.shape), a.dtype.itemsize) for a in jax.tree.leaves(tree)]
    return sum(jax.ShapeDtypeStruct(shape, jnp.uint8).size * size for shape, size in parts)


def _batch(size: int, info: DataInfo) -> Batch:
    """Returns the shapes and dtypes of a batch."""
    value = {name: spec(field, size) for name, field in stored(info.fields).items()}
    return Batch(example_spec(info.examples, size), value, jax.ShapeDtypeStruct((size,), jnp.int32))


def bytes_text(count: float) -> str:
    """Returns text such as "1.50 GiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 2**10:,.1f} KiB"


def time_text(seconds: float) -> str:
    """Returns text such as "3.47 days"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"
