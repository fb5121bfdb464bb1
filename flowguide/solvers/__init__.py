"""ODE and SDE solvers for flows: ``solve`` on a grid, ``solve_adaptive`` to a tolerance, ``fit_grid``.

``euler()`` to ``abm3()`` work for any dx/dt = velocity(t, x). ``ddim``, ``dpmpp_2m`` and ``unipc2`` compute the data
prediction from the velocity, so they take the path; so do the stochastic solvers, which also take one key per sample.
Needs only jax and numpy.
"""

from collections.abc import Callable

from flowguide.paths import Path
from flowguide.solvers.adaptive import Solution, Status, solve_adaptive
from flowguide.solvers.ancestral import ddpm
from flowguide.solvers.diffrax_bridge import as_diffrax, from_diffrax
from flowguide.solvers.exponential import ddim, dpmpp_2m, unipc2
from flowguide.solvers.fitted import fit_grid
from flowguide.solvers.multistep import ab2, ab3, abm3
from flowguide.solvers.runge_kutta import (
    BOSH3,
    DOPRI5,
    EULER,
    HEUN,
    MIDPOINT,
    RALSTON,
    RK4,
    TSIT5,
    Tableau,
    bosh3,
    dopri5,
    euler,
    heun,
    heun_edm,
    midpoint,
    ralston,
    rk4,
    runge_kutta,
    tsit5,
)
from flowguide.solvers.solver import Solver, StatefulVelocity, evaluation_times, solve, vector_field
from flowguide.solvers.stochastic import (
    DIFFUSIONS,
    Diffusion,
    Last,
    euler_maruyama,
    memoryless,
    renoise,
    renoise_2m,
)
from flowguide.typing import Array, PRNGKey

# Deterministic fixed-grid methods, by name; those that need no path ignore it.
SOLVERS: dict[str, Callable[[Path], Solver]] = {
    "euler": lambda path: euler(),
    "midpoint": lambda path: midpoint(),
    "heun": lambda path: heun(),
    "heun_edm": lambda path: heun_edm(),
    "ralston": lambda path: ralston(),
    "rk4": lambda path: rk4(),
    "ab2": lambda path: ab2(),
    "ab3": lambda path: ab3(),
    "abm3": lambda path: abm3(),
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "unipc2": unipc2,
}

# Stochastic solvers of the family D_t = ηκ, by name: (path, keys, η) -> Solver.
STOCHASTIC: dict[str, Callable[[Path, PRNGKey, float | Array], Solver]] = {
    "euler_maruyama": lambda path, keys, eta: euler_maruyama(path, keys, memoryless(eta)),
    "renoise": renoise,
    "renoise_2m": renoise_2m,
}

# Embedded pairs for ``solve_adaptive``, by name.
EMBEDDED_TABLEAUX: dict[str, Tableau] = {"bosh3": BOSH3, "dopri5": DOPRI5, "tsit5": TSIT5}

__all__ = [
    "BOSH3",
    "DIFFUSIONS",
    "DOPRI5",
    "EMBEDDED_TABLEAUX",
    "EULER",
    "HEUN",
    "MIDPOINT",
    "RALSTON",
    "RK4",
    "SOLVERS",
    "STOCHASTIC",
    "TSIT5",
    "Diffusion",
    "Last",
    "Solution",
    "Solver",
    "StatefulVelocity",
    "Status",
    "Tableau",
    "ab2",
    "ab3",
    "abm3",
    "as_diffrax",
    "bosh3",
    "ddim",
    "ddpm",
    "dopri5",
    "dpmpp_2m",
    "euler",
    "euler_maruyama",
    "evaluation_times",
    "fit_grid",
    "from_diffrax",
    "heun",
    "heun_edm",
    "memoryless",
    "midpoint",
    "ralston",
    "renoise",
    "renoise_2m",
    "rk4",
    "runge_kutta",
    "solve",
    "solve_adaptive",
    "tsit5",
    "unipc2",
    "vector_field",
]
