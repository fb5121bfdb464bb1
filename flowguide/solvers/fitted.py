"""A grid fitted to one velocity and one solver: where few steps are to do, where they lie matters most."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flowguide import times
from flowguide.solvers.runge_kutta import rk4
from flowguide.solvers.solver import Solver, StatefulVelocity, solve, vector_field
from flowguide.typing import Array, Velocity


def fit_grid(
    solver: Solver,
    velocity: Velocity | StatefulVelocity,
    x0: Array,
    steps: int,
    *,
    exact: Array | None = None,
    iterations: int = 60,
    progress: Callable[[int, float], None] | None = None,
) -> Array:
    """The nodes ``(steps + 1,)`` from 0 to 1 on which ``solver`` ends closest to the exact flow from pilot noise.

    The mean over the samples of the root mean square distance to the exact end is differentiated through the solve
    and minimised over the N widths of the steps by L-BFGS, starting from equal ones (as Watson et al. 2022, "Learning
    fast samplers", §3, do it for a distance of distributions). The grid serves new noise, as N − 1 numbers are little
    to overfit with; it is for the velocity it was fitted to, its γ and its condition included, and its neighbours.

    It costs the reference (40·steps evaluations of the pilot batch) and about 5·steps for each iteration. L-BFGS runs
    on the host: not to be jitted.

    Args:
      solver: the method, deterministic.
      velocity: t (), x -> dx/dt.
      x0: pilot noise ``(B, *D)``; 64 to 256 samples, of all conditions that the grid is to serve.
      steps: N.
      exact: where the flow takes x0, ``(B, *D)``; by default 10·N steps of RK4.
      iterations: of L-BFGS, at most.
      progress: called as progress(iteration, mean distance so far).

    Returns:
      Increasing nodes in the dtype of x0, exactly 0 first and 1 last: never worse on the pilot than equal steps.

    Raises:
      ValueError: if ``steps`` is not positive, or equal steps do not end anywhere finite.
      TypeError: for a ``StatefulVelocity``, which has no exact flow to come close to.
    """
    from scipy.optimize import minimize  # JAX needs scipy too, but nothing else of the solvers does

    velocity = vector_field(velocity, "a fitted grid")
    uniform = times.grid(steps).astype(x0.dtype)
    if exact is None:
        exact = jax.jit(lambda x: solve(rk4(), velocity, x, times.grid(10 * steps).astype(x.dtype)))(x0)

    @jax.jit
    @jax.value_and_grad
    def log_distance(widths: Array) -> Array:
        end = solve(solver, velocity, x0, _nodes(widths), checkpoint=True)
        squares = jnp.mean(jnp.square(end - exact).reshape(x0.shape[0], -1), axis=1)
        return jnp.log(jnp.mean(jnp.sqrt(squares + jnp.finfo(x0.dtype).tiny)))

    best = float(log_distance(jnp.zeros(steps, x0.dtype))[0]), uniform
    if not np.isfinite(best[0]):
        raise ValueError(f"the solve with {steps} equal steps, or the exact flow, is not finite: nothing to improve on")

    def objective(widths: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        value, slope = jax.device_get(log_distance(jnp.asarray(widths, x0.dtype)))
        if value < best[0]:
            best = float(value), _nodes(jnp.asarray(widths, x0.dtype))
        # A line search may step to where the solve overflows: a high value sends it back.
        return (float(value), slope.astype(float)) if np.isfinite(value) else (1e3, np.zeros(steps))

    done = itertools.count(1)

    def report(_: np.ndarray) -> None:
        if progress is not None:
            progress(next(done), float(np.exp(best[0])))

    options = {"maxiter": iterations}
    minimize(objective, np.zeros(steps), jac=True, method="L-BFGS-B", callback=report, options=options)
    return best[1]


def _nodes(widths: Array) -> Array:
    """Nodes from the logarithms of the widths of the steps, up to a constant."""
    inner = jnp.cumsum(jax.nn.softmax(widths))[:-1]
    return jnp.concatenate([jnp.zeros_like(widths, shape=1), inner, jnp.ones_like(widths, shape=1)])
