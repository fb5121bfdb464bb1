"""Between flowguide and diffrax: its solvers behind our ``solve``, our velocities as its terms.

Needs the extra ``diffrax``; nothing of it is imported before one of these functions is called.
"""

from __future__ import annotations

from typing import Any

from flowguide.solvers.solver import Solver, StatefulVelocity, vector_field
from flowguide.typing import Array, PyTree, Velocity


def as_diffrax(velocity: Velocity | StatefulVelocity) -> Any:
    """``diffrax.ODETerm`` of a velocity, for ``diffrax.diffeqsolve``; its ``args`` are not used."""
    velocity = vector_field(velocity, "diffrax")
    return _diffrax().ODETerm(lambda t, x, args: velocity(t, x))


def from_diffrax(solver: Any) -> Solver:
    """A diffrax solver, e.g. ``diffrax.Ralston()``, with fixed steps behind ``solve``.

    A "first same as last" solver keeps its last slope, and the evaluations that it saves are still counted.

    Raises:
      TypeError: for a solver that is no explicit Runge-Kutta method or ``Euler``: implicit and reversible ones have
        no fixed number of evaluations, and others need terms that a velocity is not.
    """
    diffrax = _diffrax()
    if isinstance(solver, diffrax.Euler):
        nodes: tuple[float, ...] = (0.0,)
    elif isinstance(solver, diffrax.AbstractERK) and not isinstance(solver.tableau, tuple):
        nodes = (0.0, *(float(c) for c in solver.tableau.c))
    else:
        raise TypeError(f"expected diffrax.Euler or an explicit Runge-Kutta solver of diffrax; got {solver!r}")

    def step(velocity: Velocity, memory: PyTree, x: PyTree, t: Array, t_next: Array) -> tuple[PyTree, PyTree]:
        term = as_diffrax(velocity)
        # Its state is begun anew: an init cannot see the velocity here.
        state = solver.init(term, t, t_next, x, None)
        new, _, _, _, _ = solver.step(term, t, t_next, x, None, state, made_jump=False)
        return new, memory

    return Solver(lambda x: (), step, nodes)


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("diffrax is not installed: pip install 'flowguide[diffrax]'") from error
    return diffrax
