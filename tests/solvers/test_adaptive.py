"""Adaptive steps: they meet the tolerance, treat samples independently, stop at jumps, and report failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import solvers
from tests.support.problems import exact, problem

ENDS = jnp.array([0.0, 1.0])


@pytest.mark.thorough
@pytest.mark.parametrize("pair", sorted(solvers.EMBEDDED_TABLEAUX))
@pytest.mark.parametrize(("reverse", "per_sample"), [(False, False), (True, True)])
def test_error_follows_the_tolerance(pair, reverse, per_sample):
    with jax.enable_x64(True):
        x0 = jnp.linspace(-1.0, 1.0, 5)[:, None] * jnp.ones((5, 2))
        start, end = (1.0, 0.0) if reverse else (0.0, 1.0)
        ts = jnp.array([start, end])

        def velocity(t, x):
            return problem(t[:, None] if per_sample else t, x)

        options = {"tableau": solvers.EMBEDDED_TABLEAUX[pair], "per_sample": per_sample}
        for tolerance in (1e-4, 1e-6, 1e-8):
            s = solvers.solve_adaptive(velocity, exact(start, x0), ts, rtol=tolerance, atol=tolerance, **options)
            assert bool(s.success)
            assert float(jnp.abs(s.x - exact(end, x0)).max()) < 10 * tolerance


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
    """A stiff neighbour only shortens its own steps."""
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
    """A jump of the velocity at a node of ts is integrated exactly, piece by piece; elsewhere it costs rejections."""
    with jax.enable_x64(True):

        def jump(t, x):
            return jnp.where(t < 0.37, 1.0, -3.0) * jnp.ones_like(x)

        expected = 0.37 - 3 * 0.63
        told = solvers.solve_adaptive(jump, jnp.zeros(1), jnp.array([0.0, 0.37, 1.0]))
        blind = solvers.solve_adaptive(jump, jnp.zeros(1), ENDS)
        np.testing.assert_allclose(told.x, expected, rtol=1e-12)
        assert int(told.rejected) == 0
        assert int(blind.rejected) > 0


def test_failures_have_a_status_inside_jit():
    """NaN and too few steps have different statuses, per sample, and NaN costs no tries."""
    status = solvers.Status
    stiff = solvers.solve_adaptive(lambda t, x: -1e4 * (x - jnp.cos(40 * t)), jnp.ones(2), ENDS, max_steps=20)
    assert int(stiff.status) == status.MAX_STEPS
    assert not bool(stiff.success)
    late = solvers.solve_adaptive(lambda t, x: x / jnp.where(t < 0.5, 1.0, jnp.nan), jnp.ones(2), ENDS)
    assert int(late.status) == status.NOT_FINITE

    @jax.jit
    def run(scale):
        s = solvers.solve_adaptive(lambda t, x: x * scale[:, None], jnp.ones((3, 2)), ENDS, per_sample=True)
        return s.status, s.x, s.evaluations.sum()

    outcome, x, evaluations = run(jnp.array([1.0, jnp.nan, -1.0]))
    assert outcome.tolist() == [status.DONE, status.NOT_FINITE, status.DONE]
    np.testing.assert_allclose(x[::2, 0], np.exp([1.0, -1.0]), rtol=1e-4)
    assert int(evaluations) == int(run(jnp.array([1.0, 0.0, -1.0]))[2])


@pytest.mark.parametrize("pair", sorted(solvers.EMBEDDED_TABLEAUX))
def test_vmap_is_each_on_its_own(pair):
    x = jnp.array([[1.0, 2.0], [-3.0, 0.1]])
    run = lambda x: solvers.solve_adaptive(problem, x, ENDS, tableau=solvers.EMBEDDED_TABLEAUX[pair])  # noqa: E731
    many = jax.vmap(run)(x)
    for i in range(2):
        one = run(x[i])
        np.testing.assert_allclose(many.x[i], one.x, rtol=1e-6)
        assert int(many.evaluations[i, 0]) >= int(one.evaluations[0])
        assert int(many.accepted[i]) == int(one.accepted)


@pytest.mark.thorough
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_in_both_modes(per_sample):
    """For x' = rate·x, from end to end and through a node: x grows by e^rate, which is also its derivative."""

    def end(rate, reverse_mode=False):
        options = {"rtol": 1e-6, "atol": 1e-6, "per_sample": per_sample, "reverse_mode": reverse_mode}
        x = (
            jnp.zeros((2, 3)).at[0].set(1.0)
        )  # a sample with velocity 0 has error 0, whose square root has no derivative
        s = solvers.solve_adaptive(lambda t, x: rate * x, x, jnp.array([0.0, 0.4, 1.0]), max_steps=25, **options)
        return s.x[0, 0]

    forwards = jax.jvp(end, (0.7,), (1.0,))
    backwards = jax.value_and_grad(end)(0.7, True)
    np.testing.assert_allclose([*forwards, *backwards], np.exp(0.7), rtol=1e-4)


def test_needs_an_embedded_pair():
    with pytest.raises(ValueError, match="embedded pair"):
        solvers.solve_adaptive(problem, jnp.ones(1), ENDS, tableau=solvers.RK4)


def test_does_not_recompile():
    traces = []

    @jax.jit
    def run(x, rtol):
        traces.append(0)
        return solvers.solve_adaptive(problem, x, ENDS, rtol=rtol).x

    run(jnp.ones(2), 1e-3)
    run(jnp.zeros(2), 1e-5)
    assert len(traces) == 1
