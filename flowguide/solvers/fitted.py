"""Grids fitted to one velocity and one solver: with few steps, their placement matters most."""

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
    """Returns the nodes ``(steps + 1,)`` from 0 to 1 on which ``solver`` ends closest to the exact flow.

    L-BFGS minimises the mean over pilot samples of the root mean square distance to the exact end over the N step
    widths, starting from equal ones; the gradient is taken through the solve (Watson et al. 2022, "Learning fast
    samplers", §3, do the same for a distance of distributions). The grid generalises to new noise, as N − 1 numbers
    hardly overfit; it is specific to the velocity, including its γ and condition, and to similar ones.

    The cost is the reference solution (40·steps evaluations of the pilot batch) and about 5·steps per iteration. L-BFGS
    runs on the host: do not jit this function.

    Args:
      solver: a deterministic method.
      velocity: t (), x -> dx/dt.
      x0: pilot noise ``(B, *D)``; 64 to 256 samples, covering all conditions that the grid is for.
      steps: N.
      exact: where the exact flow takes x0, ``(B, *D)``; by default from 10·N steps of RK4.
      iterations: maximum number of L-BFGS iterations.
      progress: called as progress(iteration, mean distance so far).

    Returns:
      Increasing nodes in the dtype of x0, exactly 0 first and 1 last: never worse on the pilot than equal steps.

    Raises:
      ValueError: if ``steps`` is not positive, or the solve with equal steps or the exact flow is not finite.
      TypeError: for a ``StatefulVelocity``, which has no exact flow.
    """
    from scipy.optimize import minimize  # imported here because no other solver needs scipy

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
        raise ValueError(
            f"the solve with {steps} equal steps, or the exact flow, is not finite: use more steps, or another velocity"
        )

    def objective(widths: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        value, slope = jax.device_get(log_distance(jnp.asarray(widths, x0.dtype)))
        if value < best[0]:
            best = float(value), _nodes(jnp.asarray(widths, x0.dtype))
        # The line search may reach widths where the solve overflows; a high value sends it back.
        return (float(value), slope.astype(float)) if np.isfinite(value) else (1e3, np.zeros(steps))

    done = itertools.count(1)

    def report(_: np.ndarray) -> None:
        if progress is not None:
            progress(next(done), float(np.exp(best[0])))

    options = {"maxiter": iterations}
    minimize(objective, np.zeros(steps), jac=True, method="L-BFGS-B", callback=report, options=options)
    return best[1]


def _nodes(widths: Array) -> Array:
    """Returns the nodes from the logarithms of the step widths, which are defined up to a constant."""
    inner = jnp.cumsum(jax.nn.softmax(widths))[:-1]
    return jnp.concatenate([jnp.zeros_like(widths, shape=1), inner, jnp.ones_like(widths, shape=1)])
