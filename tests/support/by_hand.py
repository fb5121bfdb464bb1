"""Paths, velocities and scales written out in NumPy, in float64: the reference for the library.

Scales differ between samples and change with time; γ is small for samples 0 and 1, large for 3 and 4, negative for 2.
"""

from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

B, SIZE = 5, 7
RNG = np.random.default_rng(0)
X, V, NULL, AWAY, OTHER = RNG.normal(size=(5, B, SIZE))
GAMMAS, WEIGHTS = np.array([0.4, 1.3, -0.8, 3.5, 6.0]), np.array([0.3, -0.6, 1.2, 2.0, 0.9])
T = 0.3


@overload
def arrays(a: Any, /) -> tuple[jax.Array]: ...
@overload
def arrays(a: Any, b: Any, /) -> tuple[jax.Array, jax.Array]: ...
@overload
def arrays(*values: Any) -> tuple[jax.Array, ...]: ...
def arrays(*values):
    return tuple(jnp.asarray(a) for a in values)


def column(values):
    return np.reshape(values, (-1, 1))


def g(t):
    return GAMMAS * (0.5 + t)


def n(t):
    return WEIGHTS * (1.2 - t)


def scheduled(f):
    """The same schedule for the library."""
    return lambda t: jnp.asarray(f(t))


G, N = scheduled(g), scheduled(n)


def coefficients(path, t):
    """α, σ and their derivatives, written out."""
    if path == "linear":
        return t, 1 - t, 1.0, -1.0
    if path == "trig":
        h = np.pi / 2
        return np.sin(h * t), np.cos(h * t), h * np.cos(h * t), -h * np.sin(h * t)
    s = 1 - t
    alpha, beta = np.exp(-0.05 * s - 0.25 * 19.9 * s**2), 0.1 + 19.9 * s
    sigma = np.sqrt(1 - alpha**2)
    return alpha, sigma, beta * alpha / 2, -(alpha**2) * beta / 2 / sigma


def data(path, t, x, u):
    """E[x1|x_t], from the two equations x = αD + σe and u = α̇D + σ̇e."""
    a, b, da, db = coefficients(path, t)
    return np.linalg.solve(np.array([[a, b], [da, db]]), np.stack([np.ravel(x), np.ravel(u)]))[0].reshape(x.shape)


def noise(path, t, x, u):
    """E[x0|x_t], from the same."""
    a, b, da, db = coefficients(path, t)
    return np.linalg.solve(np.array([[a, b], [da, db]]), np.stack([np.ravel(x), np.ravel(u)]))[1].reshape(x.shape)


def from_data(path, t, x, d):
    """The velocity that predicts d at x."""
    a, b, da, db = coefficients(path, t)
    return da * d + db * (x - a * d) / b


def lengths(x):
    return np.sqrt(np.sum(x.reshape(len(x), -1) ** 2, 1)).reshape(-1, *[1] * (x.ndim - 1))


def dot(x, y):
    return column([np.vdot(a, b) for a, b in zip(x, y, strict=True)])


def cfg(v, ref, scale):
    return ref + column(scale) * (v - ref)


def projected(path, t, x, v, difference, parallel, largest):
    """APG: D_v + (γ − 1)(g_⊥ + η·g_∥) for a difference g of data predictions."""
    d = data(path, t, x, v)
    short = difference * np.minimum(1, largest / lengths(difference))
    along = d * dot(short, d) / dot(d, d)
    return from_data(path, t, x, d + column(g(t) - 1) * (short - along + parallel * along))
