"""The ancestral solver: one step against the formula in NumPy, on every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import chain, paths, solvers

B, C = 3, 2
RNG = np.random.default_rng(4)
X, U, V = RNG.normal(size=(3, B, 4, C))
LINKS = chain.linear()


def keys(n):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(n))


def step(path, t, t_next, x=X, index=0, rows=slice(None)):
    """The new x of one step of a velocity that says U and V."""
    state = jnp.asarray(np.concatenate([x, 0 * x], axis=-1)[rows])
    said = jnp.asarray(np.concatenate([U, V], axis=-1)[rows])
    solver = solvers.ddpm(path, keys(B)[rows], LINKS)
    new, count = solver.step(lambda t, x: said, jnp.int32(index), state, jnp.float64(t), jnp.float64(t_next))
    assert int(count) == index + 1
    np.testing.assert_array_equal(new[..., C:], 0)
    return np.asarray(new[..., :C])


@pytest.mark.parametrize("name", sorted(paths.PATHS))
@pytest.mark.parametrize(("t", "t_next"), [(0.3, 0.45), (0.8, 0.85)])
def test_a_step_is_its_formula(name, t, t_next):
    with jax.enable_x64(True):
        p = paths.PATHS[name]()
        a, s, da, ds, a2, s2 = (float(f(jnp.float64(r))) for r in (t, t_next) for f in p[: 4 if r == t else 2])
        x1 = (s * U - ds * X) / (da * s - a * ds)
        now, then = a**2 / (a**2 + s**2), a2**2 / (a2**2 + s2**2)
        beta = 1 - now / then
        small = beta * (1 - then) / (1 - now)
        scale, scale2 = 1 / np.hypot(a, s), 1 / np.hypot(a2, s2)
        mean = (np.sqrt(then) * beta * x1 + np.sqrt(now / then) * (1 - then) * scale * X) / (1 - now)
        spread = np.exp(((V + 1) * np.log(beta) + (1 - V) * np.log(small)) / 4)
        z = np.stack([jax.random.normal(jax.random.fold_in(key, 5), (4, C)) for key in keys(B)])
        np.testing.assert_allclose(step(p, t, t_next, index=5), (mean + spread * z) / scale2, rtol=1e-8)


def test_a_step_to_the_data_is_their_prediction_and_a_sample_has_its_own_noise():
    with jax.enable_x64(True):
        p = paths.linear()
        np.testing.assert_allclose(step(p, 0.9, 1.0), X + 0.1 * U, rtol=1e-12)
        np.testing.assert_allclose(step(p, 0.3, 0.5)[1:], step(p, 0.3, 0.5, rows=slice(1, None)), rtol=1e-12)
        assert np.isfinite(step(p, 0.0, 0.2)).all()
