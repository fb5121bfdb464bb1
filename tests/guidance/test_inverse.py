"""Measurements against dense matrices, and posterior guidance against the exact posterior of Gaussians."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from flowguide import analytic, condition, guidance, paths, solvers, times
from flowguide.condition import given
from flowguide.guidance import inverse, with_measurement
from tests.support.by_hand import coefficients, data

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = (4, 6, 2)
D = 48
RNG = np.random.default_rng(0)
KNOWN = RNG.random(SHAPE) < 0.6
KERNEL = RNG.normal(size=(3, 2))
MATRIX = RNG.normal(size=(5, D)) / 4


def dense(name):
    """The matrix of each measurement, number by number."""
    if name == "mask":
        return np.diag(KNOWN.ravel().astype(float))
    if name == "linear":
        return MATRIX
    rows = []
    index = np.arange(D).reshape(SHAPE)
    if name == "downsample":
        for i, j, c in np.ndindex(2, 2, 2):
            row = np.zeros(D)
            row[index[2 * i : 2 * i + 2, 3 * j : 3 * j + 3, c].ravel()] = 1 / 6
            rows.append(row)
    else:
        for i, j, c in np.ndindex(SHAPE):
            row = np.zeros(D)
            for a, b in np.ndindex(KERNEL.shape):  # the number at its centre, (1, 1), falls on the pixel itself
                row[index[(i - (a - 1)) % 4, (j - (b - 1)) % 6, c]] += KERNEL[a, b]
            rows.append(row)
    return np.stack(rows)


def measure(name):
    if name == "linear":
        matrix = MATRIX.T.reshape(*SHAPE, 5)
        return inverse.linear(lambda x: jnp.einsum("bhwc,hwcm->bm", x, matrix), SHAPE, tolerance=1e-12)
    if name == "mask":
        return inverse.mask(KNOWN)
    return inverse.downsample((2, 3)) if name == "downsample" else inverse.blur(KERNEL)


NAMES = ["mask", "downsample", "blur", "linear"]


def rows(a):
    return np.asarray(a).reshape(len(a), -1)


@pytest.mark.parametrize("name", NAMES)
def test_a_measurement_is_its_matrix(name):
    """A, Aᵀ, and (sAAᵀ + nI)^{-1} with another s and n for each sample; <Ax, y> = <x, Aᵀy>."""
    m, a, x = measure(name), dense(name), jnp.asarray(RNG.normal(size=(3, *SHAPE)))
    found = m.apply(x)
    np.testing.assert_allclose(rows(found), rows(x) @ a.T, atol=1e-12)
    y = jnp.asarray(RNG.normal(size=found.shape))
    np.testing.assert_allclose(rows(m.adjoint(y)), rows(y) @ a, atol=1e-12)
    np.testing.assert_allclose(np.vdot(found, y), np.vdot(x, m.adjoint(y)), rtol=1e-12)
    s, n = np.array([0.3, 2.0, 0.7]), np.array([0.2, 0.05, 1.3])
    z = rows(m.solve(y, jnp.asarray(s), jnp.asarray(n)))
    for i in range(3):
        np.testing.assert_allclose(z[i], np.linalg.solve(s[i] * a @ a.T + n[i] * np.eye(len(a)), rows(y)[i]), atol=1e-9)


@pytest.mark.parametrize("name", ["mask", "downsample", "blur", "linear"])
def test_each_channel_may_have_a_noise(name):
    """Of the values of a linear map, which have no channels, each."""
    m, a = measure(name), dense(name)
    y = jnp.asarray(RNG.normal(size=m.apply(jnp.zeros((3, *SHAPE))).shape))
    n = RNG.uniform(0.1, 1, (3, 5) if name == "linear" else (3, 1, 1, 2))
    s = np.array([0.3, 2.0, 0.7])
    z = rows(m.solve(y, jnp.asarray(s), jnp.asarray(n)))
    every = rows(np.broadcast_to(n, y.shape))
    for i in range(3):
        np.testing.assert_allclose(z[i], np.linalg.solve(s[i] * a @ a.T + np.diag(every[i]), rows(y)[i]), atol=1e-9)


def test_a_noise_of_each_channel_guides_like_one_for_all():
    """If they are equal; where one channel has none, nothing is corrected at t = 1."""
    m, p, x = measure("mask"), paths.linear(), jnp.asarray(RNG.normal(size=(2, *SHAPE)))
    y = jnp.asarray(RNG.normal(size=x.shape))

    def at(t, noise):
        return with_measurement(gaussian(p), m, y, p, noise=noise)(jnp.float64(t), x)

    each = jnp.array([0.3, 0.4])
    np.testing.assert_allclose(at(0.6, jnp.tile(each[:, None, None, None], (1, 1, 1, 2))), at(0.6, each), rtol=1e-12)
    channels = jnp.array([[0.3, 0.1], [0.0, 0.4]])[:, None, None, :]
    found = at(0.6, channels)
    np.testing.assert_allclose(found[0, ..., 1], at(0.6, 0.1)[0, ..., 1], rtol=1e-12)
    np.testing.assert_allclose(found[1, ..., 0], at(0.6, 0.0)[1, ..., 0], rtol=1e-12)
    m, y = measure("downsample"), m.apply(y)[:, ::2, ::3]
    np.testing.assert_array_equal(at(1.0, channels)[1], gaussian(p)(jnp.float64(1), x)[1])


def test_the_gaussian_kernel():
    """The density of a Gaussian, scaled to a sum of 1; it ends at 4 sigma, or where a short side does."""
    kernel = inverse.gaussian(0.8, (100, 4))
    assert kernel.shape == (9, 3)
    i, j = np.meshgrid(np.arange(-4, 5), np.arange(-1, 2), indexing="ij")
    expected = np.exp(-(i**2 + j**2) / (2 * 0.64))
    np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-12)
    assert inverse.gaussian(2.0, (1, 7)).shape == (1, 7)


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_solve_is_the_pseudoinverse(name):
    """The mask and this kernel, a mean of three, remove part of x: z is 0 there, and its gradients are finite."""
    m = inverse.blur(np.array([[1, 1, 1, 0]]) / 3) if name == "blur" else measure(name)
    y = jnp.asarray(RNG.normal(size=m.apply(jnp.zeros((2, *SHAPE))).shape))
    s, n = jnp.array([0.3, 2.0]), jnp.zeros(2)
    z = m.solve(y, s, n)
    a = rows(m.apply(jnp.eye(D).reshape(D, *SHAPE))).T
    expected = rows(y) @ np.linalg.pinv(a @ a.T, rcond=1e-10).T / np.array([[0.3], [2.0]])
    np.testing.assert_allclose(rows(z), expected, atol=1e-8)
    if name != "linear":
        gradients = jax.grad(lambda *args: jnp.sum(m.solve(*args) ** 2), (0, 1, 2))(y, s, n)
        assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("sides", [(6,), (4, 6), (2, 4, 6)])
def test_any_number_of_axes(sides):
    """A constant stays constant, and the adjoint conserves the sum."""
    x = jnp.full((2, *sides, 3), 1.7)
    half = inverse.downsample(2).apply(x)
    assert half.shape == (2, *(n // 2 for n in sides), 3)
    np.testing.assert_allclose(half, 1.7)
    kernel = RNG.random((2,) * len(sides))
    np.testing.assert_allclose(inverse.blur(kernel / kernel.sum()).apply(x), x, rtol=1e-12)
    np.testing.assert_allclose(inverse.downsample(2).adjoint(half).sum(), half.sum())


MEAN, V, NOISE = RNG.normal(size=SHAPE), 0.6, 0.4


def gaussian(p, variance=V):
    """The velocity of N(m, vI) for any path."""

    def u(t, x):
        t = jnp.reshape(t, (-1, 1, 1, 1))
        a, b, da, db = (f(t) for f in p)
        return da * MEAN + (a * da * variance + b * db) / (a * a * variance + b * b) * (x - a * MEAN)

    return u


def posterior(matrix, y, mean, covariance, noise):
    """Mean and covariance of x ~ N(mean, covariance) given Ax + noise = y."""
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + noise**2 * np.eye(len(matrix)))
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def pushed(velocity, mean, covariance, p, steps):
    """Mean and covariance of the flow of p_0 by an affine velocity: where it takes a basis of noise."""
    a, b = (float(f(jnp.float64(0))) for f in p[:2])
    root = np.linalg.cholesky(a * a * covariance + b * b * np.eye(len(mean)))
    start = a * mean + np.concatenate([np.zeros((1, len(mean))), root.T])
    shape = SHAPE if len(mean) == D else (len(mean),)
    end = jax.jit(partial(solvers.solve, solvers.rk4(), velocity))(jnp.asarray(start.reshape(-1, *shape)), steps)
    end = rows(end)
    return end[0], (end[1:] - end[0]).T @ (end[1:] - end[0])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("path", "name", "error"),
    [("linear", name, 1e-6) for name in NAMES]
    + [("trig", name, 1e-5) for name in ("mask", "blur")]
    + [("vp", name, 1e-4) for name in ("mask", "downsample")],
)
def test_the_flow_samples_the_posterior_of_a_gaussian(path, name, error):
    """Exact for N(m, vI), m ≠ 0 and v ≠ 1: the flow is affine, so its mean and covariance need no samples."""
    p, m, a = paths.PATHS[path](), measure(name), dense(name)
    y = RNG.normal(size=m.apply(jnp.zeros((1, *SHAPE))).shape)
    mean, covariance = posterior(a, y.ravel(), MEAN.ravel(), V * np.eye(D), NOISE)
    ys = jnp.asarray(np.broadcast_to(y, (D + 1, *y.shape[1:])))
    u = with_measurement(gaussian(p), m, ys, p, noise=NOISE, variance=V)
    found = pushed(u, mean, covariance, p, times.grid(40))
    np.testing.assert_allclose(found[0], mean, atol=error)
    np.testing.assert_allclose(found[1], covariance, atol=error)


def test_how_far_it_is_off_for_other_gaussians():
    """The numbers of the docstring: standard deviations from 0.5 to 1.5 along turned axes, half of x measured."""
    d, p = 16, paths.linear()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0]
    covariance = turn @ np.diag(np.linspace(0.5, 1.5, d) ** 2) @ turn.T
    known = np.arange(d) % 2 == 0
    y = np.random.default_rng(2).multivariate_normal(np.zeros(d), covariance)
    mean, exact = posterior(np.diag(known.astype(float)), known * y, np.zeros(d), covariance, 0.3)
    law = analytic.mixture([1.0], np.zeros((1, d)), covariance[None])
    u = condition.bind(analytic.velocity(law, p), given(np.zeros(d + 1, int)))
    ys, v = jnp.asarray(np.tile(y, (d + 1, 1))), np.trace(covariance) / d
    sd = np.sqrt(np.diag(exact))
    for jacobian_from in (0.02, 1.0):
        guided = with_measurement(u, inverse.mask(known), ys, p, noise=0.3, variance=v, jacobian_from=jacobian_from)
        found = pushed(guided, mean, exact, p, times.grid(60))
        ratio = np.sqrt(np.diag(found[1])) / sd
        assert 0.91 < ratio.min() < 0.98
        assert 1.02 < ratio.max() < 1.09
        assert 0.1 < np.sqrt(np.mean((found[0] - mean) ** 2 / sd**2)) < 0.22


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
@pytest.mark.parametrize("t", [0.3, np.array([0.0, 0.1, 0.6])], ids=["one", "each"])
def test_the_guided_velocity_by_numpy(path, t):
    """u = sin(Wx) + t: J by the chain rule; before ``jacobian_from`` it is αv/(α²v + σ²)·I."""
    m, matrix, p = measure("linear"), dense("linear"), paths.PATHS[path]()
    x, y, inner = RNG.normal(size=(3, D)), RNG.normal(size=(3, 5)), RNG.normal(size=(D, D)) / 7
    noise, v, w = np.array([0.3, 0.5, 0.2]), np.array([0.5, 1.4, 2.0]), np.array([1.0, 0.5, -1.25])  # exact in float32

    def u(t, x):
        return (jnp.sin(x.reshape(3, D) @ inner.T) + jnp.reshape(t, (-1, 1))).reshape(x.shape)

    guided = with_measurement(
        u, m, jnp.asarray(y), p, noise=noise, variance=v, weight=jnp.asarray(w), jacobian_from=0.2
    )
    got = guided(jnp.asarray(t), jnp.asarray(x.reshape(3, *SHAPE)))
    for i, at in enumerate(np.broadcast_to(t, 3)):
        a, b, da, db = coefficients(path, at)
        alone = np.sin(inner @ x[i]) + at
        x1 = data(path, at, x[i], alone)
        r2 = b * b * v[i] / (a * a * v[i] + b * b)
        z = np.linalg.solve(r2 * matrix @ matrix.T + noise[i] ** 2 * np.eye(5), y[i] - matrix @ x1)
        if at < 0.2:
            step = (da - db * a / b) * r2 * matrix.T @ z  # Δ/σ
        else:
            jacobian = (b * np.diag(np.cos(inner @ x[i])) @ inner - db * np.eye(D)) / (da * b - a * db)
            step = b * (b * da / a - db) * jacobian.T @ matrix.T @ z
        np.testing.assert_allclose(np.asarray(got[i]).ravel(), alone + w[i] * step, rtol=1e-7, atol=1e-9)


def test_a_velocity_without_derivatives():
    """``jacobian_from=1`` never differentiates it: a while loop has no reverse mode."""

    def u(t, x):
        return jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] * 0.5), (0, x))[1]

    x, p = jnp.ones((1, 2)), paths.linear()
    measured = inverse.mask(np.array([True, False])), 0 * x, p
    got = with_measurement(u, *measured, jacobian_from=1.0)(jnp.float64(0.5), x)
    np.testing.assert_allclose(got, [[0.25 - 0.5 * 1.125 / 0.25, 0.25]])  # x̂1 = x + u/2, r² = 1/2, Δ/σ = 2
    with pytest.raises(ValueError, match=r"[Rr]everse-mode"):
        with_measurement(u, *measured)(jnp.float64(0.5), x)


def test_the_edge_where_the_jacobian_begins():
    """t = jacobian_from is inside; a velocity without x in it has J = −σ̇/Δ·I, which tells the two apart."""
    x = jnp.ones((1, 2))

    def step(t, **settings):
        guided = with_measurement(
            lambda t, x: 0 * x, inverse.mask(np.array([True, True])), 0 * x, paths.linear(), noise=0.5, **settings
        )
        return float(guided(jnp.float64(t), x)[0, 0])

    r2 = 0.8**2 / (0.2**2 + 0.8**2)
    z = -1 / (r2 + 0.25)
    assert step(0.2, jacobian_from=0.2) == pytest.approx(0.8 / 0.2 * z)
    assert step(0.2, jacobian_from=0.2001) == step(0.2, jacobian_from=1.0) == pytest.approx(r2 / 0.8 * z)


@pytest.mark.parametrize(
    ("path", "solver", "error"),
    [("linear", solver, 1e-12) for solver in ("euler", "midpoint", "ab2", "ddim", "dpmpp_2m", "unipc2")]
    + [("trig", "ddim", 1e-12), ("trig", "unipc2", 1e-12), ("trig", "midpoint", 0.01)]
    + [("vp", "ddim", 5e-3), ("vp", "dpmpp_2m", 5e-3), ("vp", "midpoint", 0.05)],  # σ = 1e-3 at the end of vp
)
def test_without_noise_known_pixels_end_at_y(path, solver, error):
    p, y = paths.PATHS[path](), jnp.asarray(RNG.normal(size=(2, *SHAPE)))
    u = with_measurement(gaussian(p), inverse.mask(KNOWN), y, p, variance=V)
    x = solvers.solve(solvers.SOLVERS[solver](p), u, jnp.asarray(RNG.normal(size=y.shape)), times.grid(20))
    np.testing.assert_allclose(x[:, KNOWN], y[:, KNOWN], atol=error)


@pytest.mark.parametrize(("path", "most"), [("linear", 0.1), ("vp", 0.3)])
def test_without_noise_there_is_no_correction_at_the_end(path, most):
    """Solvers that evaluate at t = 1 miss y by about half a step; noise makes the correction finite there."""
    p, y = paths.PATHS[path](), jnp.asarray(RNG.normal(size=(2, *SHAPE)))
    u = with_measurement(gaussian(p), inverse.mask(KNOWN), y, p, variance=V)
    x = jnp.asarray(RNG.normal(size=y.shape))
    np.testing.assert_array_equal(u(jnp.float64(1), x), gaussian(p)(jnp.float64(1), x))
    end = solvers.solve(solvers.heun(), u, x, times.grid(20))
    assert 0.01 < np.abs(end - y)[:, KNOWN].max() < most
    gradient = jax.grad(lambda x: jnp.sum(u(jnp.array([0.0, 1.0]), x) ** 2))(x)
    assert np.isfinite(gradient).all()
    noisy = with_measurement(gaussian(p), inverse.mask(KNOWN), y, p, noise=jnp.array([0.0, 0.5]), variance=V)
    difference = np.asarray(noisy(jnp.float64(1), x) - u(jnp.float64(1), x))
    expected = 0.05 * (y - x) * KNOWN / 0.25 if path == "vp" else 0 * y  # κ(1) = β/2 on vp, else 0
    np.testing.assert_allclose(difference, expected * np.array([0, 1]).reshape(2, 1, 1, 1), rtol=5e-3)


@pytest.mark.thorough
def test_it_guides_a_guided_velocity_under_jit_and_vmap_without_recompiling():
    """Each y under vmap is that y alone; another y, noise or v needs no new program; γ = 1 is conditional."""
    law = analytic.mixture([0.5, 0.5], np.array([[1.0, -0.5, 0.3], [-1.0, 0.4, 0.2]]), 0.3)
    p, c, traces = paths.linear(), given(jnp.array([0, 1])), []
    known, x0 = np.array([True, False, False]), jnp.asarray(RNG.normal(size=(2, 3)))
    network = analytic.velocity(law, p)

    @jax.jit
    def sample(y, noise, variance, gamma):
        traces.append(None)
        rules = guidance.classifier_free(network, c, gamma)
        u = with_measurement(
            guidance.guide(network, c, rules), inverse.mask(known), y, p, noise=noise, variance=variance
        )
        return solvers.solve(solvers.euler(), u, x0, times.grid(4).astype(float))

    ys = jnp.asarray(RNG.normal(size=(3, 2, 3)))
    alone = jnp.stack([sample(y, 0.3, 0.3, 1.0) for y in ys])
    sample(ys[0], 0.1, 0.5, 3.0)
    assert len(traces) == 1
    np.testing.assert_allclose(jax.vmap(lambda y: sample(y, 0.3, 0.3, 1.0))(ys), alone, rtol=1e-9)
    conditional = with_measurement(condition.bind(network, c), inverse.mask(known), ys[0], p, noise=0.3, variance=0.3)
    expected = solvers.solve(solvers.euler(), conditional, x0, times.grid(4).astype(float))
    np.testing.assert_allclose(alone[0], expected, rtol=1e-9)


def test_gradient_with_respect_to_y_and_noise():
    p, m = paths.trig(), measure("linear")
    x, y = jnp.asarray(RNG.normal(size=(2, *SHAPE))), jnp.asarray(RNG.normal(size=(2, 5)))

    def loss(y, noise):
        u = with_measurement(gaussian(p), m, y, p, noise=noise)
        return jnp.sum(solvers.solve(solvers.euler(), u, x, jnp.linspace(0, 1, 4)) ** 2)

    check_grads(loss, (y, jnp.float64(0.5)), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_of_x_is_kept(name, dtype):
    """In bfloat16 too, and a network that answers in bfloat16 stays one."""
    p, m, x = paths.linear(), measure(name), jnp.ones((2, *SHAPE), dtype)
    y = m.apply(x)
    assert y.dtype == m.adjoint(y).dtype == dtype
    u = with_measurement(lambda t, x: (x * 0.5).astype(dtype), m, y, p, noise=0.3)
    got = u(jnp.float32(0.5), x)
    assert got.dtype == dtype
    assert np.isfinite(got.astype(float)).all()


X, VECTORS = jnp.zeros((2, *SHAPE)), jnp.zeros((2, 6))


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: inverse.mask(np.ones((4, 6)) > 0).apply(X), ValueError, r"got \(4, 6\) for x of shape \(2, 4, 6, 2\)"),
        (lambda: inverse.mask(np.ones((3, 2, 4, 6, 2)) > 0).apply(X), ValueError, "must broadcast to x"),
        (lambda: inverse.mask(np.ones((4, 6))), TypeError, "float64: compare it"),
        (lambda: inverse.downsample(0), ValueError, "1 or more; got 0"),
        (lambda: inverse.downsample(()), ValueError, r"1 or more; got \(\)"),
        (lambda: inverse.downsample(4).apply(X), ValueError, r"must divide the sides of x.*\(2, 4, 6, 2\)"),
        (lambda: inverse.downsample((2, 2, 2)).apply(X), ValueError, "needs 3 axes between"),
        (lambda: inverse.downsample(2).apply(VECTORS), ValueError, r"one or more axes.*\(2, 6\)"),
        (lambda: inverse.blur(np.ones(3)).apply(X), ValueError, r"kernel of shape \(3,\) for x of shape \(2, 4"),
        (lambda: inverse.blur(np.ones((5, 3))).apply(X), ValueError, "no longer than that of x"),
        (lambda: inverse.blur(KERNEL).solve(X, jnp.ones(2), jnp.ones((2, 4, 1, 1))), ValueError, "one noise a channel"),
        (lambda: inverse.blur(1.0).apply(VECTORS), ValueError, "one axis"),
        (lambda: inverse.linear(lambda x: x.sum(), SHAPE), ValueError, "keep the batch axis"),
        (lambda: inverse.linear(lambda x: x**2, SHAPE), ValueError, "must be linear in x"),
        (lambda: step(y=X[0]), ValueError, r"\(2, 4, 6, 2\) for x.*got \(4, 6, 2\): one y per sample"),
        (lambda: step(noise=-0.1), ValueError, "noise must be 0 or more; got -0.1"),
        (lambda: step(variance=np.array([1.0, 0.0])), ValueError, "variance must be positive"),
        (lambda: step(solvers.StatefulVelocity(lambda x: (), lambda m, t, x: (x, m))), TypeError, "needs a vector"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(act, error, message):
    with pytest.raises(error, match=message):
        act()


def step(velocity=lambda t, x: x, y=X, **settings):
    return with_measurement(velocity, inverse.mask(KNOWN), y, paths.linear(), **settings)(jnp.float64(0.5), X)
