"""A training run, read back for sampling."""

from __future__ import annotations

import contextlib
import json
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowguide import build, checkpoint, prompts
from flowguide.condition import Condition, Label, Vector, bind, concatenate, given
from flowguide.condition import null as nothing
from flowguide.data import DataInfo, info_from_json
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.typing import Array, PyTree

NULL_FILE = "null.json"  # beside the run: what check_null found


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
    file = workdir / "info.json"
    try:
        content = json.loads(file.read_text())
        info = info_from_json(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): restore it from a copy, or from the run's command"
        ) from error
    network = build.network(config, info)
    like = jax.eval_shape(network.init, jax.random.key(0))
    params, step = checkpoint.restore_ema(workdir, like, step, content)
    guided = config.target.name == "model_guidance"
    return Run(info, network, params, step, config.drop_rate > 0, config.path, build.target(config).gammas, guided)


def guided_by_null(run: Run) -> bool:
    """Whether guidance of this run rests on u(t, x, ∅), so that its null tokens matter."""
    return run.has_null and bool(run.info.fields) and run.gammas is None


def check_null(run: Run, seed: int) -> Null:
    """Looks whether the null tokens of a run were trained, and whether they make a difference; one small program.

    Args:
      run: from ``load``. Its parameters may be spread over devices, of several processes too, which then must all call
        this together.
      seed: of the training run, from which its first parameters follow.
    """
    names = [_names(place) for place, _ in jax.tree_util.tree_flatten_with_path(run.params)[0]]
    tokens = [i for i, name in enumerate(names) if name[-1] == "null"]

    @jax.jit
    def look(params: PyTree) -> tuple[list[Array], Array]:
        init_key, *_ = jax.random.split(jax.random.key(seed), 3)
        first, now = jax.tree.leaves(run.network.init(init_key)), jax.tree.leaves(params)
        # Another program may round what it draws in another way.
        same = [jnp.all(jnp.abs(now[i] - first[i]) <= 1e-6 * jnp.abs(first[i])) for i in tokens]
        x, c = _made_up(run.info)
        u = bind(partial(run.network.velocity, params), concatenate(c, nothing(c)))(
            jnp.float32(0.5), jnp.concatenate([x, x])
        )
        u, null = jnp.split(u, 2)
        return same, jnp.linalg.norm(u - null) / jnp.linalg.norm(u)

    same, gap = look(run.params)
    return Null(tuple(names[i][-2] for i, untouched in zip(tokens, same, strict=True) if untouched), float(gap))


def kept_null(workdir: str | Path, run: Run) -> Null:
    """The verdict of ``check_null`` that ``workdir`` keeps for this step; without one it is made now, and kept."""
    workdir = Path(workdir)
    try:
        kept = json.loads((workdir / NULL_FILE).read_text())
        if kept["step"] == run.step:
            return Null(tuple(kept["untouched"]), float("nan" if kept["gap"] is None else kept["gap"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not one of ours
    null = check_null(run, build.read_config(workdir).seed)
    keep_null(workdir, run.step, null)
    return null


def keep_null(workdir: Path, step: int, null: Null) -> None:
    """Writes the verdict on the checkpoint of ``step`` where ``kept_null`` finds it, if the folder can be written."""
    gap = null.gap if math.isfinite(null.gap) else None  # JSON has no NaN
    kept = {"step": step, "untouched": null.untouched, "gap": gap}
    with contextlib.suppress(OSError):  # a folder of someone else, a full disk: the verdict can be made again
        build.replace_text(workdir / NULL_FILE, json.dumps(kept) + "\n")


def _names(place: tuple) -> list[str]:
    return [str(key.key) for key in place if isinstance(key, jax.tree_util.DictKey)]


def _made_up(info: DataInfo) -> tuple[Array, Condition]:
    """16 examples of noise, with conditions in which every field is present."""
    keys = jax.random.split(jax.random.key(0), 1 + len(info.fields))
    value = {}
    for key, (name, field) in zip(keys[1:], info.fields.items(), strict=True):
        if isinstance(field, Vector):
            value[name] = jax.random.normal(key, (16, field.size))
        else:
            count = len(field.values if isinstance(field, Label) else field.words)
            value[name] = jax.random.randint(key, (16, *prompts.blank(field).shape), 0, count)
    return jax.random.normal(keys[0], (16, *info.shape)), given(value)
