"""Stochastic solvers against the exact moments of the processes they discretise."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, guidance, paths, solvers, times
from flowguide.condition import bind, given
from flowguide.solvers import stochastic
from tests.support.plain import plain_velocity

LAB = analytic.observation([[1.0]], 1.0)  # c ~ N(0, 1), x|c ~ N(c, 1)


def keys(n, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(n))


@functools.cache
def program(name, path, n, steps, warp):
    """Samples ``(n,)`` of the guided lab, compiled once for all γ, η and c; "heun" is the ODE."""
    p, ts = paths.PATHS[path](), times.grid(steps, times.WARPS[warp]())

    @jax.jit
    def run(gamma, eta, c):
        condition = given(jnp.full((n, 1), c))
        u = analytic.velocity(LAB, p)
        guided = guidance.guide(u, condition, guidance.classifier_free(u, condition, gamma), passes="apart")
        x = jax.random.normal(jax.random.key(7), (n, 1))
        solver = solvers.heun() if name == "heun" else solvers.STOCHASTIC[name](p, keys(n), eta)
        return solvers.solve(solver, guided, x, ts)

    return lambda gamma, eta=1.0, c=0.0: np.asarray(run(gamma, eta, c))[:, 0]


def within(x, mean, variance, bias=0.0, sigmas=5):
    """Sample moments within their own Monte Carlo error, and a stated bias of the steps."""
    n = len(x)
    assert abs(x.mean() - mean) < sigmas * np.sqrt(variance / n) + bias * np.sqrt(variance)
    assert abs(x.var() - variance) < (sigmas * np.sqrt(2 / n) + bias) * variance


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["linear", "trig"])
@pytest.mark.parametrize("gamma", [1.5, 2.0, 3.0, 5.0, 7.5])
def test_cfg_samples_the_variances_that_theory_gives(gamma, path):
    """2^(1−γ) by ODE and (2 − 2^(2−2γ))/(2γ−1) by SDE, with a discretisation bias below 1 and 2 %."""
    ode = program("heun", path, 20_000, 100, "uniform")(gamma)
    within(ode, 0.0, 2 ** (1 - gamma), bias=0.01)
    sde = program("renoise_2m", path, 20_000, 200, "cosine")(gamma)
    within(sde, 0.0, (2 - 2 ** (2 - 2 * gamma)) / (2 * gamma - 1), bias=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize("eta", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", sorted(solvers.STOCHASTIC))
def test_every_eta_has_its_moments(name, eta):
    exact = analytic.guided_moments(3.0, 0.0, 2.0, 1.5, 1.0, eta=eta)
    within(program(name, "linear", 10_000, 300, "uniform")(3.0, eta, 1.5), *exact, bias=0.07)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "order"), [("euler_maruyama", 1), ("renoise", 1), ("renoise_2m", 2)])
def test_weak_order(name, order):
    """The order of the variance, without sampling: in the lab a step is linear in x, in its memory and in its noise.

    The coefficients are read off single steps, and the covariance of (x, memory) follows from them exactly.
    """
    with jax.enable_x64(True):
        p, key, gamma = paths.linear(), keys(1), 3.0
        law = jax.tree.map(lambda a: a.astype(float), LAB)
        c = given(jnp.zeros((1, 1)))
        u = analytic.velocity(law, p)
        guided = plain_velocity(guidance.guide(u, c, guidance.classifier_free(u, c, gamma), passes="apart"))
        solver = solvers.STOCHASTIC[name](p, key, 1.0)
        scalars = jax.tree.map(jnp.asarray, jax.tree.leaves(solver.init(jnp.zeros((1, 1))))[2:])

        @jax.jit
        def step(x, d, index, h, t, t_next):
            one = lambda a: jnp.reshape(a, (1, 1))  # noqa: E731
            memory = (index, one(d), h) if scalars else index
            x, memory = solver.step(guided, memory, one(x), t, t_next)
            return x[0, 0], *((memory[1][0, 0], memory[2]) if scalars else (0.0 * h, h))

        def variance(n):
            ts = times.grid(n, times.cosine()).astype(float)
            covariance, h = np.diag([1.0, 0.0]), jnp.zeros(())
            for i in range(n):
                at = jnp.int32(i), h, ts[i], ts[i + 1]
                zero, by_x, by_d = (np.array(step(x, d, *at)) for x, d in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
                transfer = np.stack([by_x[:2] - zero[:2], by_d[:2] - zero[:2]], 1)
                z = jax.random.normal(jax.random.fold_in(key[0], i), (1,), float)[0]
                covariance = transfer @ covariance @ transfer.T + np.diag([(zero[0] / float(z)) ** 2, 0.0])
                h = jnp.asarray(zero[2])
            return covariance[0, 0]

        exact = analytic.guided_moments(gamma, 0.0, 2.0, 0.0, 1.0, eta=1.0).variance
        errors = [abs(variance(n) - exact) for n in (80, 160)]
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15, errors


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(stochastic.DIFFUSIONS))
def test_every_diffusion_keeps_the_law(name):
    """At γ = 1 all diffusions sample p(x|c) = N(c, 1)."""
    p, n = paths.linear(), 10_000
    u = bind(analytic.velocity(LAB, p), given(jnp.full((n, 1), 1.5)))
    method = solvers.euler_maruyama(p, keys(n), stochastic.DIFFUSIONS[name]())
    x = solvers.solve(method, u, jax.random.normal(jax.random.key(7), (n, 1)), times.grid(200))
    within(np.asarray(x)[:, 0], 1.5, 1.0, bias=0.05)


def test_without_noise_they_are_the_deterministic_methods():
    x, u = (
        jax.random.normal(jax.random.key(0), (5, 1)),
        bind(analytic.velocity(LAB, paths.trig()), given(jnp.ones((5, 1)))),
    )
    p, ts = paths.trig(), times.grid(9)
    for name, same in (("renoise", "ddim"), ("renoise_2m", "dpmpp_2m")):
        with_none = solvers.solve(solvers.STOCHASTIC[name](p, keys(5), 0.0), u, x, ts)
        np.testing.assert_allclose(with_none, solvers.solve(solvers.SOLVERS[same](p), u, x, ts), rtol=2e-5, atol=1e-6)
    inner = ts[:-1]  # the last step of a stochastic solver is x̂1
    still = solvers.solve(solvers.euler_maruyama(p, keys(5), solvers.memoryless(0.0)), u, x, inner)
    np.testing.assert_allclose(still, solvers.solve(solvers.euler(), u, x, inner), rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("path", sorted(paths.PATHS))
@pytest.mark.parametrize("name", sorted(solvers.STOCHASTIC))
def test_last_step_is_deterministic_and_nothing_is_singular(name, path):
    p, x = paths.PATHS[path](), jax.random.normal(jax.random.key(0), (4, 1))
    u = bind(analytic.velocity(LAB, p), given(jnp.ones((4, 1))))
    states = solvers.solve(solvers.STOCHASTIC[name](p, keys(4), 1.0), u, x, times.grid(6), trajectory=True)
    assert bool(jnp.isfinite(states).all())
    t = times.grid(6)[-2]
    x1, x0 = (f(p, t, states[-2], u(t, states[-2])) for f in (paths.velocity_to_x1, paths.velocity_to_x0))
    end = p.alpha(jnp.float32(1)) * x1 + p.sigma(jnp.float32(1)) * x0
    if name != "renoise_2m" or path != "vp":  # if σ(1) is not 0, the last change of x̂1 matters too
        np.testing.assert_allclose(states[-1], end, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(solvers.STOCHASTIC))
def test_a_sample_depends_on_its_own_key(name):
    p, x = paths.linear(), jax.random.normal(jax.random.key(0), (6, 1))
    u = lambda n: bind(analytic.velocity(LAB, p), given(jnp.ones((n, 1))))  # noqa: E731
    whole = solvers.solve(solvers.STOCHASTIC[name](p, keys(6), 1.0), u(6), x, times.grid(5))
    part = solvers.solve(solvers.STOCHASTIC[name](p, keys(6)[2:4], 1.0), u(2), x[2:4], times.grid(5))
    np.testing.assert_allclose(whole[2:4], part, rtol=1e-5)
    other = solvers.solve(solvers.STOCHASTIC[name](p, keys(6, seed=1), 1.0), u(6), x, times.grid(5))
    assert float(jnp.abs(other - whole).min()) > 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(solvers.STOCHASTIC))
def test_eta_does_not_recompile_and_has_a_gradient(name):
    traces, p = [], paths.linear()

    @jax.jit
    def run(eta, key):
        traces.append(0)
        k = jax.random.split(key, 3)
        method = solvers.STOCHASTIC[name](p, k, eta)
        u = bind(analytic.velocity(LAB, p), given(jnp.ones((3, 1))))
        return solvers.solve(method, u, jnp.ones((3, 1)), times.grid(5)[1:]).sum()

    run(1.0, jax.random.key(0))
    run(0.5, jax.random.key(1))
    assert len(traces) == 1
    slope = jax.grad(run)(0.8, jax.random.key(0))
    difference = (run(0.81, jax.random.key(0)) - run(0.79, jax.random.key(0))) / 0.02
    np.testing.assert_allclose(slope, difference, rtol=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize(("eta", "total"), [(0.0, 1.5), (0.7, 1.0), (0.7, 0.8), (4.0, 1.5), (4.0, 3.0)])
@pytest.mark.parametrize("path", sorted(paths.PATHS))
def test_a_step_is_the_exact_linear_process_where_data_stand_still(path, eta, total):
    """Mean and variance of dx = [W(α̇d + σ̇e) − ηκWe/σ]dt + √(2ηκ)dW for constant d, by RK4 in NumPy."""
    with jax.enable_x64(True):
        p, d, x0, t0, t1 = paths.PATHS[path](), 1.3, -0.4, 0.3, 0.55

        n = 400
        coefficients = np.stack([np.broadcast_to(f(jnp.linspace(t0, t1, 2 * n + 1)), 2 * n + 1) for f in p], 1)

        def slope(half, y):
            """d(mean, variance)/dt after so many half steps."""
            a, s, da, ds = coefficients[half]
            kappa = s * (da * s - a * ds) / a
            pull = total * (ds - eta * kappa / s) / s  # coefficient of x, through e = (x − αd)/σ
            return np.array([pull * y[0] + (total * da - pull * a) * d, 2 * pull * y[1] + 2 * eta * kappa])

        y, h = np.array([x0, 0.0]), (t1 - t0) / n
        for i in range(n):
            k1 = slope(2 * i, y)
            k2 = slope(2 * i + 1, y + h / 2 * k1)
            k3 = slope(2 * i + 1, y + h / 2 * k2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(2 * i + 2, y + h * k3))
        mean, variance = y

        def velocity(t, x):  # Σ w_i·u_i whose mean predicts d
            return total * paths.conditional_velocity(p, t, (x - p.alpha(t) * d) / p.sigma(t), jnp.full_like(x, d))

        solver = solvers.renoise(p, keys(50), eta, total if total == 1 else jnp.full(50, total))
        start, ends = jnp.full((50, 1), x0, float), (jnp.float64(t0), jnp.float64(t1))
        x, _ = jax.jit(lambda x: solver.step(velocity, jnp.int32(3), x, *ends))(start)
        two, _ = jax.jit(
            lambda x: solvers.renoise_2m(p, keys(50), eta, total).step(
                velocity, (jnp.int32(3), jnp.full_like(x, d), jnp.float64(0.1)), x, *ends
            )
        )(start)
        z = stochastic.noise(keys(50), jnp.int32(3), start)
    expected = mean + math.sqrt(variance) * z
    np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(two, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("path", sorted(paths.PATHS))
@pytest.mark.parametrize("eta", [2.0, 4.0])
def test_euler_maruyama_does_not_blow_up_in_its_first_steps(path, eta):
    """For data N(0, 1) every x_t has variance α² + σ²; without the bound on D the first steps had 17, 22 and 6."""
    p, n = paths.PATHS[path](), 20_000
    u = bind(analytic.velocity(analytic.mixture([1.0], [[0.0]], [1.0]), p), given(jnp.zeros(n, int)))
    ts, x = times.grid(50), jax.random.normal(jax.random.key(7), (n, 1))
    states = solvers.solve(solvers.STOCHASTIC["euler_maruyama"](p, keys(n), eta), u, x, ts, trajectory=True)
    exact = np.asarray(p.alpha(ts) ** 2 + p.sigma(ts) ** 2)
    ratio = np.asarray(states.var(axis=(1, 2))) / exact
    assert ratio.max() < 1.4
    assert ratio.min() > 0.95


DIFFUSIONS = {
    "memoryless": lambda t: 1.7 * (1 - t) / t,
    "constant": lambda t: 1.7 + 0 * t,
    "sigma": lambda t: 1.7 * (1 - t),
    "decreasing": lambda t: 1.7 * (1 - t),
    "cosine": lambda t: 1.7 * (np.cos(np.pi * t) + 1) ** 2 / 4,
    "sine": lambda t: 1.7 * np.sin(np.pi * t) ** 2,
}


@pytest.mark.parametrize("name", sorted(stochastic.DIFFUSIONS))
def test_diffusions_are_their_formulas(name):
    t = np.linspace(0.1, 0.9, 9)
    got = stochastic.DIFFUSIONS[name](1.7)(paths.linear(), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(got, DIFFUSIONS[name](t), rtol=1e-5)
    unscaled = stochastic.DIFFUSIONS[name]()(paths.linear(), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(unscaled, DIFFUSIONS[name](t) / 1.7, rtol=1e-5)


def test_memoryless_noise_is_kappa_on_any_path():
    """κ = σΔ/α; on the path trig Δ is π/2."""
    t = np.linspace(0.1, 0.9, 9)
    got = solvers.memoryless(0.6)(paths.trig(), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(got, 0.6 * np.pi / 2 / np.tan(np.pi / 2 * t), rtol=1e-5)


@pytest.mark.parametrize(("eta", "bounded"), [(0.7, False), (40.0, True)])
@pytest.mark.parametrize("total", [1.0, 1.5, 3.0])
def test_a_step_of_euler_maruyama_is_its_formula(total, eta, bounded):
    p, x, d, t, dt = paths.linear(), -0.4, 1.3, 0.4, 0.05
    solver = solvers.euler_maruyama(p, keys(3), solvers.memoryless(eta), total)
    e = (x - t * d) / (1 - t)
    state = jnp.full((3, 1), x)
    got, _ = solver.step(
        lambda t, x: jnp.full_like(x, total * (d - e)), jnp.int32(3), state, jnp.float32(t), jnp.float32(t + dt)
    )
    free, bound = eta * (1 - t) / t, (1 - t) ** 2 / (2 * total * dt)
    assert (free > bound) == bounded
    z, amount = np.asarray(stochastic.noise(keys(3), jnp.int32(3), state)), min(free, bound)
    drift = total * (d - e) - amount * total * e / (1 - t)
    np.testing.assert_allclose(got, x + dt * drift + math.sqrt(2 * amount * dt) * z, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(stochastic.DIFFUSIONS))
def test_under_guidance_each_diffusion_has_moments_of_its_own(name):
    """γ = 3 and scale 1.7, where D matters: against dm/dt and dv/dt of the linear SDE in NumPy."""
    p, n, gamma, scale = paths.linear(), 20_000, 3.0, 1.7
    c = given(jnp.full((n, 1), 1.5))
    u = analytic.velocity(LAB, p)
    guided = guidance.guide(u, c, guidance.classifier_free(u, c, gamma), passes="apart")
    method = solvers.euler_maruyama(p, keys(n), stochastic.DIFFUSIONS[name](scale))
    x = solvers.solve(method, guided, jax.random.normal(jax.random.key(7), (n, 1)), times.grid(400))
    mean, variance, steps = 0.0, 1.0, 20_000
    for i in range(steps):
        t, dt = (i + 0.5) / steps, 1 / steps
        slope = offset = 0.0  # coefficients of the mixed velocity
        for w, m, v in ((1 - gamma, 0.0, 2.0), (gamma, 1.5, 1.0)):
            b = (t * v - (1 - t)) / (t * t * v + (1 - t) ** 2)
            slope, offset = slope + w * b, offset + w * (m - b * t * m)
        # s = (tu − x)/(1 − t)
        d = min(DIFFUSIONS[name](t), (1 - t) ** 2 / (2 / 400))
        drift, push = slope + d * (t * slope - 1) / (1 - t), offset + d * t * offset / (1 - t)
        mean, variance = mean + dt * (drift * mean + push), variance + dt * (2 * drift * variance + 2 * d)
    within(np.asarray(x)[:, 0], mean, variance, bias=0.05)


@pytest.mark.parametrize("name", sorted(solvers.STOCHASTIC))
def test_noise_is_added_on_the_way_to_data_alone(name):
    solver = solvers.STOCHASTIC[name](paths.linear(), keys(2), 1.0)
    with pytest.raises(ValueError, match="strictly increasing, without NaN; got"):
        solvers.solve(solver, lambda t, x: -x, jnp.ones((2, 1)), jnp.array([1.0, 0.5, 0.0]))
    run = jax.jit(lambda ts: solvers.solve(solver, lambda t, x: -x, jnp.ones((2, 1)), ts))
    assert bool(jnp.isnan(run(jnp.array([0.9, 0.5, 0.2]))).all())


@pytest.mark.parametrize("total", [1.0, 1.5, 3.0])
def test_the_second_order_term_has_half_the_weight_of_the_data_in_the_step(total):
    """That weight is how far a first-order step moves if the data prediction rises by 1, at the same x and noise."""
    p, x, t, t_next = paths.trig(), jnp.full((3, 1), -0.4), jnp.float32(0.3), jnp.float32(0.5)

    def velocity(d):
        def mixed(t, x):
            noise = (x - p.alpha(t) * d) / p.sigma(t)
            return total * paths.conditional_velocity(p, t, noise, jnp.full_like(x, d))

        return mixed

    first = solvers.renoise(p, keys(3), 0.7, total)
    low, high = (first.step(velocity(d), jnp.int32(2), x, t, t_next)[0] for d in (1.3, 2.3))
    h = jnp.log(p.alpha(t_next) / p.sigma(t_next)) - jnp.log(p.alpha(t) / p.sigma(t))
    memory = jnp.int32(2), jnp.full_like(x, 1.3 - 1.0), h / 2  # the prediction rose by 1 in a step of half the length
    second, kept = solvers.renoise_2m(p, keys(3), 0.7, total).step(velocity(1.3), memory, x, t, t_next)
    np.testing.assert_allclose(second, low + 0.5 * (high - low) * 2, rtol=1e-4)
    assert int(kept[0]) == 3  # the next step draws different noise


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("total", [1.0, 1.6])
def test_the_last_step_to_the_mean_has_the_drift_of_the_step_and_no_noise(total, eta):
    """x + (u − D·W·ē/σ)dt, with D above the bound of the other steps; where D is infinite, with that bound."""
    p, t, dt = paths.trig(), 0.9, 0.1
    x, u = (jnp.asarray(a) for a in np.random.default_rng(0).normal(size=(2, 3, 2)))
    a, s, da, ds = (float(f(jnp.float32(t))) for f in p)

    def last(d, start=t):
        method = solvers.euler_maruyama(p, keys(3), d, total if total == 1 else jnp.float32(total), last="mean")
        return method.step(lambda t, x: u, jnp.int32(0), x, jnp.float32(start), jnp.float32(1.0))[0]

    d = stochastic.DIFFUSIONS["constant"](eta)
    noise = (da * x - a * u / total) / (da * s - a * ds)
    assert eta == 0 or eta > s**2 / (2 * total * dt)
    np.testing.assert_allclose(last(d), x + dt * (u - eta * total * noise / s), rtol=1e-3, atol=1e-4)
    assert np.isfinite(last(solvers.memoryless(eta), 0.0)).all()
    noise = x  # at t = 0
    bounded = x + u - (total * noise / (2 * total) if eta else 0)
    np.testing.assert_allclose(last(solvers.memoryless(eta), 0.0), bounded, rtol=1e-3, atol=1e-4)


def test_steps_before_the_last_are_the_same_for_both_kinds_of_it():
    p, x = paths.linear(), jax.random.normal(jax.random.key(0), (4, 1))
    u = bind(analytic.velocity(LAB, p), given(jnp.ones((4, 1))))
    data, mean = (
        solvers.solve(solvers.euler_maruyama(p, keys(4), last=kind), u, x, times.grid(5), trajectory=True)
        for kind in ("data", "mean")
    )
    np.testing.assert_array_equal(data[:-1], mean[:-1])
    assert np.abs(data[-1] - mean[-1]).min() > 1e-4
    with pytest.raises(ValueError, match=r"last must be one of .*'data', 'mean'.*; got 'Tweedie'"):
        solvers.euler_maruyama(p, keys(4), last="Tweedie")  # pyright: ignore[reportArgumentType]
