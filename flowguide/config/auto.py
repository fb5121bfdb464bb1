"""A config for data that have none: network, size and steps from the kind and the number of examples."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from flowguide.config.choices import complete
from flowguide.config.defaults import Config, default
from flowguide.networks.embed import has_sequence
from flowguide.schema import DataInfo, Known

SMALLEST_SIDE = 4  # of the coarsest level of a U-Net
ATTENDED = 256  # positions of a level up to which its blocks have attention
MANY = 10**7  # steps, more than any limit of minutes allows


def config_for(info: DataInfo, size: int, *, timed: bool) -> Config:
    """Returns a complete config.

    Vectors get an MLP; signals, images and volumes a U-Net with as many levels as their sides can be halved.

    Args:
      info: of the data.
      size: number of examples to train on.
      timed: whether a limit of minutes ends the run rather than a number of steps.
    """
    c = default()
    vectors = len(info.model_shape) < 2 or max(info.model_shape[:-1]) < SMALLEST_SIDE
    c.network = ConfigDict(_mlp(info, size) if vectors else _unet(info))
    every = 500 if vectors else 250
    c.batch_size = 256 if vectors else 64
    c.lr = 1e-3 if vectors else 2e-3
    c.steps = MANY if timed else 20_000 if vectors else 8_000
    c.ema = ConfigDict({"name": "power", "std": 0.05})
    if vectors:
        c.times = ConfigDict({"name": "uniform"})  # narrow densities are made near t = 1
        # As of a prior of the weights: its part of the loss of all examples falls as 1/size.
        c.optimizer = ConfigDict({"name": "adamw", "weight_decay": min(1.0, 6000 / size)})
    c.stratified = True
    c.use = "best"  # a small set is soon learned by heart
    completes = any(isinstance(field, Known) for field in info.fields.values())
    if len(info.fields) > 2:
        c.drop_field_rate = (0.0, 1.0)
    elif completes and len(info.fields) > 1:
        c.drop_field_rate = (0.0, 0.5)  # a part is completed without the other condition as well
    else:
        c.drop_field_rate = (0.1, 0.1)
    c.log_every, c.eval_every, c.checkpoint_every = every // 10, every, every
    c.eval_examples = 1024 if vectors else 256
    c.preview.update({"every": 0 if timed else every, "gammas": (1.0, 2.0)})
    return complete(c)


def _mlp(info: DataInfo, size: int) -> dict[str, object]:
    # A wide network learns a small set by heart, and takes fewer steps a minute.
    width = 64 if size < 500 else 128 if size < 50_000 else 256
    width = max(width, min(512, 2 * math.prod(info.model_shape)))
    return {"name": "mlp", "width": width, "depth": 4}


def _unet(info: DataInfo) -> dict[str, object]:
    sides, multipliers, attention = info.model_shape[:-1], [1], []
    pixels = math.prod(sides)
    while len(multipliers) < 4 and all(side % 2 == 0 and side // 2 >= SMALLEST_SIDE for side in sides):
        sides = tuple(side // 2 for side in sides)
        multipliers.append(2)
    if math.prod(sides) <= ATTENDED or has_sequence(info.fields):
        attention = [sides[0]]
    width = 32 if pixels <= 32**2 else 64
    return {
        "name": "unet",
        "width": width,
        "multipliers": tuple(multipliers),
        "blocks": 1,
        "attention": tuple(attention),
        "dtype": "float32",
    }
