"""Bridge to diffrax: use its solvers in our ``solve``, or our velocities as its terms.

Needs the extra ``diffrax``, which is only imported when one of these functions is called.
"""

from __future__ import annotations

from typing import Any

from flowguide.solvers.solver import Solver, StatefulVelocity, vector_field
from flowguide.typing import Array, PyTree, TreeVelocity, Velocity


def as_diffrax(velocity: Velocity | TreeVelocity | StatefulVelocity) -> Any:
    """Returns the ``diffrax.ODETerm`` of a velocity, for ``diffrax.diffeqsolve``; its ``args`` are ignored."""
    velocity = vector_field(velocity, "diffrax")
    return _diffrax().ODETerm(lambda t, x, args: velocity(t, x))


def from_diffrax(solver: Any) -> Solver:
    """Wraps a diffrax solver, e.g. ``diffrax.Ralston()``, as a fixed-step ``Solver``.

    For a "first same as last" solver the reused evaluation is still counted.

    Raises:
      TypeError: unless the solver is ``Euler`` or an explicit Runge-Kutta method: implicit and reversible solvers have
        no fixed number of evaluations, and others need more than an ODE term.
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
        # The solver state is recreated in every step, because our init does not get the velocity.
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
