"""Looks at the guided flow before, or beside, sampling: where its steps should be, and how far c and ∅ are apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from flowguide import guidance, paths, solvers
from flowguide.errors import UserError
from flowguide.sampling.checks import check, resolve_defaults
from flowguide.sampling.conditions import Cond, number
from flowguide.sampling.config import DEFAULT, SamplerConfig, ask, guided, nodes
from flowguide.sampling.run import Run
from flowguide.typing import Array, PyTree


def fit_grid(
    run: Run,
    cond: Cond,
    *,
    gamma: float | np.ndarray = 1.0,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    method: SamplerConfig = DEFAULT,
    seed: int = 0,
    iterations: int = 30,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[float, ...]:
    """The grid of ``method.steps`` steps on which these guided samples come closest to the exact flow.

    ``solvers.fit_grid`` with pilot noise of its own, on one device; the nodes are for ``SamplerConfig.grid``.

    Args:
      run: from ``load``.
      cond: the conditions of the pilot samples, one each, of all that the grid is to serve: 64 are enough.
      gamma: guidance scale γ, for all or for each.
      negative: as in ``sample``.
      gamma_negative: as in ``sample``.
      method: how to integrate; its grid is not read.
      seed: of the samples to be drawn; the pilot's noise is other noise.
      iterations: of the fit.
      progress: see ``solvers.fit_grid``.

    Raises:
      UserError: for settings that cannot be, and solvers that no grid can be fitted to.
    """
    method = resolve_defaults(method)
    check_fit(method)
    num = number(cond, None, 1, run.info.fields)
    request, weights = ask(run, cond, num, gamma, negative, gamma_negative)
    check(run, request, weights, method)
    gamma_conditioned = run.gammas is not None
    velocity, _ = guided(run.network, None, gamma_conditioned, run.path, method, (run.params, None), request, weights)
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # no sample has this number
    noise = jax.random.normal(key, (num, *run.info.shape))
    solver = solvers.SOLVERS[str(method.solver)](paths.PATHS[run.path]())
    try:
        ts = solvers.fit_grid(solver, velocity, noise, method.steps, iterations=iterations, progress=progress)
    except (ValueError, TypeError) as error:
        raise UserError(f"no grid could be fitted: {error}") from error
    return tuple(float(t) for t in ts)


def check_fit(method: SamplerConfig) -> None:
    """Raises ``UserError`` where no grid can be fitted; ``method`` is resolve_defaults."""
    _check_deterministic(method, "a grid is fitted to")


def check_gap(method: SamplerConfig, run: Run | None = None) -> None:
    """Raises ``UserError`` where ``gap`` has nothing to measure along, or of a run; ``method`` is resolve_defaults."""
    _check_deterministic(method, "the gap is measured along")
    if method.guidance == "autoguidance":
        raise UserError("the gap is that of one network, u(x, c) and u(x, ∅); got guidance 'autoguidance'")
    if run is not None and (run.gammas is not None or not run.has_null):
        raise UserError("the gap is that of u(x, c) and u(x, ∅), and this network knows no ∅: take a plain run")


def gap(
    run: Run,
    cond: Cond,
    *,
    num: int = 32,
    gamma: float = 1.0,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    method: SamplerConfig = DEFAULT,
    seed: int = 0,
) -> guidance.Gap:
    """How u(x, c) and u(x, ∅) differ along a guided solve, see ``guidance.gap``; arguments as in ``sample``.

    Raises:
      UserError: for settings that cannot be, and solvers that have no steps of their own or no reference to look at.
    """
    method = resolve_defaults(method)
    check_gap(method, run)
    request, weights = ask(run, cond, num, gamma, negative, gamma_negative)
    check(run, request, weights, method)
    solver = solvers.SOLVERS[str(method.solver)](paths.PATHS[run.path]())

    @jax.jit
    def measured(params: PyTree, x0: Array) -> guidance.Gap:
        velocity, _ = guided(run.network, None, False, run.path, method, (params, None), request, weights)
        return guidance.gap(partial(run.network.velocity, params), request.c, solver, velocity, x0, nodes(method))

    return measured(run.params, jax.random.normal(jax.random.key(seed), (num, *run.info.shape)))


def _check_deterministic(method: SamplerConfig, what: str) -> None:
    if method.solver not in solvers.SOLVERS or method.sampler != "flow":
        names = ", ".join(sorted(solvers.SOLVERS))
        raise UserError(f"{what} {names}; got {method.solver}, sampler {method.sampler}")
