"""Looks at the guided flow before, or beside, sampling: where its steps should be, and how far c and ∅ are apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from flowguide import guidance, paths, solvers
from flowguide.errors import UserError
from flowguide.sampling.checks import check, settled
from flowguide.sampling.conditions import Cond, number
from flowguide.sampling.method import DEFAULT, Method, ask, guided, nodes
from flowguide.sampling.run import Run
from flowguide.typing import Array, PyTree


def fit_grid(
    run: Run,
    cond: Cond,
    *,
    gamma: float | np.ndarray = 1.0,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    method: Method = DEFAULT,
    seed: int = 0,
    iterations: int = 30,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[float, ...]:
    """The grid of ``method.steps`` steps on which these guided samples come closest to the exact flow.

    ``solvers.fit_grid`` with pilot noise of its own, on one device; the nodes are for ``Method.grid``.

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
    method = settled(method)
    check_fit(method)
    num = number(cond, None, 1, run.info.fields)
    wanted, weights = ask(run, cond, num, gamma, negative, gamma_negative)
    check(run, wanted, weights, method)
    told = run.gammas is not None
    velocity, _ = guided(run.network, None, told, run.path, method, (run.params, None), wanted, weights)
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # no sample has this number
    noise = jax.random.normal(key, (num, *run.info.shape))
    solver = solvers.SOLVERS[str(method.solver)](paths.PATHS[run.path]())
    try:
        ts = solvers.fit_grid(solver, velocity, noise, method.steps, iterations=iterations, progress=progress)
    except (ValueError, TypeError) as error:
        raise UserError(f"no grid could be fitted: {error}") from error
    return tuple(float(t) for t in ts)


def check_fit(method: Method) -> None:
    """Raises ``UserError`` where no grid can be fitted; ``method`` is settled."""
    _check_deterministic(method, "a grid is fitted to")


def check_gap(method: Method, run: Run | None = None) -> None:
    """Raises ``UserError`` where ``gap`` has nothing to measure along, or of a run; ``method`` is settled."""
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
    method: Method = DEFAULT,
    seed: int = 0,
) -> guidance.Gap:
    """How u(x, c) and u(x, ∅) differ along a guided solve, see ``guidance.gap``; arguments as in ``sample``.

    Raises:
      UserError: for settings that cannot be, and solvers that have no steps of their own or no reference to look at.
    """
    method = settled(method)
    check_gap(method, run)
    wanted, weights = ask(run, cond, num, gamma, negative, gamma_negative)
    check(run, wanted, weights, method)
    solver = solvers.SOLVERS[str(method.solver)](paths.PATHS[run.path]())

    @jax.jit
    def measured(params: PyTree, x0: Array) -> guidance.Gap:
        velocity, _ = guided(run.network, None, False, run.path, method, (params, None), wanted, weights)
        return guidance.gap(partial(run.network.velocity, params), wanted.c, solver, velocity, x0, nodes(method))

    return measured(run.params, jax.random.normal(jax.random.key(seed), (num, *run.info.shape)))


def _check_deterministic(method: Method, what: str) -> None:
    if method.solver not in solvers.SOLVERS or method.sampler != "flow":
        names = ", ".join(sorted(solvers.SOLVERS))
        raise UserError(f"{what} {names}; got {method.solver}, sampler {method.sampler}")
