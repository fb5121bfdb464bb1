"""A differential equation whose solution is known."""

import jax.numpy as jnp


def problem(t, x):
    """x' = −2t·x + cos t·e^(−t²), which depends on time."""
    return -2 * t * x + jnp.cos(t) * jnp.exp(-(t**2))


def exact(t, x0):
    """The solution of ``problem`` from x0 at t = 0: (x0 + sin t)·e^(−t²)."""
    return (x0 + jnp.sin(t)) * jnp.exp(-(t**2))
