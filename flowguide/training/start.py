"""The parameters that training starts from, if they are those of another run: fine-tuning."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np

from flowguide import processes, sampling, storage
from flowguide.config import Config
from flowguide.errors import UserError, listed
from flowguide.model import Model
from flowguide.networks import leaves_by_path
from flowguide.training.step import TrainState

CONDITION = "condition/"  # where our networks have the embeddings of the condition's fields


def load_start(config: Config, model: Model) -> dict[str, np.ndarray] | None:
    """Returns the averaged parameters of the run ``config.init`` by path; None without such a run.

    Embeddings of the condition are left out if the other run's have another shape, because it has other classes, say.
    The main process names those that so start afresh.

    Raises:
      UserError: if the run cannot be loaded, or has another network.
    """
    if not config.init:
        return None
    workdir = storage.path(config.init)
    theirs = leaves_by_path(sampling.load(workdir, decode=False).params)
    own = leaves_by_path(jax.eval_shape(model.network.init, jax.random.key(0)))
    apart = [k for k in {**theirs, **own} if k not in theirs or k not in own or theirs[k].shape != own[k].shape]
    if other := [name for name in apart if not name.startswith(CONDITION)]:
        raise UserError(
            f"init: the run in {workdir} has another network than this run, by {listed(other, 3)}: take its network "
            "settings, which are in its config.json"
        )
    fresh = [name for name in apart if name in own]
    if fresh and processes.is_main_process():
        print(f"init: {workdir} has no {listed(fresh, 5)} of these shapes: they start afresh", file=sys.stderr)
    return {name: np.asarray(a, own[name].dtype) for name, a in theirs.items() if name not in apart}


def started(state: TrainState, start: dict[str, np.ndarray]) -> TrainState:
    """Returns a fresh state with the parameters that ``load_start`` returned; their average starts from them too."""
    leaves = [
        processes.put(start[name], leaf.sharding) if name in start else leaf
        for name, leaf in leaves_by_path(state.params).items()
    ]
    params = jax.tree.unflatten(jax.tree.structure(state.params), leaves)
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
