"""Adams methods: one evaluation per step, using the velocities of previous steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowguide.solvers.solver import Solver, advance
from flowguide.typing import Array, PyTree, Velocity


def ab2() -> Solver:
    """Adams-Bashforth of order 2 on any grid, one evaluation per step; the first step is Euler's.

    x' = x + dt[(1 + q)u_n − q·u_{n−1}], q = dt/(2·dt_prev) (Hairer, Nørsett & Wanner 1993, §III.5).
    """

    def init(x: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, x), jnp.asarray(jnp.inf)  # makes q = 0 in the first step

    def step(velocity: Velocity, memory: PyTree, x: PyTree, t: Array, t_next: Array) -> tuple[PyTree, PyTree]:
        previous, dt_previous = memory
        dt = t_next - t
        q = dt / (2 * dt_previous)
        slope = velocity(t, x)
        x = advance(x, dt, (1 + q, -q), (slope, previous))
        kept = jax.tree.map(lambda s, p: s.astype(p.dtype), slope, previous)
        return x, (kept, dt.astype(dt_previous.dtype))

    return Solver(init, step, (0.0,))


def ab3() -> Solver:
    """Adams-Bashforth of order 3 on any grid: one evaluation per step, and one extra in the first step.

    It integrates the quadratic through the last three velocities over the step (Hairer, Nørsett & Wanner 1993, §III.5).
    The first step is Heun's, because Euler's would limit the whole solve to order 2; the second step has order 2.
    """

    def init(x: PyTree) -> PyTree:
        zero, far = jax.tree.map(jnp.zeros_like, x), jnp.asarray(jnp.inf)
        return zero, zero, far, far

    def step(velocity: Velocity, memory: PyTree, x: PyTree, t: Array, t_next: Array) -> tuple[PyTree, PyTree]:
        last, older, h1, h2 = memory
        h = t_next - t
        slope = velocity(t, x)
        first = jnp.isinf(h1)
        r1, r2 = h / h1, h / (h1 + h2)  # both 0 if there is no past
        q = jnp.where(first, 0.0, h1 / (jnp.where(first, 1.0, h1) + h2))
        w1 = -r1 * (1 / 2 + r2 / 3) / (1 - q)
        w2 = r2 * (q / 2 + r2 / 3) / (1 - q)
        new = advance(x, h, (1 - w1 - w2, w1, w2), (slope, last, older))

        def heun(x: PyTree) -> PyTree:
            return advance(x, h, (1 / 2, 1 / 2), (slope, velocity(t_next, new)))

        new = jax.lax.cond(first, heun, lambda x: new, x)  # with no past, new is Euler's step
        kept = jax.tree.map(lambda s, p: s.astype(p.dtype), slope, last)
        return new, (kept, last, h.astype(h1.dtype), h1)

    return Solver(init, step, (0.0,), (0.0, 1.0))


def abm3() -> Solver:
    """Adams-Bashforth-Moulton of order 3 on any grid: one evaluation per step, also in the first.

    AB2 predicts. The evaluation at its result, which the next step needs anyway, is also used to correct it before that
    step starts, by the exact integral of the quadratic through the last three velocities (Adams-Moulton of order 3):
    the PEC mode of Hairer, Nørsett & Wanner 1993, §III.1, p. 360. The last node is not corrected; the error of its one
    step is of third order anyway. Unlike ``ab3`` it needs no extra evaluation to start. Like ``ab3`` it can be unstable
    with very few steps and strong guidance.
    """

    def init(x: PyTree) -> PyTree:
        zero = jax.tree.map(jnp.zeros_like, x)
        return x, zero, zero, jnp.zeros(()), jnp.zeros(())

    def step(velocity: Velocity, memory: PyTree, x: PyTree, t: Array, t_next: Array) -> tuple[PyTree, PyTree]:
        # The step that led to x: the state at its start, u there and at the node before, its width, the one before.
        start, last, older, h1, h2 = memory
        slope = velocity(t, x)
        past, safe1, safe2 = h1 != 0, jnp.where(h1 == 0, 1.0, h1), jnp.where(h2 == 0, 1.0, h2)
        # The trapezoid, minus h1³/6 times the second divided difference of the velocity once there are three of them.
        bend = jnp.where(h2 == 0, 0.0, h1 / (6 * (h1 + safe2)))
        weights = 1 / 2 - bend, 1 / 2 + bend * (1 + h1 / safe2), -bend * h1 / safe2
        corrected = advance(start, h1, weights, (slope, last, older))
        x = jax.tree.map(lambda c, x: jnp.where(past, c, x), corrected, x)
        h = t_next - t
        q = jnp.where(past, h / (2 * safe1), 0.0)
        new = advance(x, h, (1 + q, -q), (slope, last))
        kept = jax.tree.map(lambda s, p: s.astype(p.dtype), slope, last)
        return new, (x, kept, last, h.astype(h1.dtype), h1)

    return Solver(init, step, (0.0,))
