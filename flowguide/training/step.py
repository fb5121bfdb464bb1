"""One step of training, as a pure function of state and batch; how it is spread is no business of this file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from flowguide import condition
from flowguide.losses import Recipe, example_keys, flow_matching
from flowguide.networks import Network
from flowguide.networks.module import Apply
from flowguide.training import ema
from flowguide.typing import Array, PRNGKey, PyTree

# Averages over all examples of the global batch what is an average over those of one device.
Mean: TypeAlias = Callable[[PyTree], PyTree]
Metrics: TypeAlias = dict[str, Array]
# params, step, batch, the teacher's params or None -> mean loss ()
Loss: TypeAlias = Callable[..., Array]


class TrainState(NamedTuple):
    """All that changes while training.

    Attributes:
      step: int32 (), steps taken so far.
      params: float32 tree.
      ema: moving average of ``params``, what one samples with.
      opt_state: Optax's.
    """

    step: Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree


class Batch(NamedTuple):
    """What a step reads: arrays of JAX or NumPy, each leaf with a leading axis of examples.

    Attributes:
      x: data as stored, uint8 images or float32 points ``(B, *D)``.
      value: conditions by field.
      index: int32 ``(B,)``, the place of each example in the global batch.
    """

    x: Any
    value: PyTree
    index: Any


def init_state(
    network: Network,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    shardings: Callable[[PyTree], PyTree] | None = None,
) -> TrainState:
    """A fresh state; one jitted program. ``shardings``, of an abstract tree, tells where each leaf is to be made."""

    def build(key: PRNGKey) -> TrainState:
        params = network.init(key)
        # A copy, not another name: donation would otherwise give the same buffer away twice.
        return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    places = shardings(jax.eval_shape(build, key)) if shardings else None
    return jax.jit(build, out_shardings=places)(key)


def make_loss(
    network: Network,
    recipe: Recipe,
    prepare: Callable[[Array], Array],
    root: PRNGKey,
    flip: bool = False,
    task: Callable[..., Array] = flow_matching,
    teacher: Apply | None = None,
) -> Loss:
    """The mean loss () of (params, step, batch, the teacher's params).

    Args:
      network: the network to train.
      recipe: what the loss draws, and how.
      prepare: turns stored data into the float32 that the network sees.
      root: key of all draws, which depend on it, the step and the place of the example in the global batch.
      flip: mirror each image ``(H, W, C)`` left to right with probability one half.
      task: the loss of each example, one of ``losses.TASKS``.
      teacher: the velocity of a network that is not trained; None for that of ``network``, whose parameters are the
        params themselves where none are given.
    """
    teach = teacher or network.velocity

    def loss(params: PyTree, step: Array, batch: Batch, teacher_params: PyTree = None) -> Array:
        keys = example_keys(root, step, batch.index)
        x1 = prepare(batch.x)
        if flip:
            coins = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)
            x1 = jnp.where(coins[:, None, None, None], x1[:, :, ::-1], x1)
        learner = partial(network.velocity, params)
        guide = partial(teach, params if teacher_params is None else teacher_params)
        return jnp.mean(task(learner, recipe, keys, batch.index, x1, condition.given(batch.value), guide))

    return loss


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    profile: ema.Profile,
    accumulate: int = 1,
) -> Callable[[Mean], Callable[..., tuple[TrainState, Metrics]]]:
    """The training step (state, batch, the teacher's params), once it is told how to average over devices.

    Without params of the teacher, the moving average is the teacher. Where the loss, its gradient or the update is not
    finite, the state stays what it was.

    Args:
      loss: mean loss of (params, step, batch, the teacher's params).
      optimizer: Optax's.
      profile: of the moving average.
      accumulate: parts a device's batch is worked through in, to save memory; the result is that of the whole.
    """

    def step_with(mean: Mean) -> Callable[..., tuple[TrainState, Metrics]]:
        def step(state: TrainState, batch: Batch, teacher: PyTree = None) -> tuple[TrainState, Metrics]:
            teacher = state.ema if teacher is None else teacher
            gradient = jax.value_and_grad(lambda params, part: loss(params, state.step, part, teacher))
            value, grads = _mean_gradient(gradient, accumulate, state.params, batch)
            # Here replicas are made to agree; everything after is the same computation on each of them.
            value, grads = mean((value, grads))
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            average = ema.update(profile, state.step, state.ema, params)
            norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
            metrics = {"loss": value, **norms}
            # A step that is not finite changes nothing but the count of steps, and with it the next draws.
            finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
            new, old = (params, average, opt_state), (state.params, state.ema, state.opt_state)
            kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
            return TrainState(state.step + 1, *kept), metrics

        return step

    return step_with


def _mean_gradient(gradient: Callable, parts: int, params: PyTree, batch: Batch) -> tuple[Array, PyTree]:
    if parts == 1:
        return gradient(params, batch)
    # Each part has every parts-th example: where the batch is split over devices, so is each part.
    split = jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    total, _ = jax.lax.scan(add, zero, split)
    return jax.tree.map(lambda a: a / parts, total)
