"""A config for data that have none: network, size and steps from the examples, and from the time that is given."""

from __future__ import annotations

import math
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from flowguide.config.choices import complete
from flowguide.config.defaults import Config, default
from flowguide.flops import flops
from flowguide.networks import UNet, as_network
from flowguide.networks.check import abstract_inputs
from flowguide.networks.embed import beside_shapes, has_sequence
from flowguide.schema import DataInfo, Known

SMALLEST_SIDE = 4  # of the coarsest level of a U-Net
ATTENDED = 256  # positions of a level up to which its blocks have attention
MANY = 10**7  # steps, more than any limit of minutes allows
ENOUGH = 3000  # steps after which a U-Net draws better than an MLP, about (benchmarks/first_samples.py)
SMOOTHED = 300  # times as many examples, about, as far as learning by heart goes
SPEED = 25e9  # FLOP/s of a U-Net in training on one core of a CPU, about


def config_for(
    info: DataInfo, size: int, *, minutes: float | None = None, platform: str | None = None, jitter: float = 0.0
) -> Config:
    """Returns a complete config.

    Vectors get an MLP; signals, images and volumes a U-Net with as many levels as their sides can be halved. Where a
    CPU has too little time for a U-Net, they get an MLP too: it learns more in the first minutes. Not so with images
    and sequences as conditions: only a U-Net carries over to new ones.

    Args:
      info: of the data.
      size: number of examples to train on.
      minutes: the limit of time that ends the run; None if a number of steps does.
      platform: of the devices, such as "cpu" or "gpu"; by default that of JAX.
      jitter: noise that smooths a small set, ``training.smoothing.bandwidth``.
    """
    c = default()
    c.jitter = jitter
    vectors = is_table(info)
    if vectors:
        _for_vectors(c, info, size * (SMOOTHED if jitter else 1))
    elif minutes is not None and _in_a_hurry(info, minutes, platform or jax.default_backend()):
        _for_little_time(c, info)
    else:
        _for_grids(c, info)
    if minutes is not None:
        c.steps = MANY
    c.ema = ConfigDict({"name": "power", "std": 0.05})
    c.stratified = True
    c.use = "newest" if jitter else "best"  # a small set is soon learned by heart
    completes = any(isinstance(field, Known) for field in info.fields.values())
    # Prompts name some of many fields, and a part is completed without the other condition as well.
    many = len(info.fields) > (1 if completes else 2)
    c.drop_field_rate = (0.0, 0.5) if many else (0.1, 0.1)
    every = 500 if vectors else 250
    c.log_every, c.eval_every, c.checkpoint_every = every // 10, every, every
    c.eval_examples = 1024 if vectors else 256
    c.preview.update({"every": every if minutes is None else 0, "gammas": (1.0, 2.0)})
    return complete(c)


def why(config: Config, info: DataInfo) -> str | None:
    """Returns a line on what ``config_for`` chose because time or data are short; None if it did not."""
    if config.jitter:
        return (
            f"so few examples are smoothed: training adds noise of {config.jitter:.2g} standard deviations to each "
            "number, about that with which they explain each other best"
        )
    if is_table(info) or config.network.name != "mlp":
        return None
    minutes = math.ceil(_minutes_of_unet(info))
    return f"an MLP, as time is short: for a U-Net on this CPU give {minutes:,} minutes or more"


def is_table(info: DataInfo) -> bool:
    """Returns whether examples are vectors, or so few numbers along each axis that a network may flatten them."""
    return len(info.model_shape) < 2 or max(info.model_shape[:-1]) < SMALLEST_SIDE


def _in_a_hurry(info: DataInfo, minutes: float, platform: str) -> bool:
    if platform != "cpu" or has_sequence(info.fields) or beside_shapes(info.fields):
        return False
    return minutes < _minutes_of_unet(info)


def _for_vectors(c: Config, info: DataInfo, size: int) -> None:
    # A wide network learns a small set by heart, and takes fewer steps a minute.
    width = 64 if size < 500 else 128 if size < 50_000 else 256
    width = max(width, min(512, 2 * math.prod(info.model_shape)))
    c.network = ConfigDict({"name": "mlp", "width": width, "depth": 4})
    c.update({"batch_size": 256, "lr": 1e-3, "steps": 20_000})
    c.times = ConfigDict({"name": "uniform"})  # narrow densities are made near t = 1
    # As of a prior of the weights: its part of the loss of all examples falls as 1/size.
    c.optimizer = ConfigDict({"name": "adamw", "weight_decay": min(1.0, 6000 / size)})


def _for_little_time(c: Config, info: DataInfo) -> None:
    refine = 64 if len(info.model_shape) == 3 else 0
    c.network = ConfigDict({"name": "mlp", "width": 512, "depth": 3, "refine": refine, "dtype": "float32"})
    c.update({"batch_size": 128, "lr": 1e-3})


def _for_grids(c: Config, info: DataInfo) -> None:
    c.network = ConfigDict({"name": "unet", **_unet(info)})
    c.update({"batch_size": 64, "lr": 2e-3, "steps": 8_000})


def _unet(info: DataInfo) -> dict[str, Any]:
    sides, multipliers, attention = info.model_shape[:-1], [1], []
    pixels = math.prod(sides)
    while len(multipliers) < 4 and all(side % 2 == 0 and side // 2 >= SMALLEST_SIDE for side in sides):
        sides = tuple(side // 2 for side in sides)
        multipliers.append(2)
    if math.prod(sides) <= ATTENDED or has_sequence(info.fields):
        attention = [sides[0]]
    return {
        "width": 32 if pixels <= 32**2 else 64,
        "multipliers": tuple(multipliers),
        "blocks": 1,
        "attention": tuple(attention),
        "dtype": "float32",
    }


def _minutes_of_unet(info: DataInfo) -> float:
    """Returns about how long the U-Net takes for ``ENOUGH`` steps on the cores of this CPU; traces it."""
    network = as_network(lambda rngs: UNet(info.model_shape, info.fields, **_unet(info), rngs=rngs))
    params = jax.eval_shape(network.init, jax.random.key(0))
    forward = flops(network.velocity, params, *abstract_inputs(info.model_shape, info.fields, 64))
    return 3 * forward * ENOUGH / (SPEED * (os.cpu_count() or 1)) / 60  # the gradient costs twice as much again
