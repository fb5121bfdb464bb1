"""Every fixed-step solver: order, exactness, direction, dtype, jit, vmap, grad, compilation; one table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, paths, solvers, times
from flowguide.condition import bind, given

ORDER = {"euler": 1, "heun": 2, "rk4": 4, "ab2": 2}
NAMES = sorted(solvers.SOLVERS)


def test_every_solver_is_in_the_table():
    assert set(ORDER) == set(solvers.SOLVERS)


def problem(t, x):
    """x' = −2t·x + cos t·e^(−t²), which x = (x(0) + sin t)·e^(−t²) solves: time-dependent and exact."""
    return -2 * t * x + jnp.cos(t) * jnp.exp(-(t**2))


def exact(t, x0):
    return (x0 + jnp.sin(t)) * jnp.exp(-(t**2))


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("uneven", [False, True], ids=["uniform", "uneven"])
@pytest.mark.parametrize("name", NAMES)
def test_order_of_convergence(name, uneven, reverse):
    with jax.enable_x64(True):
        x0, steps, errors = jnp.array([1.0, -0.5]), [16, 32, 64, 128], []
        for n in steps:
            ts = times.grid(n, times.shift(2.0) if uneven else None).astype(jnp.float64)
            start, end = (1.0, 0.0) if reverse else (0.0, 1.0)
            x = solvers.solve(solvers.SOLVERS[name](), problem, exact(start, x0), ts[::-1] if reverse else ts)
            errors.append(float(jnp.abs(x - exact(end, x0)).max()))
        slope = -np.polyfit(np.log(steps[1:]), np.log(errors[1:]), 1)[0]
        assert abs(slope - ORDER[name]) < 0.1, (slope, errors)


@pytest.mark.parametrize("name", NAMES)
def test_takes_exactly_n_steps_at_the_times_it_says(name):
    solver, seen = solvers.SOLVERS[name](), []
    ts = times.grid(5, times.cosine())

    def spy(t, x):
        jax.debug.callback(lambda t: seen.append(float(t)), t, ordered=True)
        return x

    jax.block_until_ready(solvers.solve(solver, spy, jnp.ones(2), ts))
    jax.effects_barrier()
    np.testing.assert_allclose(seen, solvers.evaluation_times(solver, ts).reshape(-1), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_constant_velocity_is_exact_on_any_tree(name):
    x = {"a": jnp.zeros((2, 3)), "b": jnp.ones(4)}
    out = solvers.solve(
        solvers.SOLVERS[name](), lambda t, x: {"a": x["a"] * 0 + 2, "b": x["b"] * 0 - 1}, x, times.grid(3)
    )
    np.testing.assert_allclose(out["a"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(out["b"], 0.0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_dtype(name, dtype):
    out = solvers.solve(solvers.SOLVERS[name](), problem, jnp.ones((2, 3), dtype), times.grid(20))
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float32), exact(1.0, 1.0), atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_jit_vmap_grad_and_one_compilation(name):
    traces = []

    @jax.jit
    def run(x, scale):
        traces.append(0)
        return solvers.solve(solvers.SOLVERS[name](), lambda t, x: scale * problem(t, x), x, times.grid(8))

    x = jnp.array([1.0, -0.5])
    first = run(x, 1.0)
    run(2 * x, 0.5)
    assert len(traces) == 1
    np.testing.assert_allclose(jax.vmap(lambda a: run(a, 1.0))(jnp.stack([x, 2 * x]))[0], first, rtol=1e-6)

    slope = jax.grad(lambda s: run(x, s).sum())(0.7)
    h = 1e-2
    np.testing.assert_allclose(slope, (run(x, 0.7 + h) - run(x, 0.7 - h)).sum() / (2 * h), rtol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_trajectory_starts_at_x_and_ends_at_the_solution(name):
    x, solver = jnp.array([1.0, -0.5]), solvers.SOLVERS[name]()
    states = solvers.solve(solver, problem, x, times.grid(6), trajectory=True)
    assert states.shape == (7, 2)
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_array_equal(states[-1], solvers.solve(solver, problem, x, times.grid(6)))


@pytest.mark.parametrize("ts", [jnp.zeros(1), jnp.zeros((2, 2))])
def test_refuses_what_is_no_grid(ts):
    with pytest.raises(ValueError, match="vector of at least 2 nodes"):
        solvers.solve(solvers.euler(), problem, jnp.ones(2), ts)


def test_euler_on_the_linear_path_is_the_ddim_step():
    """x' = α'·x̂1 + σ'·x̂0 (Song et al. 2021, DDIM eq. 12) from any network's output, to rounding."""
    with jax.enable_x64(True):
        p, t, s = paths.linear(), jnp.asarray(0.3), jnp.asarray(0.45)
        x, u = jax.random.normal(jax.random.key(0), (2, 4, 3))
        step, _ = solvers.euler().step(lambda t, x: u, (), x, t, s)
        ddim = paths.interpolate(p, s, paths.velocity_to_x0(p, t, x, u), paths.velocity_to_x1(p, t, x, u))
        np.testing.assert_allclose(step, ddim, rtol=1e-13)


@pytest.mark.parametrize("name", sorted(paths.PATHS))
def test_flow_of_a_gaussian_is_its_affine_map(name):
    """Along the exact velocity x0 goes to m + (S1^½/S0^½)(x0 − α0·m) for an isotropic Gaussian on any path."""
    with jax.enable_x64(True):
        p, mean, variance = paths.PATHS[name](), jnp.array([1.0, -2.0]), 0.3
        x0 = jax.random.normal(jax.random.key(1), (16, 2))
        c = given(jnp.zeros(16, int))
        u = bind(analytic.velocity(analytic.mixture([1.0], mean[None], variance), p), c)
        t0, t1 = jnp.asarray(0.0), jnp.asarray(1.0)
        s0, s1 = (p.alpha(t) ** 2 * variance + p.sigma(t) ** 2 for t in (t0, t1))
        expected = p.alpha(t1) * mean + jnp.sqrt(s1 / s0) * (x0 - p.alpha(t0) * mean)
        sol = solvers.solve_adaptive(u, x0, times.grid(1), rtol=1e-9, atol=1e-9)
        assert bool(sol.success)
        # vp stands still for the last 1e-5 of the time, which moves x by about that times |u| = 0.2.
        np.testing.assert_allclose(sol.x, expected, atol=1e-5 if name == "vp" else 1e-7)
