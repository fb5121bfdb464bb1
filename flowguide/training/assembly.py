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
from flowguide.schema import DataInfo
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
    optimizer, rate = build.optimizer(config)
    init_key, draw_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    teach = None if teacher is None else teacher.network.velocity
    mirrored = info.examples.mirrored if config.flip else None
    if mirrored is not None:
        _check_mirror(info)

    def loss(recipe: Recipe, key: PRNGKey, train: bool) -> Loss:
        return make_loss(
            model.network,
            recipe,
            info.examples.to_model,
            key,
            mirrored if train else None,
            task=task,
            teacher=teach,
            fields=info.fields,
        )

    def step_with(shares: int) -> StepWith:
        shared = recipe._replace(coupling=couplings.within(recipe.coupling, shares))
        return make_step(loss(shared, draw_key, train=True), optimizer, average, config.accumulate)

    undropped = recipe._replace(
        coupling=couplings.within(recipe.coupling, layout.shares), drop_rate=0.0, drop_field_rate=0.0
    )
    return Assembly(
        model=model,
        layout=layout,
        optimizer=optimizer,
        rate=rate,
        init=partial(init_state, model.network, optimizer),
        init_key=init_key,
        step_with=step_with,
        validation_loss=loss(undropped, test_key, train=False),
    )


def _check_mirror(info: DataInfo) -> None:
    try:
        jax.eval_shape(info.examples.mirrored, jax.ShapeDtypeStruct((1, *info.model_shape), "float32"))
    except ValueError as error:
        raise UserError(str(error)) from error
