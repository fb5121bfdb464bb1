"""Both directions of the diffrax bridge, compared with diffrax itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import solvers, times
from tests.support.problems import problem

diffrax = pytest.importorskip("diffrax")


SAME = {name: name.lower() for name in ("Euler", "Midpoint", "Heun", "Ralston", "Bosh3", "Tsit5", "Dopri5")}


@pytest.mark.parametrize(("theirs", "ours"), SAME.items())
def test_their_solver_behind_our_solve(theirs, ours):
    x, ts = jnp.array([1.0, -0.5]), times.grid(7, times.cosine())
    got = solvers.solve(solvers.from_diffrax(getattr(diffrax, theirs)()), problem, x, ts)
    np.testing.assert_allclose(got, solvers.solve(getattr(solvers, ours)(), problem, x, ts), rtol=2e-6)


def test_our_velocity_as_their_term():
    x = jnp.array([1.0, -0.5])
    solution = diffrax.diffeqsolve(solvers.as_diffrax(problem), diffrax.Heun(), 0.0, 1.0, 0.125, x)
    np.testing.assert_allclose(solution.ys[0], solvers.solve(solvers.heun(), problem, x, times.grid(8)), rtol=1e-6)


def test_refuses_other_solvers():
    with pytest.raises(TypeError, match="explicit Runge-Kutta solver of diffrax"):
        solvers.from_diffrax(diffrax.ImplicitEuler())


@pytest.mark.parametrize("name", ["Euler", "Heun", "Ralston", "Bosh3", "Dopri5"])
def test_evaluations_are_counted_at_the_times_of_their_tableau(name):
    solver = getattr(diffrax, name)()
    tableau = (0.0,) if name == "Euler" else (0.0, *solver.tableau.c.tolist())
    np.testing.assert_allclose(solvers.from_diffrax(solver).nodes, tableau)
    at = solvers.evaluation_times(solvers.from_diffrax(solver), jnp.array([0.2, 0.6]))
    np.testing.assert_allclose(at, 0.2 + 0.4 * np.array(tableau), rtol=1e-6)
