"""Looks at the guided flow before, or beside, sampling: where its steps should be, and how far c and ∅ are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from flowguide import guidance, paths, solvers
from flowguide.condition import Condition
from flowguide.errors import UserError
from flowguide.sampling.method import DEFAULT, Method, ask, check, guided, nodes, number, settled
from flowguide.sampling.run import Run
from flowguide.typing import Array, PyTree


def fit_grid(
    run: Run,
    cond: Sequence[str] | Condition,
    *,
    gamma: float | np.ndarray = 1.0,
    negative: Sequence[str | Condition] = (),
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
      cond: the conditions of the pilot samples, one prompt each, of all that the grid is to serve: 64 are enough.
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
    if method.solver not in solvers.SOLVERS or method.sampler != "flow":
        raise UserError(
            f"a grid is fitted to {', '.join(sorted(solvers.SOLVERS))}; got {method.solver}, sampler {method.sampler}"
        )
    num = number(cond, None, 1)
    wanted, weights = ask(run, cond, num, gamma, negative, gamma_negative)
    check(run, wanted, weights, method)
    told = run.gammas is not None
    velocity, _ = guided(run.network, None, told, run.path, method, (run.params, None), wanted, weights)
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # no sample has this number
    noise = jax.random.normal(key, (num, *run.info.shape))
    solver = solvers.SOLVERS[method.solver](paths.PATHS[run.path]())
    try:
        ts = solvers.fit_grid(solver, velocity, noise, method.steps, iterations=iterations, progress=progress)
    except (ValueError, TypeError) as error:
        raise UserError(f"no grid could be fitted: {error}") from error
    return tuple(float(t) for t in ts)


def gap(
    run: Run,
    cond: str,
    *,
    num: int = 32,
    gamma: float = 1.0,
    negative: Sequence[str] = (),
    gamma_negative: float = 1.0,
    method: Method = DEFAULT,
    seed: int = 0,
) -> guidance.Gap:
    """How u(x, c) and u(x, ∅) differ along a guided solve, see ``guidance.gap``; arguments as in ``sample``.

    Raises:
      UserError: for settings that cannot be, and solvers that have no steps of their own or no reference to look at.
    """
    method = settled(method)
    if method.solver not in solvers.SOLVERS or method.sampler != "flow" or run.gammas is not None:
        raise UserError(
            f"the gap is measured along {', '.join(sorted(solvers.SOLVERS))}, of a network that knows ∅; got "
            f"{method.solver}, sampler {method.sampler}"
        )
    wanted, weights = ask(run, cond, num, gamma, negative, gamma_negative)
    check(run, wanted, weights, method)
    solver = solvers.SOLVERS[method.solver](paths.PATHS[run.path]())

    @jax.jit
    def measured(params: PyTree, x0: Array) -> guidance.Gap:
        velocity, _ = guided(run.network, None, False, run.path, method, (params, None), wanted, weights)
        return guidance.gap(partial(run.network.velocity, params), wanted.c, solver, velocity, x0, nodes(method))

    return measured(run.params, jax.random.normal(jax.random.key(seed), (num, *run.info.shape)))
