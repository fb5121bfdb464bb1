"""Likelihoods against known densities, and the flow between data and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, guidance, likelihood, paths, solvers, times
from flowguide.condition import bind, given

JOINT = analytic.joint([0.5, -1.0], [0.0], [[1.0, 0.3], [0.3, 0.6]], [[0.4], [-0.2]], [[1.0]])


def setting(path, n=6):
    c = given(jnp.linspace(-1.0, 1.0, n)[:, None])
    return bind(analytic.velocity(JOINT, path), c), c


@pytest.mark.parametrize("name", ["linear", "trig"])
def test_log_density_of_a_gaussian(name):
    """Within 1e-4 nats in float64 (1e-3 in float32, because of accumulated rounding)."""
    with jax.enable_x64(True):
        p = paths.PATHS[name]()
        u, c = setting(p)
        x1 = jax.random.normal(jax.random.key(0), (6, 2))
        law = jax.tree.map(lambda a: a.astype(float), JOINT)
        exact = analytic.log_density(law, p, 1.0, x1, c)
        got = likelihood.log_density(u, x1, ts=times.grid(100).astype(float))
        np.testing.assert_allclose(got.log_density, exact, atol=1e-4)
        np.testing.assert_allclose(likelihood.decode(u, got.x0, ts=times.grid(100).astype(float)), x1, atol=1e-6)
    x1 = x1.astype(jnp.float32)
    u, c = setting(p)
    got = likelihood.log_density(u, x1)
    np.testing.assert_allclose(got.log_density, exact, atol=1e-3)


@pytest.mark.thorough
def test_hutchinson_is_unbiased():
    """The mean over many keys is within its standard error, and more probes reduce the variance."""
    p = paths.linear()
    law = analytic.mixture([0.5, 0.5], [[1.0, 0.5], [-1.0, 0.0]], jnp.array([[[0.3, 0.2], [0.2, 0.4]]] * 2))
    n, x = 2000, jnp.array([0.4, 0.7])
    u = bind(analytic.velocity(law, p), jax.tree.map(jnp.zeros_like, given(jnp.zeros(n, int))))
    keys = jax.random.split(jax.random.key(0), n)
    ts, x1 = times.grid(25), jnp.broadcast_to(x, (n, 2))
    exact = float(likelihood.log_density(u, x1, ts=ts).log_density[0])
    spread = {}
    for probes in (1, 4):
        some = likelihood.log_density(u, x1, divergence=likelihood.hutchinson(keys, (2,), probes), ts=ts).log_density
        spread[probes] = float(some.std())
        assert abs(float(some.mean()) - exact) < 4 * spread[probes] / n**0.5 + 1e-5
    assert spread[1] > 0.05
    np.testing.assert_allclose(spread[4], spread[1] / 2, rtol=0.1)


def test_rademacher_probes_are_exact_on_a_diagonal():
    keys = jax.random.split(jax.random.key(0), 3)
    divergence = likelihood.hutchinson(keys, (2, 4))
    scale = jnp.arange(8.0).reshape(2, 4)
    _, trace = divergence(lambda t, x: scale * x, jnp.float32(0.0), jnp.ones((3, 2, 4)))
    np.testing.assert_allclose(trace, 28.0, rtol=1e-6)


def test_exact_divergence_is_the_trace():
    matrix = jax.random.normal(jax.random.key(0), (6, 6))
    flow = lambda t, x: jnp.sin(x.reshape(-1, 6) @ matrix).reshape(x.shape)  # noqa: E731
    x = jax.random.normal(jax.random.key(1), (4, 2, 3))
    u, trace = likelihood.exact_divergence()(flow, jnp.float32(0.0), x)
    np.testing.assert_array_equal(u, flow(0.0, x))
    jacobian = jax.vmap(jax.jacrev(lambda x: flow(0.0, x[None])[0].reshape(-1)))(x).reshape(4, 6, 6)
    np.testing.assert_allclose(trace, jnp.trace(jacobian, axis1=1, axis2=2), rtol=1e-5)


@pytest.mark.thorough
def test_guided_density_is_that_of_the_sampler():
    """CFG in the lab at γ = 3: normalised and equal to N(0, 2^(1−γ)), not the tilted variance ½."""
    lab, axis = analytic.observation([[1.0]], 1.0), jnp.linspace(-3.0, 3.0, 301)[:, None]
    c, u = given(jnp.zeros((301, 1))), analytic.velocity(lab, paths.linear())
    guided = guidance.guide(u, c, guidance.classifier_free(u, c, 3.0))
    density = np.exp(likelihood.log_density(guided, axis).log_density)
    assert abs(density.sum() * 0.02 - 1) < 1e-3
    np.testing.assert_allclose((density * axis[:, 0] ** 2).sum() * 0.02, 0.25, rtol=2e-3)


def test_decode_undoes_encode():
    u, _ = setting(paths.linear())
    x1 = jax.random.normal(jax.random.key(3), (6, 2))
    np.testing.assert_allclose(likelihood.decode(u, likelihood.encode(u, x1)), x1, atol=1e-4)
    np.testing.assert_array_equal(likelihood.log_density(u, x1).x0, likelihood.encode(u, x1))


def test_bits_per_dimension():
    """A uniform distribution over bytes has 8 bits; halving the range of the scaled data changes nothing."""
    size = 3
    np.testing.assert_allclose(likelihood.bits_per_dimension(-size * jnp.log(2.0), size), 8.0, rtol=1e-6)
    np.testing.assert_allclose(likelihood.bits_per_dimension(jnp.float32(0.0), size, width=1.0), 8.0, rtol=1e-6)


def test_jit_and_gradient_with_checkpoints():
    u, c = setting(paths.linear())
    x1 = jax.random.normal(jax.random.key(3), (6, 2))
    run = jax.jit(
        lambda x: likelihood.log_density(
            u, x, ts=times.grid(30), solver=solvers.heun(), checkpoint=True
        ).log_density.sum()
    )
    score = jax.grad(run)(x1)
    np.testing.assert_allclose(score, analytic.score(JOINT, paths.linear())(jnp.asarray(1.0), x1, c), atol=0.05)


def test_refuses_what_cannot_be():
    u, _ = setting(paths.linear())
    with pytest.raises(ValueError, match=r"strictly increasing from 0 to 1, without NaN; got \[1\. 0\.\]"):
        likelihood.encode(u, jnp.ones((6, 2)), ts=jnp.array([1.0, 0.0]))
    for ts in ([0.0, 0.5, 0.9], [0.1, 1.0]):
        with pytest.raises(ValueError, match="strictly increasing from 0 to 1"):
            likelihood.log_density(u, jnp.ones((6, 2)), ts=jnp.array(ts))
    assert bool(
        jnp.isnan(jax.jit(likelihood.encode, static_argnums=0)(u, jnp.ones((6, 2)), ts=jnp.array([0, 0.9]))).all()
    )
    with pytest.raises(ValueError, match="at least one probe"):
        likelihood.hutchinson(jax.random.split(jax.random.key(0), 2), (2,), 0)


def test_what_is_not_finite_is_no_density():
    u, _ = setting(paths.linear())
    x1 = jnp.ones((6, 2)).at[3, 0].set(jnp.inf)
    with pytest.raises(ValueError, match=r"1 of 6 log-densities are not finite: .*zero_star and rescale"):
        likelihood.log_density(u, x1, ts=times.grid(4))
    inside = jax.jit(lambda x: likelihood.log_density(u, x, ts=times.grid(4)).log_density)(x1)
    np.testing.assert_array_equal(jnp.isfinite(inside), [True, True, True, False, True, True])
