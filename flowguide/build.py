"""From a config to the objects of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import optax

from flowguide import losses, paths, targets
from flowguide.config import Config, choose, resolve
from flowguide.errors import UserError, hint
from flowguide.networks import Output
from flowguide.schema import DataInfo, Fields, Vector, with_known
from flowguide.training import ema
from flowguide.training.optimizer import clipped, learning_rate
from flowguide.training.parallel import Layout
from flowguide.typing import Array, Device

if TYPE_CHECKING:  # sampling needs no data room, and neither TFDS nor Grain
    from flowguide.data import Dataset


class Splits(NamedTuple):
    """The data of a run.

    Attributes:
      train: what it learns from.
      test: what it is validated on; the same kinds of example and field.
    """

    train: Dataset
    test: Dataset


def splits(config: Config) -> Splits:
    """Opens the data of a run, with the fields that the config names.

    Raises:
      DataError: before anything slow, if the data set is missing or has no such fields.
    """
    from flowguide.data import open_path

    d = config.data
    if d.path:
        fields = tuple(d.fields) or None
        found = Splits(*open_path(d.path, tuple(d.example), fields, image_size=d.image_size or None))
    else:
        train = dataset(config, d.split)
        found = Splits(train, dataset(config, d.test_split, train.info.fields))
    return completing(found) if d.known else found


def completing(data: Splits) -> Splits:
    """Returns the data with a field "known": the part of an example from which the model completes it."""
    return Splits(*(each._replace(info=with_known(each.info)) for each in data))


def dataset(config: Config, split: str, fields: Fields | None = None) -> Dataset:
    """Opens a split of a TFDS set, with the fields that the config names, or exactly ``fields``.

    Raises:
      DataError: before anything slow, if the data set is missing or has no such fields.
    """
    from flowguide.data import open_dataset

    d = config.data
    return open_dataset(
        d.name, split, fields or tuple(d.fields) or None, d.data_dir or None, image_size=d.image_size or None
    )


def data_info(config: Config) -> DataInfo:
    """Returns what the config's data are, whether or not they are prepared.

    Raises:
      DataError: if the data set is unknown or has no such fields.
    """
    from flowguide.data import describe_dataset

    d = config.data
    if d.path:
        return splits(config).train.info
    info = describe_dataset(d.name, tuple(d.fields) or None, d.data_dir or None, image_size=d.image_size or None)
    return with_known(info) if d.known else info


def network_fields(config: Config, info: DataInfo) -> Fields:
    """Returns the fields that the network sees: those of the data and, if it is γ-conditioned, ``targets.GAMMA``."""
    chosen, name = target(config), config.target.name
    if _is_guided(chosen) and not info.fields:
        raise UserError(f"target {name!r} is guided towards conditions; {info.name} has none: set plain")
    if chosen.gammas is None:
        return info.fields
    if targets.GAMMA in info.fields:
        raise UserError(f"target {name!r} adds a field 'gamma'; {info.name} has one: leave it out")
    return {**info.fields, targets.GAMMA: Vector(1)}


def target(config: Config) -> targets.Target:
    """Returns what the velocity is trained to be."""
    name, chosen = config.target.name, choose("target", config)
    if name != "plain" and config.task != "flow":
        raise UserError(f"target {name!r} is one of velocities; got task {config.task!r}: set target to plain")
    if chosen.needs_null and not config.drop_rate > 0:
        raise UserError(f"target {name!r} learns u(t, x, ∅) on the way; got drop_rate {config.drop_rate}: 0.1, say")
    if chosen.teacher == "":
        raise UserError(f"target {name!r} has a teacher; got no workdir: name the folder of its run")
    return chosen


def output(config: Config) -> Output:
    """Returns what the network predicts."""
    chosen = choose("output", config)
    if config.task != "flow" and config.output.name != "velocity":
        raise UserError(
            f"output {config.output.name!r} is one of velocities; got task {config.task!r}: set output to velocity"
        )
    return chosen


def task(config: Config) -> Callable[..., Array]:
    """Returns the loss of each example."""
    if config.task not in losses.TASKS:
        near = hint(config.task, losses.TASKS)
        raise UserError(f"unknown task {config.task!r:.100}{near}: there are {', '.join(sorted(losses.TASKS))}")
    if config.task == "autoencoder":
        return partial(losses.reconstruction, **config.autoencoder.to_dict())
    return losses.TASKS[config.task]


def path(config: Config) -> paths.Path:
    """Returns the probability path; the same object for the same settings, so that paths can be compared."""
    chosen = resolve("path", config)
    return _path(chosen.make, tuple(sorted(chosen.settings.items())))


@cache
def _path(make: Callable[..., paths.Path], settings: tuple[tuple[str, Any], ...]) -> paths.Path:
    return make(**dict(settings))


def recipe(config: Config) -> losses.Recipe:
    """Returns what the loss draws."""
    field_rate = tuple(config.drop_field_rate)
    if len(field_rate) != 2 or not 0 <= field_rate[0] <= field_rate[1] <= 1:
        raise UserError(f"drop_field_rate is a range of probabilities, such as (0.0, 1.0); got {field_rate}")
    return losses.Recipe(
        path=path(config),
        warp=choose("times", config),
        coupling=choose("coupling", config),
        weight=choose("weight", config),
        target=target(config),
        drop_rate=config.drop_rate,
        drop_field_rate=field_rate,
        stratified=config.batch_size if config.stratified else 0,
    )


def optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser and its learning rate by step."""
    try:
        rate = learning_rate(config.lr, config.steps, warmup=warmup(config), decay=config.decay)
    except ValueError as error:
        raise UserError(str(error)) from error
    return clipped(choose("optimizer", config, rate=rate), config.clip), rate


def warmup(config: Config) -> int:
    """Returns the steps of the warm-up: the config's or, if the run is not longer than that, a tenth of the run."""
    return config.warmup if config.warmup < config.steps else config.steps // 10


def average(config: Config) -> ema.Profile:
    """Returns the profile of the moving average."""
    return choose("ema", config)


def tracked(config: Config) -> tuple[ema.Profile, ...]:
    """Returns the profiles of the averages that the run snapshots; none if ``posthoc.every`` is 0."""
    if not config.posthoc.every:
        return ()
    if not config.posthoc.widths:
        raise UserError(
            "posthoc.widths are the widths of the averages to keep snapshots of; got none: (0.05, 0.1), say"
        )
    return tuple(map(ema.power, config.posthoc.widths))


def layout(config: Config, devices: Sequence[Device]) -> Layout:
    """Returns how the run lies over ``devices``, those of all processes."""
    return choose("layout", config, devices=devices)


def _is_guided(target: targets.Target) -> bool:
    return target.gammas is not None or target.guided is not None
