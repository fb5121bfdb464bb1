"""What is compared: settings of guidance and solver, the models they are drawn from, and the conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide.condition import Condition
from flowguide.data import Dataset
from flowguide.errors import UserError
from flowguide.hashes import json_hash, leaf_hashes
from flowguide.model import GammaConditioned, Model, Plain
from flowguide.sampling import ADAPTIVE, SamplerConfig, nodes, request, resolve_defaults
from flowguide.sampling.checks import check as check_request
from flowguide.schema import blank, condition, stored

GAMMAS = (1.0, 1.5, 2.0, 3.0, 5.0)
OTHER = "other"  # as a negative condition; a class of this name is "label=other"


class Setting(NamedTuple):
    """One row of the result.

    Attributes:
      model: to sample from.
      gamma: guidance scale γ.
      config: how to guide and integrate, with the defaults of its sampler resolved.
      weights: what the model's weights are called: "newest", "best" or a training step.
      weak: the weaker model of guidance "autoguidance".
      negatives: prompts to move away from, the same for all samples; ``OTHER`` is the condition of another example.
      gamma_negative: their weight γ_n; not used if ``config.replace_null``.
    """

    model: Model
    gamma: float
    config: SamplerConfig
    weights: str = "newest"
    weak: Model | None = None
    negatives: tuple[str, ...] = ()
    gamma_negative: float = 1.0


def settings(
    models: Model | Mapping[str, Model],
    gammas: Sequence[float] | None = None,
    configs: Iterable[SamplerConfig] = (SamplerConfig(),),
    weak: Model | None = None,
    negatives: Sequence[str] = (),
    gamma_negative: float = 1.0,
) -> list[Setting]:
    """Returns all combinations of models, configs and scales.

    Args:
      models: one, or several by the names of their weights.
      gammas: guidance scales; by default ``default_gammas``.
      configs: how to guide and integrate.
      weak: the weaker model, where the guidance is "autoguidance".
      negatives: prompts to move away from, in all of them; ``OTHER`` is the condition of another example.
      gamma_negative: their weight γ_n.

    Raises:
      UserError: for settings that cannot be, whatever is asked.
    """
    by_name = {"newest": models} if isinstance(models, Model) else models
    found = []
    for (name, model), config in product(by_name.items(), configs):
        resolved, weaker = resolve_defaults(config, model), weak if config.guidance == "autoguidance" else None
        for gamma in default_gammas(model) if gammas is None else gammas:
            found.append(Setting(model, float(gamma), resolved, name, weaker, tuple(negatives), gamma_negative))
    return found


def default_gammas(model: Model) -> tuple[float, ...]:
    """Returns the scales of a sweep that names none: those of ``GAMMAS`` that the model can be guided by."""
    if isinstance(model.guidance, GammaConditioned):
        low, high = model.guidance
        return tuple(gamma for gamma in GAMMAS if low <= gamma <= high) or (low,)
    return GAMMAS if isinstance(model.guidance, Plain) and model.info.fields else (1.0,)


def check_setting(setting: Setting, c: Condition) -> None:
    """Raises ``UserError`` for a setting that its model cannot serve; ``c`` is a condition, batch 1."""
    if setting.config.sampler == "fkc":
        raise UserError("sampler 'fkc' draws many particles of each condition: evaluate takes flow and pc")
    if not setting.model.info.fields and setting.gamma != 1:
        raise UserError(f"the model has no conditions to be guided by: use gamma 1; got {setting.gamma:g}")
    away = [c if text == OTHER else text for text in setting.negatives]
    asked = request(setting.model, c, 1, setting.gamma, away, setting.gamma_negative)
    check_request(setting.model, asked, setting.config, setting.weak)


def conditions(data: Dataset, seed: int, first: int, num: int) -> Condition:
    """Returns the conditions of samples ``first`` to ``first + num`` - 1: those of examples in a random order.

    Every example is used equally often, and repeated if there are fewer than samples. A field that the data do not
    store, the known part of an example, is ∅.

    Args:
      data: held-out examples.
      seed: of the order.
      first: number of the first sample.
      num: number of samples.
    """
    order = np.random.default_rng(seed).permutation(data.size)
    value = data.read(order[np.arange(first, first + num) % data.size]).value
    fields = data.info.fields
    given = {name: name in stored(fields) for name in fields}
    values = {n: value[n] if given[n] else np.broadcast_to(blank(f), (num, *f.shape)) for n, f in fields.items()}
    return Condition(values, {name: np.full(num, given[name]) for name in fields})


def negative_conditions(setting: Setting, data: Dataset, seed: int, first: int, num: int) -> tuple[Condition, ...]:
    """Returns the negative conditions of samples ``first`` to ``first + num`` - 1; arguments as for ``conditions``.

    ``OTHER`` is the condition of the next example, in the order of ``conditions``, that has another one.

    Raises:
      UserError: if all held-out examples have the same condition.
    """
    return tuple(
        _others(data, seed, first, num) if text == OTHER else condition([text] * num, data.info.fields)
        for text in setting.negatives
    )


def _others(data: Dataset, seed: int, first: int, num: int) -> Condition:
    own = conditions(data, seed, first, num)
    found = conditions(data, seed, first + 1, num)
    for further in range(2, data.size + 1):
        same = np.all([_same(own.value[name], found.value[name]) for name in data.info.fields], axis=0)
        if not same.any():
            return found
        ahead = conditions(data, seed, first + further, num)
        found = jax.tree.map(lambda old, new: np.where(_rows(same, old), new, old), found, ahead)  # noqa: B023
    raise UserError(f"all held-out examples of {data.info.name} have one condition: {OTHER!r} has no other one to give")


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns for each row whether it is the same in both, bool ``(n,)``; NaN equals NaN."""
    a, b = (np.asarray(v).reshape(len(v), -1) for v in (a, b))
    return np.all((a == b) | ((a != a) & (b != b)), axis=1)


def _rows(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *(1,) * (like.ndim - 1))


def parameters_hash(model: Model) -> int:
    """Returns a hash of all parameters of a model."""
    return json_hash(leaf_hashes(model.params))


def describe(setting: Setting) -> dict[str, Any]:
    """Returns what to know of a setting to compare its numbers with others; JSON-serializable."""
    config = setting.config
    last = None
    if config.solver not in ADAPTIVE:
        ts = np.asarray(nodes(config), np.float64)
        last = round(float(ts[-1] - ts[-2]), 6)
    width = setting.model.ema
    average = {} if width is None else {"ema": {"name": "power", "std": width}}  # another than the run's
    return {
        "gamma": setting.gamma,
        **config._asdict(),
        "perturbation": config.perturbation._asdict(),
        "last_step_size": last,
        "weights": setting.weights,
        "train_step": setting.model.step,
        **average,
        "weak_step": None if setting.weak is None else setting.weak.step,
        "negatives": list(setting.negatives),
        "gamma_negative": setting.gamma_negative if setting.negatives and not config.replace_null else None,
    }
