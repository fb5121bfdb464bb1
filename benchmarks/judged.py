"""What the benchmarks that judge images of a run begin with."""

from pathlib import Path

import numpy as np

from flowguide import build, config, sampling
from flowguide.errors import UserError
from flowguide.evaluation.shown import shown
from flowguide.schema import Batch


def load(workdir: str | None) -> tuple[sampling.Model, Batch, Batch]:
    """Returns the model of a run, and all that it was trained and tested on.

    Raises:
      UserError: if no folder is given, or it holds no run.
    """
    if workdir is None:
        raise UserError("expected --workdir=DIR, a folder that train.py has written")
    model, c = sampling.load(workdir), config.read_config(Path(workdir))
    parts = build.Splits(*(build.dataset(c, s, model.info.fields) for s in (c.data.split, c.data.test_split)))
    parts = shown(parts, model)  # latents become images
    real, held_out = (d.read(np.arange(d.size)) for d in parts)
    return model, real, held_out
