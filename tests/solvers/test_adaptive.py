"""Adaptive steps: the tolerance is met, samples are independent, jumps are stopped at, failure is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_solvers import exact, problem

from flowguide import solvers, times

ENDS = jnp.array([0.0, 1.0])


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_error_follows_the_tolerance(reverse, per_sample):
    with jax.enable_x64(True):
        x0 = jnp.linspace(-1.0, 1.0, 5)[:, None] * jnp.ones((5, 2))
        start, end = (1.0, 0.0) if reverse else (0.0, 1.0)
        ts = jnp.array([start, end])

        def velocity(t, x):
            return problem(t[:, None] if per_sample else t, x)

        for tolerance in (1e-4, 1e-6, 1e-8):
            s = solvers.solve_adaptive(
                velocity, exact(start, x0), ts, rtol=tolerance, atol=tolerance, per_sample=per_sample
            )
            assert bool(s.success)
            assert float(jnp.abs(s.x - exact(end, x0)).max()) < 10 * tolerance


def test_order_of_dopri5_with_fixed_steps():
    """The table itself, on x' = x·cos 3t: fixed steps converge at order 5."""
    with jax.enable_x64(True):
        steps, errors = [16, 32, 64], []
        for n in steps:
            solver = solvers.runge_kutta(solvers.DOPRI5)
            x = solvers.solve(solver, lambda t, x: x * jnp.cos(3 * t), jnp.ones(()), times.grid(n))
            errors.append(float(jnp.abs(x - jnp.exp(jnp.sin(3.0) / 3))))
        assert abs(-np.polyfit(np.log(steps), np.log(errors), 1)[0] - 5) < 0.1


def test_evaluations_are_counted():
    calls = []

    def spy(t, x):
        jax.debug.callback(lambda: calls.append(0))
        return problem(t, x)

    s = solvers.solve_adaptive(spy, jnp.ones(3), jnp.array([0.0, 0.4, 1.0]))
    jax.block_until_ready(s)
    jax.effects_barrier()
    assert int(s.evaluations.sum()) == len(calls)
    assert int(s.accepted + s.rejected) * 6 + 2 == len(calls)


def test_a_sample_does_not_depend_on_its_neighbours():
    """A stiff neighbour shortens its own steps only."""
    rates = jnp.array([1.0, 60.0, 5.0])

    def velocity(rates):
        return lambda t, x: -rates[:, None] * (x - jnp.cos(t)[:, None])

    x = jnp.ones((3, 2))
    whole = solvers.solve_adaptive(velocity(rates), x, ENDS, per_sample=True)
    for i in range(3):
        one = solvers.solve_adaptive(velocity(rates[i : i + 1]), x[i : i + 1], ENDS, per_sample=True)
        np.testing.assert_allclose(whole.x[i : i + 1], one.x, rtol=1e-6)
        assert int(whole.accepted[i]) == int(one.accepted[0])
    assert int(whole.accepted[1]) > int(whole.accepted[0])


def test_jumps_at_nodes_cost_nothing_extra():
    """A velocity that jumps at a node of ts is integrated piece by piece, exactly; unannounced it costs rejections."""
    with jax.enable_x64(True):

        def jump(t, x):
            return jnp.where(t < 0.37, 1.0, -3.0) * jnp.ones_like(x)

        expected = 0.37 - 3 * 0.63
        told = solvers.solve_adaptive(jump, jnp.zeros(1), jnp.array([0.0, 0.37, 1.0]))
        blind = solvers.solve_adaptive(jump, jnp.zeros(1), ENDS)
        np.testing.assert_allclose(told.x, expected, rtol=1e-12)
        assert int(told.rejected) == 0
        assert int(blind.rejected) > 0


def test_running_out_of_steps_is_told():
    s = solvers.solve_adaptive(lambda t, x: -1e4 * (x - jnp.cos(40 * t)), jnp.ones(2), ENDS, max_steps=20)
    assert not bool(s.success)
    bad = solvers.solve_adaptive(lambda t, x: x * jnp.nan, jnp.ones(2), ENDS, max_steps=20)
    assert not bool(bad.success)


def test_needs_an_embedded_pair():
    with pytest.raises(ValueError, match="embedded pair"):
        solvers.solve_adaptive(problem, jnp.ones(1), ENDS, tableau=solvers.RK4)


def test_does_not_recompile():
    traces = []

    @jax.jit
    def run(x):
        traces.append(0)
        return solvers.solve_adaptive(problem, x, ENDS).x

    run(jnp.ones(2))
    run(jnp.zeros(2))
    assert len(traces) == 1
