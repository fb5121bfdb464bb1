"""Puts a training step together from a config. ``train`` runs it; ``plan`` compiles it and runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import optax

from flowguide import build, couplings
from flowguide.config import Config
from flowguide.errors import UserError
from flowguide.losses import Recipe
from flowguide.model import Model, from_config
from flowguide.networks import Network
from flowguide.schema import DataInfo, example_spec
from flowguide.training import smoothing
from flowguide.training.parallel import Layout, StepWith
from flowguide.training.step import Loss, TrainState, init_state, make_loss, make_step
from flowguide.typing import Device, PRNGKey


class Assembly(NamedTuple):
    """What a config makes of some data and devices; nothing is computed yet.

    Attributes:
      model: without parameters.
      layout: over the devices.
      optimizer: with its learning rate.
      rate: the learning rate by step.
      init: (key, shardings=None) -> a fresh state.
      init_key: for ``init``.
      step_with: the number of shares in which one program sees the batch -> the step, see ``parallel.StepWith``.
      validation_loss: without dropped conditions, and always with the same draws.
    """

    model: Model
    layout: Layout
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    init: Callable[..., TrainState]
    init_key: PRNGKey
    step_with: Callable[[int], StepWith]
    validation_loss: Loss


def assemble(
    config: Config,
    info: DataInfo,
    devices: Sequence[Device],
    teacher: Model | None = None,
    network: Network | None = None,
) -> Assembly:
    """Assembles what a run needs besides its data and its folder.

    Args:
      config: complete (``config.complete``).
      info: of the data.
      devices: all of them, those of other processes too.
      teacher: the model that teaches, for targets that have one. Its parameters are passed to the step.
      network: as for ``from_config``.

    Raises:
      UserError: for settings that cannot be.
    """
    layout, model = build.layout(config, devices), from_config(config, info, network)
    task, recipe, average = build.task(config), build.recipe(config), build.average(config)
    tracked = build.tracked(config)
    optimizer, rate = build.optimizer(config)
    init_key, draw_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    teach = None if teacher is None else teacher.network.velocity
    if config.flip:
        _check_mirror(info)
    if recipe.target.contrast is not None:
        _check_others(config, len(devices))

    def loss(recipe: Recipe, key: PRNGKey, train: bool) -> Loss:
        return make_loss(
            model.network,
            recipe,
            smoothing.jittered(info.examples.draw, config.jitter if train else 0.0),
            key,
            flip=config.flip and train,
            task=task,
            teacher=teach,
            fields=info.fields,
        )

    def shared(shares: int) -> Recipe:
        coupling, others = (couplings.within(pairs, shares) for pairs in (recipe.coupling, recipe.others))
        return recipe._replace(coupling=coupling, others=others)

    def step_with(shares: int) -> StepWith:
        return make_step(loss(shared(shares), draw_key, train=True), optimizer, average, config.accumulate, tracked)

    undropped = shared(layout.shares)._replace(drop_rate=0.0, drop_field_rate=0.0)
    return Assembly(
        model=model,
        layout=layout,
        optimizer=optimizer,
        rate=rate,
        init=partial(init_state, model.network, optimizer, tracked=len(tracked)),
        init_key=init_key,
        step_with=step_with,
        validation_loss=loss(undropped, test_key, train=False),
    )


def _check_others(config: Config, devices: int) -> None:
    """Raises ``UserError`` if an example is alone on its device, in training or validation."""
    fewest = {"batch_size": devices * config.accumulate, "eval_examples": devices}
    for name, parts in fewest.items():
        if config[name] < 2 * parts:
            raise UserError(
                f"target {config.target.name!r} pairs the examples of a device, in each of its parts; got {name} "
                f"{config[name]} for {parts}: expected {2 * parts} or more"
            )


def _check_mirror(info: DataInfo) -> None:
    try:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        jax.eval_shape(info.examples.draw, keys, example_spec(info.examples, 1), jax.ShapeDtypeStruct((1,), bool))
    except ValueError as error:
        raise UserError(str(error)) from error
