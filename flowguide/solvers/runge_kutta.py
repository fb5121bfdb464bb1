"""Explicit Runge-Kutta methods: one step function for all Butcher tableaux."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowguide.solvers.solver import Solver, advance
from flowguide.typing import Array, PyTree, Velocity


class Tableau(NamedTuple):
    """Butcher tableau of an explicit method.

    Attributes:
      nodes: c, the stage times as fractions of the step; the first is 0.
      matrix: a, where row i holds the weights of the stages before stage i + 1.
      weights: b, the weights of the stages in the step.
      order: global order of convergence.
      error: b − b̂ of an embedded pair, or None. The pairs here are "first same as last": the last stage is the first
        one of the next step.
    """

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int
    error: tuple[float, ...] | None = None


EULER = Tableau((0.0,), (), (1.0,), 1)

MIDPOINT = Tableau((0.0, 1 / 2), ((1 / 2,),), (0.0, 1.0), 2)

HEUN = Tableau((0.0, 1.0), ((1.0,),), (1 / 2, 1 / 2), 2)

# Ralston (1962): the smallest bound on the local error among the two-stage methods.
RALSTON = Tableau((0.0, 2 / 3), ((2 / 3,),), (1 / 4, 3 / 4), 2)

RK4 = Tableau(
    (0.0, 1 / 2, 1 / 2, 1.0),
    ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    4,
)

# Bogacki & Shampine (1989), 3(2).
BOSH3 = Tableau(
    (0.0, 1 / 2, 3 / 4, 1.0),
    ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    3,
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
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

# Tsitouras (2011), 5(4): the row of the last stage equals the weights.
_TSIT5 = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)
TSIT5 = Tableau(
    (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    (
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _TSIT5,
    ),
    (*_TSIT5, 0.0),
    5,
    (
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
)


def runge_kutta(tableau: Tableau) -> Solver:
    """Returns the fixed-step solver of a tableau."""
    # A fixed step does not need the last stage of an embedded pair, whose weight is 0.
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
    """Heun's method (explicit trapezoid), order 2, two evaluations per step."""
    return runge_kutta(HEUN)


def heun_edm() -> Solver:
    """Heun's method, but Euler's in a step to t = 1 (Karras et al. 2022, Algorithm 1), order 2.

    There the velocity at the end is evaluated too, and not used.
    """
    trapezoid = runge_kutta(HEUN)

    def step(velocity: Velocity, memory: PyTree, x: PyTree, t: Array, t_next: Array) -> tuple[PyTree, PyTree]:
        slopes = []

        def kept(t: Array, x: PyTree) -> PyTree:
            slopes.append(velocity(t, x))
            return slopes[-1]

        new, memory = trapezoid.step(kept, memory, x, t, t_next)
        straight = advance(x, t_next - t, (1.0,), (slopes[0],))
        return jax.tree.map(lambda a, b: jnp.where(t_next >= 1, a, b), straight, new), memory

    return trapezoid._replace(step=step)


def midpoint() -> Solver:
    """The explicit midpoint rule, order 2, two evaluations per step, neither of them at the end of the step."""
    return runge_kutta(MIDPOINT)


def ralston() -> Solver:
    """Ralston's method, order 2, two evaluations per step."""
    return runge_kutta(RALSTON)


def bosh3() -> Solver:
    """The method of Bogacki & Shampine (1989) with fixed steps, order 3, three evaluations per step."""
    return runge_kutta(BOSH3)


def dopri5() -> Solver:
    """The method of Dormand & Prince (1980) with fixed steps, order 5, six evaluations per step."""
    return runge_kutta(DOPRI5)


def tsit5() -> Solver:
    """The method of Tsitouras (2011) with fixed steps, order 5, six evaluations per step."""
    return runge_kutta(TSIT5)


def rk4() -> Solver:
    """The classical Runge-Kutta method, order 4, four evaluations per step."""
    return runge_kutta(RK4)
