"""Multistep methods: one evaluation a step, and a memory of the last one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowguide.solvers.solver import Solver, advance
from flowguide.typing import Array, PyTree, Velocity


def ab2() -> Solver:
    """Adams-Bashforth of order 2 on any grid, one evaluation a step; the first step is Euler's.

    x' = x + dt[(1 + q)u_n − q·u_{n−1}], q = dt/(2·dt_prev) (Hairer, Nørsett & Wanner 1993, §III.5).
    """

    def init(x: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, x), jnp.asarray(jnp.inf)  # q = 0: no past yet

    def step(velocity: Velocity, memory: PyTree, x: PyTree, t: Array, t_next: Array) -> tuple[PyTree, PyTree]:
        previous, dt_previous = memory
        dt = t_next - t
        q = dt / (2 * dt_previous)
        slope = velocity(t, x)
        x = advance(x, dt, (1 + q, -q), (slope, previous))
        kept = jax.tree.map(lambda s, p: s.astype(p.dtype), slope, previous)
        return x, (kept, dt.astype(dt_previous.dtype))

    return Solver(init, step, (0.0,))
