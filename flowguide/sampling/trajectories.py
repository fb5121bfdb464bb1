"""Samples on their way from noise to data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowguide.errors import UserError
from flowguide.kinds import checked
from flowguide.model import Model
from flowguide.sampling.batches import batches, in_a_row
from flowguide.sampling.checks import check, check_counts, resolve_defaults
from flowguide.sampling.config import ADAPTIVE, DEFAULT, SamplerConfig, nodes
from flowguide.sampling.draw import in_batches
from flowguide.sampling.request import request
from flowguide.schema.conditions import Cond, sample_count
from flowguide.typing import Device


class Trajectory(NamedTuple):
    """Samples on their way from noise to data.

    Attributes:
      t: nodes of the grid, float32 ``(N + 1,)``, from 0 to 1.
      x: x_t of each sample, as the kind of example is shown, ``(num, N + 1, *D)``; noise is clipped to the range of
        pixels.
    """

    t: np.ndarray
    x: np.ndarray


@checked
def trajectory(
    model: Model,
    cond: Cond = "",
    *,
    num: int | None = None,
    gamma: float | np.ndarray | None = None,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[Cond, float]] = (),
    weak: Model | None = None,
    config: SamplerConfig = DEFAULT,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
    progress: bool = False,
) -> Trajectory:
    """Draws the samples of ``sample`` with the same arguments, and returns x_t at all nodes of the grid.

    Raises:
      UserError: as ``sample``, and for solvers that choose their own steps.
    """
    config = resolve_defaults(config, model)
    num = sample_count(cond, num, 64, model.info.fields)
    check_counts(seed, num=num, batch_size=batch_size)
    if config.sampler == "fkc" or config.solver in ADAPTIVE:
        which = "sampler 'fkc' resamples its particles" if config.sampler == "fkc" else f"{config.solver} has no grid"
        raise UserError(f"a trajectory is that of a solver on a grid, and {which}: use the sampler 'flow' with 'heun'")
    asked = request(model, cond, num, gamma, negative, gamma_negative, compose)
    check(model, asked, config, weak)
    over = in_a_row(devices)
    parts = batches(asked, num, batch_size, seed, over, progress=progress, first=first)
    x, _ = in_batches(model, weak, config, over, parts, states=True)
    return Trajectory(np.asarray(nodes(config)), model.output(x, asked.c))
