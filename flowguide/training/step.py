"""The training step as a pure function of state and batch, independent of how it is parallelised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from flowguide import condition
from flowguide.losses import Recipe, example_keys, flow_matching
from flowguide.networks import Network
from flowguide.networks.module import Apply
from flowguide.schema import Batch, Fields, Known
from flowguide.training import ema
from flowguide.typing import Array, PRNGKey, PyTree

# Averages per-device means over all devices, to means over the global batch.
Mean: TypeAlias = Callable[[PyTree], PyTree]
Metrics: TypeAlias = dict[str, Array]
# params, step, batch, the teacher's params or None -> mean loss ()
Loss: TypeAlias = Callable[..., Array]


class TrainState(NamedTuple):
    """Everything that changes during training.

    Attributes:
      step: int32 (), number of steps taken.
      params: float32 tree.
      ema: moving average of ``params``, used for sampling.
      opt_state: state of the Optax optimiser.
    """

    step: Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree


class ReadOnly(NamedTuple):
    """What a step reads beside its state and batch.

    Attributes:
      teacher: the teacher's parameters; None for the EMA.
      slower: float32 (), a factor of the learning rate; None for 1.
    """

    teacher: PyTree = None
    slower: ArrayLike | None = None


def init_state(
    network: Network,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    shardings: Callable[[PyTree], PyTree] | None = None,
) -> TrainState:
    """Returns a fresh state, made by one jitted program; ``shardings`` maps an abstract tree to those of its leaves."""

    def build(key: PRNGKey) -> TrainState:
        params = network.init(key)
        # A copy, because donation would otherwise donate the same buffer twice.
        return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    places = shardings(jax.eval_shape(build, key)) if shardings else None
    return jax.jit(build, out_shardings=places)(key)


def make_loss(
    network: Network,
    recipe: Recipe,
    prepare: Callable[[Array], Array],
    root: PRNGKey,
    mirrored: Callable[[Array], Array] | None = None,
    task: Callable[..., Array] = flow_matching,
    teacher: Apply | None = None,
    fields: Fields = MappingProxyType({}),
) -> Loss:
    """Returns the mean loss () as a function of (params, step, batch, teacher params).

    Args:
      network: the network to train.
      recipe: what the loss draws, and how.
      prepare: converts stored data to the network's float32 input.
      root: root key; draws depend on it, the step and the index of the example in the global batch.
      mirrored: mirrors examples ``(B, *D)``; each is mirrored with probability ½. None disables it.
      task: the loss of each example, one of ``losses.TASKS``.
      teacher: velocity of a frozen network; None for the velocity of ``network``, which then uses the trained params
        unless teacher params are given.
      fields: of the condition. Those that lie beside an example are mirrored with it, and a field ``Known`` becomes a
        random part of the example.
    """
    teach = teacher or network.velocity

    def loss(params: PyTree, step: Array, batch: Batch, teacher_params: PyTree = None) -> Array:
        keys = example_keys(root, step, batch.index)
        x1, value = prepare(batch.x), batch.value
        if mirrored is not None:
            coins = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)
            x1 = _where(coins, mirrored(x1), x1)
            value = {
                **value,
                **{k: _where(coins, fields[k].mirrored(value[k]), value[k]) for k in fields if k in value},
            }
        value = with_parts(value, fields, jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 2), x1)
        learner = partial(network.velocity, params)
        guide = partial(teach, params if teacher_params is None else teacher_params)
        return jnp.mean(task(learner, recipe, keys, batch.index, x1, condition.given(value), guide))

    return loss


def with_parts(value: PyTree, fields: Fields, keys: PRNGKey, x1: Array) -> PyTree:
    """Returns the values of a batch with a random part of each example for every field ``Known``.

    Args:
      value: values of the other fields, by name.
      fields: all fields.
      keys: typed keys ``(B,)``.
      x1: examples as the network sees them, ``(B, *D)``.
    """
    parts = {name: field.part(keys, x1) for name, field in fields.items() if isinstance(field, Known)}
    return {**value, **parts} if parts else value


def _where(coins: Array, yes: Array, no: Array) -> Array:
    return jnp.where(coins.reshape(-1, *(1,) * (no.ndim - 1)), yes, no)


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    profile: ema.Profile,
    accumulate: int = 1,
) -> Callable[[Mean], Callable[..., tuple[TrainState, Metrics]]]:
    """Returns a function from a mean over devices to the training step (state, batch, ``ReadOnly`` or None).

    If the loss, its gradient or the update is not finite, only the step count changes.

    Args:
      loss: mean loss of (params, step, batch, teacher params).
      optimizer: the Optax optimiser.
      profile: profile of the EMA.
      accumulate: number of parts in which a device processes its batch, to save memory; the result is the same.
    """

    def step_with(mean: Mean) -> Callable[..., tuple[TrainState, Metrics]]:
        def step(state: TrainState, batch: Batch, read: ReadOnly | None = None) -> tuple[TrainState, Metrics]:
            read = read or ReadOnly()
            teacher = state.ema if read.teacher is None else read.teacher
            gradient = jax.value_and_grad(lambda params, part: loss(params, state.step, part, teacher))
            value, grads = _mean_gradient(gradient, accumulate, state.params, batch)
            # This makes the replicas agree; everything after it is the same computation on each device.
            value, grads = mean((value, grads))
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            if read.slower is not None:  # of all optimisers here the updates are proportional to the learning rate
                updates = optax.tree.scale(read.slower, updates)
            params = optax.apply_updates(state.params, updates)
            average = ema.update(profile, state.step, state.ema, params)
            norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
            metrics = {"loss": value, **norms}
            # A non-finite step changes only the step count, and with it the next draws.
            finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
            new, old = (params, average, opt_state), (state.params, state.ema, state.opt_state)
            kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
            return TrainState(state.step + 1, *kept), metrics

        return step

    return step_with


def _mean_gradient(
    gradient: Callable[[PyTree, Batch], tuple[Array, PyTree]], parts: int, params: PyTree, batch: Batch
) -> tuple[Array, PyTree]:
    if parts == 1:
        return gradient(params, batch)
    # Each part takes every parts-th example, so that it is sharded over devices like the batch.
    split = jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    total, _ = jax.lax.scan(add, zero, split)
    return jax.tree.map(lambda a: a / parts, total)
