"""What the benchmarks that judge images of a run begin with."""

from pathlib import Path

import numpy as np

from flowguide import build, sampling
from flowguide.data import Batch
from flowguide.errors import UserError


def load(workdir: str | None) -> tuple[sampling.Run, Batch, Batch]:
    """A run, and all that it was trained and tested on.

    Raises:
      UserError: if no folder is given, or it holds no run.
    """
    if workdir is None:
        raise UserError("expected --workdir=DIR, a folder that train.py has written")
    run, config = sampling.load(workdir), build.read_config(Path(workdir))
    parts = [build.dataset(config, s, run.info.fields) for s in (config.data.split, config.data.test_split)]
    real, held_out = (d.read(np.arange(d.size)) for d in parts)
    return run, real, held_out
