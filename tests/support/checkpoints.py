"""A finished run with two checkpoints, and how to read them."""

import shutil
from typing import Any, NamedTuple

import jax

from flowguide import build, checkpoint
from flowguide.data import batches
from flowguide.training import loop
from flowguide.training.assembly import assemble
from tests.support.runs import same, small


class Finished(NamedTuple):
    """A run of 12 steps that kept checkpoints of steps 8 and 12.

    Attributes:
      workdir: of the run.
      states: by step: the state, the stream at its position, and the meta that was saved.
      read: workdir -> these three, of its newest checkpoint.
    """

    workdir: Any
    states: dict[int, Any]
    read: Any


def finished(data_dir, folder):
    """Trains such a run in ``folder``."""
    workdir = folder / "run"
    config = small(data_dir, steps=12, eval_every=100)
    last = loop.train(config, workdir)
    data = build.dataset(config, config.data.split)
    like = assemble(config, data.info, jax.devices()).init(jax.random.key(9))

    def read(folder):
        with checkpoint.manager(folder) as saves:
            stream = batches(data, config.batch_size, config.seed)
            state, meta = checkpoint.restore(saves, like, stream)
            return state, stream, meta

    first = folder / "first"
    shutil.copytree(workdir, first)
    shutil.rmtree(first / "checkpoints" / "12")
    assert same(read(workdir)[0], last)
    return Finished(workdir, {8: read(first), 12: read(workdir)}, read)
