"""Products whose weights do not sum to 1: their solver against the exact linear process, and their normalisation."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, lab, paths, solvers, tilted, times
from flowguide.condition import given
from flowguide.guidance import Reference

KEY = jax.random.key(0)
MEANS, VARIANCES = (0.8, -0.5), (0.6, 0.9)
LAW = analytic.mixture(jnp.ones(2), jnp.array(MEANS)[:, None], jnp.array(VARIANCES))


def product(weights, count, path=None):
    """Π N(m_i, v_i)^{w_i} on the line, and its mean, variance and normalisation by quadrature."""
    velocity = analytic.velocity(LAW, path or paths.linear())
    conditions = [given(jnp.full(count, k)) for k in range(2)]
    p = tilted.product([Reference(velocity, c) for c in conditions], weights)
    density = np.prod([lab.normal(m, v, lab.AXIS) ** w for m, v, w in zip(MEANS, VARIANCES, weights, strict=True)], 0)
    z = np.trapezoid(density, lab.AXIS)
    mean = np.trapezoid(density * lab.AXIS, lab.AXIS) / z
    return p, mean, np.trapezoid(density * (lab.AXIS - mean) ** 2, lab.AXIS) / z, z


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("weights", "path", "eta", "off"),
    [
        ((0.4, 0.4), "linear", 2.0, 0.01),
        ((0.4, 0.4), "vp", 4.0, 0.01),
        ((1.0, 0.5), "linear", 2.0, 0.01),
        ((1.0, 0.5), "linear", 4.0, 0.01),
        ((1.0, 0.5), "trig", 4.0, 0.01),
        ((2.0, -0.5), "linear", 2.0, 0.01),
        ((2.0, 1.0), "linear", 2.0, 0.05),
        ((2.0, 1.0), "linear", 4.0, 0.05),
    ],
)
def test_products_of_any_sum_are_drawn(weights, path, eta, off):
    """100 steps, 32 sets of 500 particles; ``off`` allows for the relative error of Z from the steps."""
    path = paths.PATHS[path]()
    p, mean, variance, z = product(weights, 32, path)
    draw = partial(tilted.feynman_kac, p, path, ts=times.grid(100), shape=(1,), particles=500, eta=eta)
    r = jax.jit(lambda keys: draw(keys))(jax.random.split(KEY, 32))
    w = jnp.exp(r.log_weights)[..., None]
    for found, exact, bias in (
        (jnp.sum(w * r.x, axis=(1, 2)), mean, 0.08 * math.sqrt(variance)),
        (jnp.sum(w * (r.x - mean) ** 2, axis=(1, 2)), variance, 0.08 * variance),
        (jnp.exp(r.log_z - math.log(z)), 1.0, off),
    ):
        error = float(found.std()) / math.sqrt(32)
        assert error < 0.02
        assert abs(float(found.mean()) - exact) < 3 * error + bias


def both(path, t, x):
    """Velocities and scores of the two Gaussians at t, by NumPy."""
    a, s, da, ds = (float(f(t)) for f in path)
    variance = [a * a * v + s * s for v in VARIANCES]
    us = [da * m + (a * da * v + s * ds) / w * (x - a * m) for m, v, w in zip(MEANS, VARIANCES, variance, strict=True)]
    return us, [-(x - a * m) / w for m, w in zip(MEANS, variance, strict=True)]


def still(keys):
    """A proposal that does not move."""
    return solvers.Solver(lambda x: (), lambda velocity, memory, x, t, t_next: (x + 0 * velocity(t, x), memory), (0.0,))


def weights_of_still_particles(path, weights, steps, **options):
    """log W ``(8,)`` gathered at fixed x, log Z of the start included, and that x."""
    p, *_ = product(weights, 1, path)
    draw = partial(tilted.feynman_kac, p, path, shape=(1,), particles=8, threshold=0.0, solver=still, dtype=float)
    r = draw(KEY[None], times.grid(steps).astype(float), **options)
    return np.asarray(r.log_weights[0] + r.log_z[0] + math.log(8)), np.asarray(r.x[0, :, 0])


def rate(weights, us, scores):
    """(Σ w_i·u_i)·Σ w_i·s_i − Σ w_i·u_i·s_i."""
    mixed, score = (sum(w * a for w, a in zip(weights, terms, strict=True)) for terms in (us, scores))
    return mixed * score - sum(w * u * s for w, u, s in zip(weights, us, scores, strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "end"), [("linear", 0.5), ("trig", 0.5), ("vp", 1.0)])
@pytest.mark.parametrize("weights", [(-2.0, 3.0), (1.0, 0.5)])
def test_weights_are_gathered_by_the_trapezoidal_rule(name, end, weights):
    """The last node is not evaluated: its rate is 0 if κ(1) = 0 and W = 1, and otherwise the previous rate is used."""
    path, steps, total = paths.PATHS[name](), 7, sum(weights)
    with jax.enable_x64(True):
        got, x = weights_of_still_particles(path, weights, steps)
        # ∫N(0, 1)^W relative to ∫N(0, 1/W), the distribution of the start
        expected = np.full(8, 0.5 * ((1 - total) * math.log(2 * math.pi) - math.log(total)))
        for i, t in enumerate(np.asarray(times.grid(steps), float)[:-1]):
            share = (0.5 if i == 0 else 1.0) + ((end if total == 1 else 1.0) - 0.5 if i == steps - 1 else 0.0)
            expected += share / steps * rate(weights, *both(path, t, x))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("until", [1.0, 0.5, 0.45])
def test_a_proposal_adds_its_part_up_to_until(until):
    """The rate for v, plus Σ (w_i − v_i)·log N(x'; μ_i, σ²) over the memoryless steps, at fixed x."""
    path, steps, weights, own = paths.linear(), 10, (-2.0, 3.0), (0.3, 0.7)
    with jax.enable_x64(True):
        got, x = weights_of_still_particles(path, weights, steps, proposal=own, until=until)
        expected, nodes = np.zeros(8), np.asarray(times.grid(steps), float)
        gathered = [rate(own, *both(path, t, x)) for t in nodes[:-1]] + [0.0]
        for i, (t, t_next) in enumerate(itertools.pairwise(nodes)):
            if t_next > until:
                break
            expected += (gathered[i] + gathered[i + 1]) / 2 / steps
            if i == steps - 1:
                continue  # a step without noise has no density
            us, _ = both(path, t, x)
            fade = (t / (1 - t)) / (t_next / (1 - t_next))
            variance = (1 - t_next) ** 2 * (1 - fade**2)
            for w, v, u in zip(weights, own, us, strict=True):
                mean = t_next * (x + (1 - t) * u) + (1 - t_next) * fade * (x - t * u)
                expected -= (w - v) * (x - mean) ** 2 / (2 * variance)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_start_has_variance_one_over_the_sum_of_weights():
    (_, of_one), (_, of_three) = (weights_of_still_particles(paths.linear(), w, 2) for w in [(-2.0, 3.0), (2.0, 1.0)])
    np.testing.assert_allclose(of_three * math.sqrt(3), of_one, rtol=1e-6)
    assert of_one.std() > 0.3


@pytest.mark.parametrize("clip", [0.05, 0.3])
def test_a_clipped_increment_stays_near_the_mean(clip):
    """Both of the two steps add the same: the rate is 0 at both ends of time, and the particles do not move."""
    with jax.enable_x64(True):
        gained, _ = weights_of_still_particles(paths.linear(), (-2.0, 3.0), 2)
        got, _ = weights_of_still_particles(paths.linear(), (-2.0, 3.0), 2, clip=clip)
    distance = (gained - gained.mean()) / 2
    assert clip < np.abs(distance).max()
    np.testing.assert_allclose(got, gained.mean() + 2 * np.clip(distance, -clip, clip), rtol=1e-6, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(("proposal", "eta"), [(None, 2.0), ((0.3, 0.7), 1.0)])
def test_the_default_noise_is_twice_the_memoryless_or_memoryless_for_a_proposal(proposal, eta):
    p, *_ = product((-2.0, 3.0), 1)
    draw = partial(tilted.feynman_kac, p, paths.linear(), KEY[None], times.grid(4), (1,), particles=8)
    default, same, other = (draw(proposal=proposal, eta=e).x for e in (None, eta, eta + 1))
    np.testing.assert_array_equal(default, same)
    assert np.abs(default - other).max() > 0.01
