"""The training step as a pure function of state and batch, independent of how it is parallelised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from flowguide.schema.examples import mirrored_where
from flowguide.training import ema
from flowguide.typing import Array, PRNGKey, PyTree

# Averages per-device means over all devices, to means over the global batch.
Mean: TypeAlias = Callable[[PyTree], PyTree]
Metrics: TypeAlias = dict[str, Array]
# keys (B,), stored examples (B, ...), coins (B,) or None -> what the network sees (B, *D)
Draw: TypeAlias = Callable[[PRNGKey, Array, "Array | None"], Array]
# params, step, batch, the teacher's params or None -> mean loss ()
Loss: TypeAlias = Callable[..., Array]


class TrainState(NamedTuple):
    """Everything that changes during training.

    Attributes:
      step: int32 (), number of steps taken.
      params: float32 tree.
      ema: moving average of ``params``, used for sampling.
      opt_state: state of the Optax optimiser.
      tracked: further averages of ``params``, which the run snapshots (``snapshots``).
    """

    step: Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    tracked: tuple[PyTree, ...] = ()


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
    tracked: int = 0,
) -> TrainState:
    """Returns a fresh state, made by one jitted program.

    Args:
      network: the network to train.
      optimizer: the Optax optimiser.
      key: of the first parameters.
      shardings: an abstract tree -> the shardings of its leaves.
      tracked: number of averages beside the EMA.
    """

    def build(key: PRNGKey) -> TrainState:
        params = network.init(key)
        # Copies, because donation would otherwise donate the same buffer twice.
        average, *others = (jax.tree.map(jnp.copy, params) for _ in range(1 + tracked))
        return TrainState(jnp.int32(0), params, average, optimizer.init(params), tuple(others))

    places = shardings(jax.eval_shape(build, key)) if shardings else None
    return jax.jit(build, out_shardings=places)(key)


def make_loss(
    network: Network,
    recipe: Recipe,
    draw: Draw,
    root: PRNGKey,
    flip: bool = False,
    task: Callable[..., Array] = flow_matching,
    teacher: Apply | None = None,
    fields: Fields = MappingProxyType({}),
) -> Loss:
    """Returns the mean loss () as a function of (params, step, batch, teacher params).

    Args:
      network: the network to train.
      recipe: what the loss draws, and how.
      draw: converts stored data to the network's float32 input, ``Examples.draw``.
      root: root key; draws depend on it, the step and the index of the example in the global batch.
      flip: whether each example is mirrored with probability ½.
      task: the loss of each example, one of ``losses.TASKS``.
      teacher: velocity of a frozen network; None for the velocity of ``network``, which then uses the trained params
        unless teacher params are given.
      fields: of the condition. Those that lie beside an example are mirrored with it, and a field ``Known`` becomes a
        random part of the example.
    """
    teach = teacher or network.velocity

    def loss(params: PyTree, step: Array, batch: Batch, teacher_params: PyTree = None) -> Array:
        keys = example_keys(root, step, batch.index)
        value = batch.value
        coins = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys) if flip else None
        x1 = draw(keys, batch.x, coins)
        if flip:
            value = {
                **value,
                **{k: mirrored_where(coins, value[k], fields[k].mirrored) for k in fields if k in value},
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


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    profile: ema.Profile,
    accumulate: int = 1,
    tracked: Sequence[ema.Profile] = (),
) -> Callable[[Mean], Callable[..., tuple[TrainState, Metrics]]]:
    """Returns a function from a mean over devices to the training step (state, batch, ``ReadOnly`` or None).

    If the loss, its gradient or the update is not finite, only the step count changes.

    Args:
      loss: mean loss of (params, step, batch, teacher params).
      optimizer: the Optax optimiser.
      profile: profile of the EMA.
      accumulate: number of parts in which a device processes its batch, to save memory; the result is the same.
      tracked: profiles of the averages ``TrainState.tracked``.
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
            average, *others = (
                ema.update(each, state.step, old, params)
                for each, old in zip((profile, *tracked), (state.ema, *state.tracked), strict=True)
            )
            norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
            metrics = {"loss": value, **norms}
            # A non-finite step changes only the step count, and with it the next draws.
            finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
            new = TrainState(state.step, params, average, opt_state, tuple(others))
            kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
            return kept._replace(step=state.step + 1), metrics

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
