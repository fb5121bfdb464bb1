"""Explicit Runge-Kutta methods: a method is a table, the step is one function."""

from __future__ import annotations

from typing import NamedTuple

from flowguide.solvers.solver import Solver, advance
from flowguide.typing import Array, PyTree, Velocity


class Tableau(NamedTuple):
    """Butcher's table of an explicit method.

    Attributes:
      nodes: c, where in the step each stage is evaluated; the first is 0.
      matrix: a, row i the weights of the stages before stage i + 1.
      weights: b, how the stages make the step.
      order: global order of convergence.
      error: b − b̂ of an embedded pair, or None. The pairs here are "first same as last": the last stage is the
        first one of the next step.
    """

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int
    error: tuple[float, ...] | None = None


EULER = Tableau((0.0,), (), (1.0,), 1)

HEUN = Tableau((0.0, 1.0), ((1.0,),), (1 / 2, 1 / 2), 2)

RK4 = Tableau(
    (0.0, 1 / 2, 1 / 2, 1.0),
    ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    4,
)

# Dormand & Prince (1980), RK5(4)7M.
DOPRI5 = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    5,
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)


def runge_kutta(tableau: Tableau) -> Solver:
    """The fixed-step solver of a table."""
    # A fixed step has no use for the trailing stage of an embedded pair, whose weight is 0.
    stages = max(i for i, weight in enumerate(tableau.weights) if weight) + 1

    def step(velocity: Velocity, memory: PyTree, x: PyTree, t: Array, t_next: Array) -> tuple[PyTree, PyTree]:
        dt = t_next - t
        slopes = [velocity(t, x)]
        for c, row in zip(tableau.nodes[1:stages], tableau.matrix, strict=False):
            slopes.append(velocity(t + c * dt, advance(x, dt, row, tuple(slopes))))
        return advance(x, dt, tableau.weights[:stages], tuple(slopes)), memory

    return Solver(lambda x: (), step, tableau.nodes[:stages])


def euler() -> Solver:
    """Euler's method, order 1. On the linear path this is the DDIM step."""
    return runge_kutta(EULER)


def heun() -> Solver:
    """Heun's method (explicit trapezoid), order 2, two evaluations a step."""
    return runge_kutta(HEUN)


def rk4() -> Solver:
    """The classical Runge-Kutta method, order 4, four evaluations a step."""
    return runge_kutta(RK4)
