"""A training run, read back for sampling."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide import build, checkpoint, prompts
from flowguide.condition import Label, Vector, bind, given
from flowguide.condition import null as nothing
from flowguide.data import DataInfo, info_from_json
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.typing import PyTree


class Run(NamedTuple):
    """What sampling needs of a training run.

    Attributes:
      info: what the network was trained on.
      network: its functions.
      params: averaged parameters.
      step: of training, at which they were saved.
      has_null: whether conditions were dropped in training, so that ∅ means something.
      path: name of the path it was trained on (``paths.PATHS``).
      gammas: the range of γ that the network was taught, and is told; None for a plain one, guided by references.
      guided: the network is a guided velocity already, of one γ (``targets.model_guidance``).
    """

    info: DataInfo
    network: Network
    params: PyTree
    step: int
    has_null: bool
    path: str
    gammas: tuple[float, float] | None = None
    guided: bool = False


class Null(NamedTuple):
    """Whether a network knows ∅.

    Attributes:
      untouched: fields whose null token is what it was before training.
      gap: ‖u_c − u_∅‖/‖u_c‖ half-way, over made-up conditions with every field present.
    """

    untouched: tuple[str, ...]
    gap: float


def load(workdir: str | Path, step: int | None = None) -> Run:
    """The run in ``workdir``, with the averaged parameters of the newest checkpoint or of ``step``.

    Raises:
      UserError: if there is no run, or no checkpoint, or it cannot be read, or it is a classifier.
    """
    workdir = Path(workdir)
    config = build.read_config(workdir)
    if config.task != "flow":
        raise UserError(f"{workdir} holds a {config.task}, which draws nothing: give a run of a velocity")
    try:
        info = info_from_json(json.loads((workdir / "info.json").read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{workdir / 'info.json'} cannot be read ({error}): train.py writes it; run it again"
        ) from error
    network = build.network(config, info)
    like = jax.eval_shape(network.init, jax.random.key(0))
    params, step = checkpoint.restore_ema(workdir, like, step)
    guided = config.target.name == "model_guidance"
    return Run(info, network, params, step, config.drop_rate > 0, config.path, build.target(config).gammas, guided)


def check_null(run: Run, seed: int) -> Null:
    """Looks whether the null tokens of a run were trained, and whether they make a difference.

    Args:
      run: from ``load``.
      seed: of the training run, from which its first parameters follow.
    """
    init_key, _, _ = jax.random.split(jax.random.key(seed), 3)
    first = jax.tree_util.tree_flatten_with_path(run.network.init(init_key))[0]
    untouched = []
    for (place, before), now in zip(first, jax.tree.leaves(run.params), strict=True):
        names = [str(key.key) for key in place if isinstance(key, jax.tree_util.DictKey)]
        if names[-1] == "null" and np.array_equal(before, now):
            untouched.append(names[-2])
    keys = jax.random.split(jax.random.key(0), 1 + len(run.info.fields))
    value = {}
    for key, (name, field) in zip(keys[1:], run.info.fields.items(), strict=True):
        blank = prompts.blank(field)
        if isinstance(field, Vector):
            value[name] = jax.random.normal(key, (16, field.size))
        else:
            count = len(field.values if isinstance(field, Label) else field.words)
            value[name] = jax.random.randint(key, (16, *blank.shape), 0, count)
    x, c = jax.random.normal(keys[0], (16, *run.info.shape)), given(value)
    u, null = (bind(partial(run.network.velocity, run.params), each)(jnp.float32(0.5), x) for each in (c, nothing(c)))
    return Null(tuple(untouched), float(jnp.linalg.norm(u - null) / jnp.linalg.norm(u)))
