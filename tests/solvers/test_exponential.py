"""Exponential integrators and Adams methods against the formulas of the papers in NumPy, on uneven grids."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import paths, solvers

INSIDE = np.array([0.1, 0.16, 0.42, 0.47, 0.78, 0.93])  # ratios of consecutive steps in λ from 0.3 to 5
START = np.array([[1.2, -0.4], [-2.0, 0.3], [0.1, 0.9]])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def coefficients(path, t):
    """α, σ and their derivatives."""
    if path == "linear":
        return t, 1 - t, 1.0, -1.0
    if path == "trig":
        h = np.pi / 2
        return np.sin(h * t), np.sin(h * (1 - t)), h * np.cos(h * t), -h * np.sin(h * t)
    s = 1 - t
    alpha, beta = np.exp(-0.05 * s - 0.25 * 19.9 * s**2), 0.1 + 19.9 * s
    sigma = np.sqrt(1 - alpha**2)
    return alpha, sigma, beta * alpha / 2, -(alpha**2) * beta / 2 / sigma


def data(t, x):
    """What the network predicts: anything that bends."""
    return np.tanh(1.5 * x[:, ::-1] - t) + np.sin(3 * t)


def velocity(path):
    """u = α̇D + σ̇(x − αD)/σ; at σ = 0, where x is the data, D is x."""
    p = paths.PATHS[path]()

    def u(t, x):
        d = jnp.tanh(1.5 * x[:, ::-1] - t) + jnp.sin(3 * t)
        a, b = p.alpha(t), p.sigma(t)
        return p.d_alpha(t) * d + p.d_sigma(t) * (x - a * d) / b

    return u


def ratio(path, t):
    """e^λ = α/σ."""
    a, b, _, _ = coefficients(path, t)
    return a / b if b else np.inf


def integral(path, start, end, prediction):
    """∫ e^λ D dλ = ∫ D de^λ, by Gauss and Legendre in λ, for D a function of λ."""
    points, weights = np.polynomial.legendre.leggauss(40)
    lows, highs = np.log(ratio(path, start)), np.log(ratio(path, end))
    nodes = lows + (highs - lows) * (points + 1) / 2
    return sum(w * np.exp(n) * prediction(n) for w, n in zip(weights, nodes, strict=True)) * (highs - lows) / 2


def through(path, ts, values):
    """The polynomial in λ through the values at these times."""
    nodes = [np.log(ratio(path, t)) for t in ts]

    def at(n):
        total = 0.0
        for i, value in enumerate(values):
            total = total + value * np.prod([(n - nodes[j]) / (nodes[i] - nodes[j]) for j in range(len(ts)) if j != i])
        return total

    return at


def predicted(path, t, t_next, x, d, older):
    """DPM-Solver++(2M), Algorithm 2, line by line: D_i = (1 + 1/2r)D − D_prev/2r, r = h_prev/h."""
    _, b, _, _ = coefficients(path, t)
    a1, b1, _, _ = coefficients(path, t_next)
    h = np.log(ratio(path, t_next)) - np.log(ratio(path, t))
    mixed = d
    if older:
        t_before, d_before = older
        r = (np.log(ratio(path, t)) - np.log(ratio(path, t_before))) / h
        mixed = (1 + 1 / (2 * r)) * d - d_before / (2 * r)
    return b1 / b * x - a1 * (np.exp(-h) - 1) * mixed


def dpmpp_2m(path, ts, x):
    past = []
    for t, t_next in pairwise(ts):
        d = data(t, x)
        x = predicted(path, t, t_next, x, d, past[-1] if past else None)
        past.append((t, d))
    return x


def unipc2(path, ts, x):
    """Each x is integrated anew, once D is known at its node: exactly, of the polynomial through the last D."""
    past, start = [], None
    for t, t_next in pairwise(ts):
        d = data(t, x)
        if past:
            t_before = past[-1][0]
            nodes = [*past[-2:], (t, d)]
            prediction = through(path, [n[0] for n in nodes], [n[1] for n in nodes])
            b, b1 = coefficients(path, t_before)[1], coefficients(path, t)[1]
            x = b1 / b * start + b1 * integral(path, t_before, t, prediction)
        start = x
        x = predicted(path, t, t_next, x, d, past[-1] if past else None)
        past.append((t, d))
    return x


REFERENCES = {"dpmpp_2m": dpmpp_2m, "unipc2": unipc2}


@pytest.mark.thorough
@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("path", sorted(paths.PATHS))
@pytest.mark.parametrize("name", REFERENCES)
def test_steps_are_those_of_the_paper(name, path, reverse, steps):
    """Two steps include UniPC's first correction, through two points; three steps its second, through three points."""
    ts = INSIDE[::-1][: steps + 1] if reverse else INSIDE[: steps + 1]
    got = solvers.solve(solvers.SOLVERS[name](paths.PATHS[path]()), velocity(path), jnp.asarray(START), jnp.asarray(ts))
    np.testing.assert_allclose(got, REFERENCES[name](path, ts, START), rtol=1e-9)


@pytest.mark.parametrize("path", ["linear", "trig"])
def test_unipc_at_the_ends(path):
    """Where α = 0 or σ = 0, the correction takes D as linear in α/σ, and the prediction takes it as constant."""
    ts = np.array([0.0, 0.3, 0.45, 1.0])
    d0 = data(ts[0], START)
    a1, b1, _, _ = coefficients(path, ts[1])
    first = a1 * d0 + b1 * START  # at t = 0 x is the noise
    d1 = data(ts[1], first)
    x1 = b1 * (START + (a1 / b1) * (d0 + d1) / 2)  # ∫ D d(α/σ), the trapezoid
    second = predicted(path, ts[1], ts[2], x1, d1, None)
    d2 = data(ts[2], second)
    b2 = coefficients(path, ts[2])[1]
    x2 = b2 / b1 * x1 + b2 * integral(path, ts[1], ts[2], through(path, ts[1:3], [d1, d2]))
    solver = solvers.unipc2(paths.PATHS[path]())
    states = solvers.solve(solver, velocity(path), jnp.asarray(START), jnp.asarray(ts), trajectory=True)
    np.testing.assert_allclose(states[1], first, rtol=1e-9)
    np.testing.assert_allclose(states[2], second, rtol=1e-9)
    np.testing.assert_allclose(states[3], d2, rtol=1e-9)  # to data: x is its prediction
    assert abs(x2 - second).max() > 1e-3
    ts[-1] = 0.6
    got = solvers.solve(solver, velocity(path), jnp.asarray(START), jnp.asarray(ts))
    np.testing.assert_allclose(got, predicted(path, ts[2], ts[3], x2, d2, (ts[1], d1)), rtol=1e-9)


@pytest.mark.parametrize("path", sorted(paths.PATHS))
def test_ddim_is_its_step(path):
    t, t_next = 0.2, 0.65
    (a, b, _, _), (a1, b1, _, _) = coefficients(path, t), coefficients(path, t_next)
    d = data(t, START)
    solver = solvers.ddim(paths.PATHS[path]())
    got = solvers.solve(solver, velocity(path), jnp.asarray(START), jnp.array([t, t_next]))
    np.testing.assert_allclose(got, a1 * d + b1 * (START - a * d) / b, rtol=1e-9)


def bend(t, x):
    return np.cos(3 * t) * x[:, ::-1] - 0.4 * x**2


def adams(ts, x, order, correct=False):
    """x' = x + ∫ of the polynomial through the last ``order`` velocities; ``correct``: anew at the next node."""
    past, start = [], None

    def step(x, nodes, a, b):
        polynomials = np.polyfit([t for t, _ in nodes], np.stack([u.ravel() for _, u in nodes]), len(nodes) - 1)
        wholes = [np.polyint(column) for column in polynomials.T]
        return x + np.reshape([np.polyval(p, b) - np.polyval(p, a) for p in wholes], x.shape)

    for t, t_next in pairwise(ts):
        u = bend(t, x)
        if correct and past:
            x = step(start, [*past[-2:], (t, u)], past[-1][0], t)
        past.append((t, u))
        start = x
        x = step(x, past[-order:], t, t_next)
        if order == 3 and len(past) == 1:  # Heun
            x = start + (t_next - t) * (u + bend(t_next, x)) / 2
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize(("name", "order", "correct"), [("ab2", 2, False), ("ab3", 3, False), ("abm3", 2, True)])
def test_adams_methods_integrate_the_polynomial_through_the_last_velocities(name, order, correct, steps):
    ts = INSIDE[: steps + 1]
    u = lambda t, x: jnp.cos(3 * t) * x[:, ::-1] - 0.4 * x**2  # noqa: E731
    got = solvers.solve(getattr(solvers, name)(), u, jnp.asarray(START), jnp.asarray(ts))
    np.testing.assert_allclose(got, adams(ts, START, order, correct), rtol=1e-9)
