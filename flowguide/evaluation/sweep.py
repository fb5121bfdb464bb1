"""What is compared: settings of guidance and solver, the models they are drawn from, and the conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from flowguide.condition import Condition
from flowguide.data import Dataset
from flowguide.errors import UserError
from flowguide.hashes import json_hash, leaf_hashes
from flowguide.model import GammaConditioned, Model, Plain
from flowguide.sampling import ADAPTIVE, SamplerConfig, nodes, request, resolve_defaults
from flowguide.sampling.checks import check as check_request
from flowguide.schema import blank, stored

GAMMAS = (1.0, 1.5, 2.0, 3.0, 5.0)


class Setting(NamedTuple):
    """One row of the result.

    Attributes:
      model: to sample from.
      gamma: guidance scale γ.
      config: how to guide and integrate, with the defaults of its sampler resolved.
      weights: what the model's weights are called: "newest", "best" or a training step.
      weak: the weaker model of guidance "autoguidance".
    """

    model: Model
    gamma: float
    config: SamplerConfig
    weights: str = "newest"
    weak: Model | None = None


def settings(
    models: Model | Mapping[str, Model],
    gammas: Sequence[float] | None = None,
    configs: Iterable[SamplerConfig] = (SamplerConfig(),),
    weak: Model | None = None,
) -> list[Setting]:
    """Returns all combinations of models, configs and scales.

    Args:
      models: one, or several by the names of their weights.
      gammas: guidance scales; by default ``default_gammas``.
      configs: how to guide and integrate.
      weak: the weaker model, where the guidance is "autoguidance".

    Raises:
      UserError: for settings that cannot be, whatever is asked.
    """
    by_name = {"newest": models} if isinstance(models, Model) else models
    found = []
    for (name, model), config in product(by_name.items(), configs):
        resolved, weaker = resolve_defaults(config, model), weak if config.guidance == "autoguidance" else None
        for gamma in default_gammas(model) if gammas is None else gammas:
            found.append(Setting(model, float(gamma), resolved, name, weaker))
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
    check_request(setting.model, request(setting.model, c, 1, setting.gamma), setting.config, setting.weak)


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
    return {
        "gamma": setting.gamma,
        **config._asdict(),
        "perturbation": config.perturbation._asdict(),
        "last_step": last,
        "weights": setting.weights,
        "train_step": setting.model.step,
        "weak_step": None if setting.weak is None else setting.weak.step,
    }
