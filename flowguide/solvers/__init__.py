"""ODE solvers for flows: ``solve`` on a grid, ``solve_adaptive`` to a tolerance. Needs only jax and numpy."""

from collections.abc import Callable

from flowguide.solvers.adaptive import Solution, solve_adaptive
from flowguide.solvers.multistep import ab2
from flowguide.solvers.runge_kutta import DOPRI5, EULER, HEUN, RK4, Tableau, euler, heun, rk4, runge_kutta
from flowguide.solvers.solver import Solver, evaluation_times, solve

SOLVERS: dict[str, Callable[[], Solver]] = {"euler": euler, "heun": heun, "rk4": rk4, "ab2": ab2}

__all__ = [
    "DOPRI5",
    "EULER",
    "HEUN",
    "RK4",
    "SOLVERS",
    "Solution",
    "Solver",
    "Tableau",
    "ab2",
    "euler",
    "evaluation_times",
    "heun",
    "rk4",
    "runge_kutta",
    "solve",
    "solve_adaptive",
]
