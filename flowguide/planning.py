"""What a training run would need: compiled for devices that need not be there, with nothing but shapes."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowguide import build, couplings
from flowguide.condition import Label, Vector
from flowguide.data import DataInfo, to_model
from flowguide.errors import UserError
from flowguide.flops import flops
from flowguide.networks import count_parameters
from flowguide.training.parallel import FSDP, StepWith, abstract
from flowguide.training.step import Batch, init_state, make_loss, make_step
from flowguide.typing import PyTree


class Chip(NamedTuple):
    """Peak of dense bfloat16 matrix products, operations a second, and the memory in bytes that a program can have.

    The peaks are their makers' figures. Of the memory of a GPU JAX takes three quarters unless it is told otherwise
    (XLA_CLIENT_MEM_FRACTION); of that of a TPU the system keeps a little.
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
    """What a run would need; bytes, and operations of one step.

    Attributes:
      parameters: of the network.
      state: bytes of parameters, average and optimiser, all in all.
      state_each: of it on one device.
      temporary: bytes beside the state and the batch on one device, while a step runs.
      preview: bytes beside the state while a preview is drawn, with the whole average on each device; 0 if it has that
        anyway, or if there are no previews.
      batch: bytes of its share of the batch.
      operations: of one step, on all devices.
      shards: into how many parts the state is split.
      best_shards: into how many it should be, for a device to hold least; ``shards`` where it is not to be split.
      best_each: bytes of the state on one device then.
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


def plan(config: build.Config, info: DataInfo, devices: list[Any]) -> Plan:
    """What a run of ``config`` on ``devices`` would need; compiles, and computes nothing.

    Raises:
      UserError: for a config that cannot be, or not on that many devices.
    """
    build.check_numbers(config, len(devices))
    if config.target.name == "distilled":
        raise UserError(
            "a run that distils cannot be planned without its teacher: plan it with another target, and add the bytes "
            "of the teacher's parameters"
        )
    layout, network, (optimizer, _) = (
        build.layout(config, devices),
        build.network(config, info),
        build.optimizer(config),
    )

    def step_of(shares: int) -> StepWith:
        recipe = build.recipe(config)
        recipe = recipe._replace(coupling=couplings.within(recipe.coupling, shares))
        loss = make_loss(network, recipe, to_model, jax.random.key(0), config.flip, build.task(config))
        return make_step(loss, optimizer, build.profile(config), config.accumulate)

    like = jax.eval_shape(partial(init_state, network, optimizer), jax.random.key(0))
    state, batch = abstract(like, layout), _batch(config.batch_size, info)
    compiled = layout.program(step_of(layout.shares), True).lower(state, layout.batch(batch), None).compile()
    shards, each = layout.mesh.shape.get(FSDP, 1), _bytes_each(state)
    best = (shards, each) if shards == 1 else _best(config, like, devices)
    return Plan(
        parameters=count_parameters(like.params),
        state=_bytes(like),
        state_each=each,
        preview=_bytes(like.ema) if shards > 1 and config.preview.every and config.task == "flow" else 0,
        temporary=compiled.memory_analysis().temp_size_in_bytes,
        batch=_bytes(batch) // len(devices),
        operations=flops(step_of(len(devices))(lambda tree: tree), like, batch),
        shards=shards,
        best_shards=best[0],
        best_each=best[1],
    )


def _best(config: build.Config, like: PyTree, devices: list[Any]) -> tuple[int, int]:
    """The number of shards with which a device holds least of the state, and how many bytes that is."""
    held = {}
    for shards in (n for n in range(2, len(devices) + 1) if len(devices) % n == 0):
        changed = config.copy_and_resolve_references()
        changed.layout.shards = shards
        with contextlib.suppress(UserError):  # an override that needs another number
            held[shards] = _bytes_each(abstract(like, build.layout(changed, devices)))
    best = min(held, key=held.__getitem__)
    return best, held[best]


def _bytes(tree: PyTree) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _bytes_each(tree: PyTree) -> int:
    parts = [(a.sharding.shard_shape(a.shape), a.dtype.itemsize) for a in jax.tree.leaves(tree)]
    return sum(jax.ShapeDtypeStruct(shape, jnp.uint8).size * size for shape, size in parts)


def _batch(size: int, info: DataInfo) -> Batch:
    """The shapes and types of a batch."""

    def of(field: Any) -> jax.ShapeDtypeStruct:
        if isinstance(field, Vector):
            return jax.ShapeDtypeStruct((size, field.size), jnp.float32)
        return jax.ShapeDtypeStruct((size,) if isinstance(field, Label) else (size, field.length), jnp.int32)

    x = jax.ShapeDtypeStruct((size, *info.shape), jnp.uint8 if info.kind == "image" else jnp.float32)
    value = {name: of(field) for name, field in info.fields.items()}
    return Batch(x, value, jax.ShapeDtypeStruct((size,), jnp.int32))


def bytes_text(count: float) -> str:
    """1.50 GiB"""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 2**10:,.1f} KiB"


def time_text(seconds: float) -> str:
    """3.47 days"""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"
