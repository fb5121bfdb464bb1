"""Loads the model of a training run."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from flowguide import checkpoint, storage
from flowguide.config import read_config
from flowguide.errors import UserError
from flowguide.kinds import checked
from flowguide.model import Model, from_config
from flowguide.networks import Network
from flowguide.schema import info_from_json


@checked
def load(
    workdir: str | Path, step: int | None = None, *, trust_code: bool = False, network: Network | None = None
) -> Model:
    """Loads the model in ``workdir``, with the averaged parameters of one of its checkpoints.

    Args:
      workdir: of the run; also an address, ``gs://bucket/run``.
      step: of the checkpoint; None for the newest or, if the config says so (``use``), the best in validation.
      trust_code: allow the import of a network from outside flowguide, if the run names one.
      network: the network that was passed to ``fit`` as an object; no file holds it.

    Raises:
      UserError: if there is no run or checkpoint, it cannot be read, it is a classifier, or it names foreign code that
        is not trusted.
    """
    workdir = storage.path(workdir)
    config = read_config(workdir, trusted=None if trust_code else "")
    if config.task != "flow":
        raise UserError(f"{workdir} holds a {config.task}, which draws nothing: give a run of a velocity")
    file = workdir / "info.json"
    try:
        content = json.loads(storage.read_text(file))
        info = info_from_json(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): restore it from a copy, or from the run's command"
        ) from error
    model = from_config(config, info, network)
    like = jax.eval_shape(model.network.init, jax.random.key(0))
    best = checkpoint.best_step(workdir) if step is None and config.use == "best" else None
    params, step = checkpoint.restore_ema(workdir, like, step, content, best=best)
    return model._replace(params=params, step=step)
