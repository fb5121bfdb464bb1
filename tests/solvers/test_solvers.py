"""All fixed-step solvers in one table: order, exactness, direction, dtype, jit, vmap, grad, compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, paths, solvers, times
from flowguide.condition import bind, given
from tests.support.problems import exact, problem

PATH = paths.linear()
ORDER = {
    "euler": 1,
    "midpoint": 2,
    "heun": 2,
    "heun_edm": 2,
    "ralston": 2,
    "rk4": 4,
    "bosh3": 3,
    "dopri5": 5,
    "tsit5": 5,
    "ab2": 2,
    "ab3": 3,
    "abm3": 3,
    "ddim": 1,
    "dpmpp_2m": 2,
    "unipc2": 3,
}
READS_DATA = {"ddim", "dpmpp_2m", "unipc2"}  # exact for constant E[x1|x_t], the others for constant u
NAMES = sorted(ORDER)


def make(name):
    return solvers.SOLVERS[name](PATH) if name in solvers.SOLVERS else getattr(solvers, name)()


def test_every_solver_is_in_the_table():
    assert set(ORDER) == set(solvers.SOLVERS) | set(solvers.EMBEDDED_TABLEAUX)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", NAMES)
def test_order_of_convergence(name, reverse):
    """On x' = x·cos 2t and an uneven grid inside (0, 1); methods with λ = ±∞ at the ends are tested there below."""
    with jax.enable_x64(True):
        start, end = (0.9, 0.1) if reverse else (0.1, 0.9)
        x0, errors = jnp.array([1.0, -0.5]), []
        first = {4: 32, 5: 16}.get(ORDER[name], 64)
        for n in (first, 2 * first, 4 * first):
            ts = 0.1 + 0.8 * times.grid(n, times.shift(1.5)).astype(jnp.float64)
            x = solvers.solve(make(name), lambda t, x: x * jnp.cos(2 * t), x0, ts[::-1] if reverse else ts)
            exact = x0 * jnp.exp((np.sin(2 * end) - np.sin(2 * start)) / 2)
            errors.append(float(jnp.abs(x - exact).max()))
        coarse, fine = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
        assert abs(2 * fine - coarse - ORDER[name]) < 0.1, errors  # the slopes approach the order like 1/n


END_TO_END = [(name, path, False) for name in sorted(READS_DATA) for path in sorted(paths.PATHS)]
END_TO_END += [(name, "linear", True) for name in (*sorted(READS_DATA), "ab3")] + [("ab3", "trig", False)]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "path", "reverse"), END_TO_END)
def test_from_end_to_end(name, path, reverse):
    """Between noise and data nothing blows up, and the error falls about as fast as inside, at order 1 or 2."""
    with jax.enable_x64(True):
        p, errors, mean, variance = paths.PATHS[path](), [], jnp.array([1.0, -2.0]), 0.3
        u = bind(analytic.velocity(analytic.mixture([1.0], mean[None], variance), p), given(jnp.zeros(4, int)))
        x0 = jax.random.normal(jax.random.key(1), (4, 2))
        t0, t1 = jnp.asarray(0.0), jnp.asarray(1.0)
        s0, s1 = (p.alpha(t) ** 2 * variance + p.sigma(t) ** 2 for t in (t0, t1))
        x1 = p.alpha(t1) * mean + jnp.sqrt(s1 / s0) * (x0 - p.alpha(t0) * mean)
        for n in (64, 128):
            ts = times.grid(n).astype(jnp.float64)
            got = solvers.solve(solvers.SOLVERS[name](p), u, *((x1, ts[::-1]) if reverse else (x0, ts)))
            errors.append(float(jnp.abs(got - (x0 if reverse else x1)).max()))
        assert errors[1] < 0.02
        assert np.log2(errors[0] / errors[1]) > 0.65 * min(ORDER[name], 2), errors


@pytest.mark.parametrize("name", NAMES)
def test_takes_exactly_n_steps_at_the_times_it_says(name):
    solver, seen = make(name), []
    ts = times.grid(5, times.cosine())

    def spy(t, x):
        jax.debug.callback(lambda t: seen.append(float(t)), t, ordered=True)
        return x

    jax.block_until_ready(solvers.solve(solver, spy, jnp.ones(2), ts))
    jax.effects_barrier()
    np.testing.assert_allclose(seen, solvers.evaluation_times(solver, ts).reshape(-1), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMES) - READS_DATA))
def test_constant_velocity_is_exact_on_any_tree(name):
    x = {"a": jnp.zeros((2, 3)), "b": jnp.ones(4)}
    out = solvers.solve(make(name), lambda t, x: {"a": x["a"] * 0 + 2, "b": x["b"] * 0 - 1}, x, times.grid(3))
    np.testing.assert_allclose(out["a"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(out["b"], 0.0, atol=1e-6)


@pytest.mark.parametrize("path", sorted(paths.PATHS))
@pytest.mark.parametrize("name", sorted(READS_DATA))
def test_constant_data_prediction_is_exact_on_any_path(name, path):
    """x_t = α·x1 + σ·x0 is the solution, including both ends."""
    with jax.enable_x64(True):
        p, x1 = paths.PATHS[path](), jnp.array([2.0, -1.0])
        x0 = jax.random.normal(jax.random.key(0), (3, 2))

        def velocity(t, x):
            noise = (x - p.alpha(t) * x1) / p.sigma(t)
            return p.d_alpha(t) * x1 + p.d_sigma(t) * noise

        ts = times.grid(7).astype(jnp.float64)
        states = solvers.solve(solvers.SOLVERS[name](p), velocity, p.alpha(0.0 * ts[0]) * x1 + x0, ts, trajectory=True)
        x0 = (states[0] - p.alpha(ts[0]) * x1) / p.sigma(ts[0])
        for t, state in zip(ts, states, strict=True):
            np.testing.assert_allclose(state, p.alpha(t) * x1 + p.sigma(t) * x0, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_dtype(name, dtype):
    out = solvers.solve(make(name), problem, jnp.ones((2, 3), dtype), times.grid(20))
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float32), exact(1.0, 1.0), atol=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_jit_vmap_grad_and_one_compilation(name):
    traces = []

    @jax.jit
    def run(x, scale):
        traces.append(0)
        return solvers.solve(make(name), lambda t, x: scale * problem(t, x), x, times.grid(8))

    x = jnp.array([1.0, -0.5])
    first = run(x, 1.0)
    run(2 * x, 0.5)
    assert len(traces) == 1
    np.testing.assert_allclose(jax.vmap(lambda a: run(a, 1.0))(jnp.stack([x, 2 * x]))[0], first, rtol=1e-6)

    slope = jax.grad(lambda s: run(x, s).sum())(0.7)
    h = 1e-2
    np.testing.assert_allclose(slope, (run(x, 0.7 + h) - run(x, 0.7 - h)).sum() / (2 * h), rtol=2e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_trajectory_starts_at_x_and_ends_at_the_solution(name):
    x, solver = jnp.array([1.0, -0.5]), make(name)
    states = solvers.solve(solver, problem, x, times.grid(6), trajectory=True)
    assert states.shape == (7, 2)
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_array_equal(states[-1], solvers.solve(solver, problem, x, times.grid(6)))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["euler", "ab3", "unipc2"])  # no memory, a cond, a large memory
def test_checkpointed_gradient_is_the_gradient(name):
    for n in (1, 7):

        def end(x, checkpoint, n=n):
            return solvers.solve(make(name), problem, x, times.grid(n), checkpoint=checkpoint, trajectory=True)

        x = jnp.array([1.0, -0.5])
        np.testing.assert_allclose(end(x, True), end(x, False), rtol=1e-6)
        slopes = (jax.grad(lambda x, c=c: end(x, c)[-1].sum())(x) for c in (True, False))
        np.testing.assert_allclose(*slopes, rtol=1e-5)


def test_checkpoint_keeps_less():
    """Residuals of the reverse pass, as reported by XLA: they grow with N without checkpoints, and hardly with them."""
    weight = jnp.ones((64, 64)) / 64

    def memory(n, checkpoint):
        def loss(x):
            u = lambda t, x: jnp.tanh(jnp.tanh(jnp.tanh(x @ weight) @ weight) @ weight)  # noqa: E731
            return solvers.solve(solvers.euler(), u, x, times.grid(n), checkpoint=checkpoint).sum()

        found = jax.jit(jax.grad(loss)).lower(jnp.ones((16, 64))).compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes

    assert memory(256, False) > 12 * memory(16, False)
    assert memory(256, True) < 6 * memory(16, True)
    assert memory(256, True) < memory(256, False) / 5


def test_progress_is_told_each_step():
    seen = []
    x = solvers.solve(
        solvers.euler(), problem, jnp.ones(2), times.grid(5), progress=lambda k, n: seen.append((int(k), int(n)))
    )
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert sorted(seen) == [(k, 5) for k in range(1, 6)]


HOW = {"solve": functools.partial(solvers.solve, solvers.euler()), "solve_adaptive": solvers.solve_adaptive}


@pytest.mark.parametrize("ts", [jnp.zeros(1), jnp.zeros((2, 2))])
def test_refuses_what_is_no_grid(ts):
    with pytest.raises(ValueError, match="vector of at least 2 nodes"):
        solvers.solve(solvers.euler(), problem, jnp.ones(2), ts)


@pytest.mark.parametrize(
    "ts", [[0.0, 0.5, 0.5, 1.0], [1.0, 0.5, 0.5, 0.0], [0.0, 0.7, 0.3], [0.0, float("nan")]], ids=str
)
@pytest.mark.parametrize("how", HOW)
def test_refuses_nodes_out_of_order(ts, how):
    with pytest.raises(ValueError, match="strictly increasing or strictly decreasing"):
        HOW[how](problem, jnp.ones(2), ts)


@pytest.mark.parametrize(
    ("velocity", "x", "message"),
    [
        (lambda t, x: x[:1], jnp.ones(2), r"expected \(2,\), got \(1,\)"),
        (lambda t, x: x.astype(int), jnp.ones(2), "floating dtype: expected .* int32"),
        (lambda t, x: {"a": x}, jnp.ones(2), "must return a tree with the structure of x"),
        (lambda t, x: x, jnp.ones(2, int), "x must have a floating dtype; got int32"),
    ],
)
@pytest.mark.parametrize("how", HOW)
def test_refuses_velocities_that_do_not_fit(velocity, x, message, how):
    with pytest.raises(TypeError, match=message):
        HOW[how](velocity, x, times.grid(1))


@pytest.mark.parametrize("name", sorted(solvers.EMBEDDED_TABLEAUX))
def test_tableaux_meet_the_order_conditions(name):
    """Rooted trees up to order 4 for the weights, one order less for the embedded ones (Hairer et al. 1993, §II.2)."""
    table = solvers.EMBEDDED_TABLEAUX[name]
    stages, c = len(table.nodes), np.array(table.nodes)
    a = np.zeros((stages, stages))
    for i, row in enumerate(table.matrix):
        a[i + 1, : len(row)] = row
    np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
    trees = [(1, c**0, 1), (2, c, 1 / 2), (3, c**2, 1 / 3), (3, a @ c, 1 / 6), (4, c**3, 1 / 4)]
    trees += [(4, c * (a @ c), 1 / 8), (4, a @ c**2, 1 / 12), (4, a @ a @ c, 1 / 24)]
    trees += [(5, c**4, 1 / 5), (5, a @ a @ a @ c, 1 / 120), (5, c * (a @ a @ c), 1 / 30)]
    b = np.array(table.weights)
    embedded = b - np.array(table.error)
    for order, phi, value in trees:
        if order <= table.order:
            assert abs(b @ phi - value) < 1e-13
        if order <= table.order - 1:
            assert abs(embedded @ phi - value) < 1e-9
    assert max(abs(embedded @ phi - value) for order, phi, value in trees if order == table.order) > 1e-4


def test_the_last_step_of_heun_edm_is_eulers_and_only_a_step_to_the_data_is():
    x, (early, late) = jnp.array([1.0, -0.5]), (jnp.array([0.2, 0.9]), jnp.array([0.9, 1.0]))
    for ts, same in ((early, solvers.heun()), (late, solvers.euler()), (late[::-1], solvers.heun())):
        got = solvers.solve(solvers.heun_edm(), problem, x, ts)
        np.testing.assert_allclose(got, solvers.solve(same, problem, x, ts), rtol=1e-6)


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
    """For an isotropic Gaussian on any path the exact velocity takes x0 to m + (S1^½/S0^½)(x0 − α0·m)."""
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
        # vp is frozen for the last 1e-5 of the time, which changes x by about 1e-5 times |u| = 0.2.
        np.testing.assert_allclose(sol.x, expected, atol=1e-5 if name == "vp" else 1e-7)


def test_traced_nodes_that_are_no_grid_make_all_of_the_result_nan():
    run = jax.jit(lambda ts: solvers.solve(solvers.ab2(), lambda t, x: x, jnp.ones(2), ts))
    assert np.isfinite(run(jnp.array([1.0, 0.5, 0.0]))).all()
    for bad in ([0.0, 0.5, 0.5, 1.0], [0.0, 0.7, 0.3, 1.0], [0.0, np.nan, 1.0]):
        assert np.isnan(run(jnp.array(bad))).all()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["abm3", "unipc2"])
def test_fitted_grid_beats_equal_steps_on_new_noise(name):
    law = analytic.mixture(jnp.ones(3) / 3, [[2.0, 0.0], [-1.0, 1.5], [0.0, -1.0]], [0.05, 0.02, 0.1])
    u = bind(analytic.velocity(law, PATH), given(jnp.zeros(128, int)))
    pilot, x0 = jax.random.normal(jax.random.key(0), (2, 128, 2))
    seen = []
    ts = solvers.fit_grid(make(name), u, pilot, 6, iterations=25, progress=lambda i, rms: seen.append(rms))
    assert (ts[0], ts[-1]) == (0.0, 1.0)
    assert (np.diff(ts) > 0).all()
    assert seen[-1] < seen[0]
    exact = solvers.solve(solvers.rk4(), u, x0, times.grid(200))

    def error(ts):
        return float(jnp.mean(jnp.linalg.norm(solvers.solve(make(name), u, x0, ts) - exact, axis=1)))

    assert error(ts) < 0.6 * error(times.grid(6))


def test_fitted_grid_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="4 equal steps, or the exact flow, is not finite"):
        solvers.fit_grid(make("ab2"), lambda t, x: x / 0, jnp.ones((2, 2)), 4)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (solvers.heun, r"must be a Solver; got heun: call it: heun\(\), or heun\(path\)"),
        (solvers.ddim, r"got ddim: call it"),
        ("heun", r"must be a Solver; got str: use heun\(\)"),
    ],
)
def test_what_is_no_solver_is_refused_with_its_cure(solver, message):
    with pytest.raises(TypeError, match=message):
        solvers.solve(solver, lambda t, x: -x, jnp.ones(2), jnp.array([0.0, 1.0]))


@pytest.mark.parametrize(("name", "stages"), [("bosh3", 3), ("dopri5", 6), ("tsit5", 6)])
def test_a_fixed_step_leaves_out_the_stage_that_only_measures_errors(name, stages):
    calls = []
    with jax.disable_jit():
        solvers.solve(make(name), lambda t, x: calls.append(t) or -x, jnp.ones(2), jnp.array([0.0, 1.0]))
    assert len(calls) == len(make(name).nodes) == stages


@pytest.mark.thorough
def test_a_fitted_grid_is_fitted_to_an_exact_flow():
    """The default reference is as good as one with many more steps; with two steps a coarse reference would mislead."""
    u, pilot = lambda t, x: 12 * jnp.sin(9 * t) * x, jax.random.normal(jax.random.key(0), (8, 2))
    exact = solvers.solve(solvers.rk4(), u, pilot, times.grid(400))
    got, expected = (
        solvers.fit_grid(solvers.rk4(), u, pilot, 2, exact=reference, iterations=30) for reference in (None, exact)
    )
    np.testing.assert_allclose(got, expected, atol=0.01)
