"""The one loop, and what a solver is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowguide.typing import Array, PyTree, Velocity


class Solver(NamedTuple):
    """A pair of pure functions and the places where they look at the velocity.

    Attributes:
      init: x -> memory, what is carried from step to step beside x (``()`` for one-step methods).
      step: (velocity, memory, x, t, t_next) -> (x at t_next, memory). Steps may go either way.
      nodes: where a step evaluates the velocity, as fractions of the way from t to t_next. Their number is the
        cost of a step.
    """

    init: Callable[[PyTree], PyTree]
    step: Callable[[Velocity, PyTree, PyTree, Array, Array], tuple[PyTree, PyTree]]
    nodes: tuple[float, ...]


def solve(solver: Solver, velocity: Velocity, x: PyTree, ts: Array, *, trajectory: bool = False) -> PyTree:
    """Integrates dx/dt = velocity(t, x) over the grid ``ts``, one step an interval, in a single ``lax.scan``.

    Args:
      solver: the method.
      velocity: t (), x -> dx/dt of the structure of x.
      x: the state at ``ts[0]``: an array or any tree of arrays. Its dtypes are kept.
      ts: nodes ``(N + 1,)``, increasing or decreasing; exactly N steps are taken.
      trajectory: also keep the states between.

    Returns:
      The state at ``ts[-1]``; with ``trajectory`` the states at all nodes, each leaf ``(N + 1, ...)``.

    Raises:
      ValueError: if ``ts`` is not a vector of two nodes or more.
    """
    ts = jnp.asarray(ts)
    if ts.ndim != 1 or ts.shape[0] < 2:
        raise ValueError(f"ts must be a vector of at least 2 nodes, from start to end; got shape {ts.shape}")

    def body(carry: tuple[PyTree, PyTree], ends: tuple[Array, Array]) -> tuple[tuple[PyTree, PyTree], PyTree]:
        x, memory = carry
        x, memory = solver.step(velocity, memory, x, *ends)
        return (x, memory), x if trajectory else None

    (last, _), between = jax.lax.scan(body, (x, solver.init(x)), (ts[:-1], ts[1:]))
    if not trajectory:
        return last
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x, between)


def evaluation_times(solver: Solver, ts: Array) -> Array:
    """The times ``(N, stages)`` at which ``solve`` evaluates the velocity, as the solver itself computes them."""
    ts = jnp.asarray(ts)
    nodes = jnp.asarray(solver.nodes, ts.dtype)
    return ts[:-1, None] + nodes * (ts[1:] - ts[:-1])[:, None]


def advance(x: PyTree, dt: Array, weights: tuple[float | Array, ...], slopes: tuple[PyTree, ...]) -> PyTree:
    """x + dt·Σ weightᵢ·slopeᵢ leaf by leaf, in x's own dtypes; zero weights cost nothing.

    ``dt`` is () or, for steps of each sample's own, ``(B,)``.
    """
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if not (isinstance(w, float) and w == 0.0)]

    def leaf(a: Array, *slopes: Array) -> Array:
        total = sum(w * k for (w, _), k in zip(terms, slopes, strict=True))
        return a + (over(dt, a) * total).astype(a.dtype)

    return jax.tree.map(leaf, x, *(k for _, k in terms))


def over(scale: Array, x: Array) -> Array:
    """A scale () or (B,), shaped to broadcast against x (B, *D)."""
    return scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) if scale.ndim else scale
