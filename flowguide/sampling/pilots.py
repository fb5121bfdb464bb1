"""Looks at the guided flow before or beside sampling: where its steps should be, and how far apart c and ∅ are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from flowguide import guidance, solvers
from flowguide.errors import UserError
from flowguide.model import GammaConditioned, Model, NoNull
from flowguide.sampling.checks import check, resolve_defaults
from flowguide.sampling.config import DEFAULT, SamplerConfig, nodes
from flowguide.sampling.guided import gamma_conditioned_velocity, guided_velocity, weak_velocity
from flowguide.sampling.request import SampleRequest, request
from flowguide.schema.conditions import Cond, sample_count
from flowguide.typing import Array, PyTree, Velocity


def fit_grid(
    model: Model,
    cond: Cond,
    *,
    gamma: float | np.ndarray | None = None,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    config: SamplerConfig = DEFAULT,
    seed: int = 0,
    iterations: int = 30,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[float, ...]:
    """Returns the grid of ``config.steps`` steps on which these guided samples come closest to the exact flow.

    ``solvers.fit_grid`` with pilot noise of its own, on one device; the nodes are for ``SamplerConfig.grid``.

    Args:
      model: from ``load``.
      cond: conditions of the pilot samples, one each, that represent all the grid is for: 64 are enough.
      gamma: guidance scale γ, for all or for each; default as in ``sample``.
      negative: as in ``sample``.
      gamma_negative: as in ``sample``.
      config: how to integrate; its grid is not read.
      seed: of the samples to be drawn; the pilot's noise differs from theirs.
      iterations: of the fit.
      progress: see ``solvers.fit_grid``.

    Raises:
      UserError: for settings that cannot be, and solvers that no grid can be fitted to.
    """
    config = resolve_defaults(config, model)
    check_fit(config)
    num = sample_count(cond, None, 1, model.info.fields)
    asked = request(model, cond, num, gamma, negative, gamma_negative)
    check(model, asked, config)
    velocity = _guided(model, model.params, config, asked)
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # no sample has this number
    noise = jax.random.normal(key, (num, *model.info.model_shape))
    solver = solvers.SOLVERS[str(config.solver)](model.path)
    try:
        ts = solvers.fit_grid(solver, velocity, noise, config.steps, iterations=iterations, progress=progress)
    except (ValueError, TypeError) as error:
        raise UserError(f"no grid could be fitted: {error}") from error
    return tuple(float(t) for t in ts)


def check_fit(config: SamplerConfig) -> None:
    """Raises ``UserError`` if no grid can be fitted; ``config`` is resolved."""
    _check_deterministic(config, "a grid is fitted to")


def check_gap(config: SamplerConfig, model: Model | None = None) -> None:
    """Raises ``UserError`` if ``gap`` cannot measure along this solve, or of this model; ``config`` is resolved."""
    _check_deterministic(config, "the gap is measured along")
    if config.guidance == "autoguidance":
        raise UserError("the gap is that of one network, u(x, c) and u(x, ∅); got guidance 'autoguidance'")
    if model is not None and isinstance(model.guidance, GammaConditioned | NoNull):
        raise UserError("the gap is that of u(x, c) and u(x, ∅), and this network knows no ∅: take a plain model")


def gap(
    model: Model,
    cond: Cond,
    *,
    num: int = 32,
    gamma: float | None = None,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    config: SamplerConfig = DEFAULT,
    seed: int = 0,
) -> guidance.Gap:
    """Measures how u(x, c) and u(x, ∅) differ along a guided solve, see ``guidance.gap``; arguments as in ``sample``.

    Raises:
      UserError: for settings that cannot be, and solvers without steps of their own or a reference to compare with.
    """
    config = resolve_defaults(config, model)
    check_gap(config, model)
    asked = request(model, cond, num, gamma, negative, gamma_negative)
    check(model, asked, config)
    solver = solvers.SOLVERS[str(config.solver)](model.path)

    @jax.jit
    def measured(params: PyTree, x0: Array) -> guidance.Gap:
        velocity = _guided(model, params, config, asked)
        return guidance.gap(partial(model.network.velocity, params), asked.c, solver, velocity, x0, nodes(config))

    return measured(model.params, jax.random.normal(jax.random.key(seed), (num, *model.info.model_shape)))


def _guided(
    model: Model, params: PyTree, config: SamplerConfig, asked: SampleRequest
) -> Velocity | solvers.StatefulVelocity:
    velocity = partial(model.network.velocity, params)
    if isinstance(model.guidance, GammaConditioned):
        return gamma_conditioned_velocity(velocity, asked)[0]
    weak = weak_velocity(model.network, params, None, None, config.perturbation)
    return guided_velocity(velocity, model.path, config, asked, weak)[0]


def _check_deterministic(config: SamplerConfig, what: str) -> None:
    if config.solver not in solvers.SOLVERS or config.sampler != "flow":
        names = ", ".join(sorted(solvers.SOLVERS))
        raise UserError(f"{what} {names}; got {config.solver}, sampler {config.sampler}")
    if config.guidance in guidance.methods.RANDOM:
        raise UserError(f"{what} a flow that is the same each time, and guidance {config.guidance!r} draws: use 'cfg'")
