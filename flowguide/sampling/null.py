"""Whether a network learned its null token ∅: guidance by one that it never trained does nothing, or harm."""

from __future__ import annotations

import contextlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowguide import storage
from flowguide.condition import Condition, bind, concatenate, given
from flowguide.condition import null as nothing
from flowguide.config import read_config
from flowguide.model import Guided, Model, Plain
from flowguide.schema import DataInfo
from flowguide.typing import Array, PyTree

NULL_FILE = "null.json"  # beside the run: what check_null found


class Null(NamedTuple):
    """Whether a network learned ∅.

    Attributes:
      untouched: fields whose null token is the same as before training.
      gap: ‖u_c − u_∅‖/‖u_c‖ half-way, over made-up conditions with every field present.
    """

    untouched: tuple[str, ...]
    gap: float


def guided_by_null(model: Model) -> bool:
    """Returns whether guidance of this model uses u(t, x, ∅), so that its null tokens matter."""
    return isinstance(model.guidance, Plain | Guided) and bool(model.info.fields)


def check_null(model: Model, seed: int) -> Null:
    """Returns whether the null tokens of a model were trained, and whether they make a difference; one small program.

    Args:
      model: from ``load``. Its parameters may be spread over devices, also those of several processes, which must then
        make this call together.
      seed: of the training run, from which its first parameters follow.
    """
    names = [_names(place) for place, _ in jax.tree_util.tree_flatten_with_path(model.params)[0]]
    tokens = [i for i, name in enumerate(names) if name[-1:] == ["null"]]

    @jax.jit
    def look(params: PyTree) -> tuple[list[Array], Array]:
        init_key, *_ = jax.random.split(jax.random.key(seed), 3)
        first, now = jax.tree.leaves(model.network.init(init_key)), jax.tree.leaves(params)
        # Another program may round what it draws in another way.
        same = [jnp.all(jnp.abs(now[i] - first[i]) <= 1e-6 * jnp.abs(first[i])) for i in tokens]
        x, c = _made_up(model.info)
        u = bind(partial(model.network.velocity, params), concatenate(c, nothing(c)))(
            jnp.float32(0.5), jnp.concatenate([x, x])
        )
        u, null = jnp.split(u, 2)
        return same, jnp.linalg.norm(u - null) / jnp.linalg.norm(u)

    same, gap = look(model.params)
    return Null(tuple(names[i][-2] for i, untouched in zip(tokens, same, strict=True) if untouched), float(gap))


def kept_null(workdir: str | Path, model: Model) -> Null:
    """Returns the verdict of ``check_null`` that ``workdir`` keeps for this step, or makes and keeps it."""
    workdir = storage.path(workdir)
    try:
        kept = json.loads(storage.read_text(workdir / NULL_FILE))
        if kept["step"] == model.step:
            return Null(tuple(kept["untouched"]), float("nan" if kept["gap"] is None else kept["gap"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not one of ours
    null = check_null(model, read_config(workdir, trusted=None).seed)
    keep_null(workdir, model.step, null)
    return null


def keep_null(workdir: Path, step: int, null: Null) -> None:
    """Writes the verdict on the checkpoint of ``step`` for ``kept_null`` to find, if the folder can be written to."""
    gap = null.gap if math.isfinite(null.gap) else None  # JSON has no NaN
    kept = {"step": step, "untouched": null.untouched, "gap": gap}
    with contextlib.suppress(OSError):  # a folder of someone else, a full disk: the verdict can be made again
        storage.replace_text(workdir / NULL_FILE, json.dumps(kept) + "\n")


def _names(place: tuple[Any, ...]) -> list[str]:
    return [str(key.key) for key in place if isinstance(key, jax.tree_util.DictKey)]


def _made_up(info: DataInfo) -> tuple[Array, Condition]:
    """16 examples of noise, with conditions in which every field is present."""
    keys = jax.random.split(jax.random.key(0), 1 + len(info.fields))
    value = {name: field.random(key, 16) for key, (name, field) in zip(keys[1:], info.fields.items(), strict=True)}
    return jax.random.normal(keys[0], (16, *info.model_shape)), given(value)
