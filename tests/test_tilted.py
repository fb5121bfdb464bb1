"""Samplers of the γ-powered distribution: exact moments, exact normalisation, and identities along single paths."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from flowguide import analytic, lab, likelihood, paths, solvers, tilted, times
from flowguide.condition import given, null
from flowguide.guidance import Reference, against, cfg, constant, guide
from flowguide.guidance.guide import classifier_free
from tests.support.plain import plain_velocity

LINEAR = paths.linear()
KEY = jax.random.key(0)


def labels(*values):
    return given(jnp.array(values))


@partial(jax.jit, static_argnames=("velocity", "count", "steps", "options"))
def powered(velocity, gamma, keys, count, steps, options=()):
    """Particles of p(x)^(1−γ)·p(x|label 0)^γ on the line."""
    p = tilted.powered(velocity, labels(*[0] * len(keys)), gamma)
    return tilted.feynman_kac(p, LINEAR, keys, times.grid(steps), (1,), particles=count, **dict(options))


LAWS = {law.name: law for law in (lab.gaussian(), lab.two_modes())}


def log_normalisation(law, gamma):
    """log ∫ p(x)^(1−γ)·p(x|c)^γ dx by quadrature."""
    density = law.marginal(lab.AXIS) ** (1 - gamma) * law.conditional(lab.AXIS) ** gamma
    return float(np.log(np.trapezoid(density, lab.AXIS)))


def drawn(particles):
    return np.asarray(tilted.resample(jax.random.split(KEY, len(particles.x)), particles.log_weights, particles.x))


@pytest.mark.thorough
@pytest.mark.parametrize("eta", [1.0, 2.0])
def test_gaussian_moments(eta):
    """For c = 1.5, γ = 3 the target has mean 2.25 and variance 0.5, CFG by ODE 3 and 0.25."""
    r = powered(LAWS["Gaussian"].velocity, 3.0, jax.random.split(KEY, 16), 4000, 150, (("eta", eta),))
    w = jnp.exp(r.log_weights)[..., None]
    mean = np.asarray(jnp.sum(w * r.x, axis=(1, 2)))
    variance = np.asarray(jnp.sum(w * (r.x - 2.25) ** 2, axis=(1, 2)))
    for found, exact in ((mean, 2.25), (variance, 0.5)):
        error = found.std() / np.sqrt(len(found))
        assert error < 0.02
        assert abs(found.mean() - exact) < 4 * error + 0.01  # the error of the steps and of finite K


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [2.0, 3.0, 5.0])
def test_two_modes_come_ten_times_closer_than_guidance(gamma):
    law = LAWS["two modes"]
    exact = lab.powered(law, gamma)
    r = powered(law.velocity, gamma, jax.random.split(KEY, 8), 20_000, 100)
    # Particles vary more than independent samples, so this is the mean over eight sets.
    distance = np.mean([lab.distances(x[:, 0], exact)[0] for x in drawn(r)])
    guided, _ = lab.distances(lab.draw(law, lab.Contender("CFG", solver="ab3"), gamma, 20_000, 100), exact)
    assert distance < guided / (10 if gamma > 2 else 3)
    assert r.ess.shape == (8, 100)
    assert not bool(r.resampled[:, -1].any())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "gamma", "options"),
    [
        ("two modes", 3.0, ()),
        ("two modes", 5.0, (("eta", 2.0),)),
        ("Gaussian", 2.0, (("threshold", 0.0),)),
        ("two modes", 2.0, (("threshold", 1.0),)),
    ],
)
def test_the_normalisation_is_estimated_without_bias(name, gamma, options):
    r = powered(LAWS[name].velocity, gamma, jax.random.split(KEY, 64), 256, 200, options)
    ratio = np.exp(np.asarray(r.log_z) - log_normalisation(LAWS[name], gamma))
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.06
    assert abs(ratio.mean() - 1) < 4 * error + 0.01


def plane():
    """Five components in the plane, three labels."""
    key = jax.random.key(5)
    means = 1.5 * jax.random.normal(key, (5, 2))
    roots = 0.4 * jax.random.normal(jax.random.fold_in(key, 1), (5, 2, 2))
    covariances = roots @ jnp.swapaxes(roots, 1, 2) + 0.3 * jnp.eye(2)
    return analytic.mixture(jnp.array([0.3, 0.2, 0.2, 0.2, 0.1]), means, covariances, jnp.array([0, 0, 1, 1, 2]))


def products(velocity, count):
    c, d, e = (labels(*[k] * count) for k in range(3))
    one, two, three = (Reference(velocity, k) for k in (c, d, e))
    return {
        "γ = 3": tilted.powered(velocity, c, 3.0),
        "against a condition": tilted.powered(velocity, c, 1.7, against=d),
        "AND and NOT": tilted.composed(velocity, c, [(c, 1.5), (d, 0.5), (e, -0.7)]),
        "sum 1.5": tilted.product((one, two), (1.0, 0.5)),
        "sum 0.8": tilted.product((one, two), (0.4, 0.4)),
        "sum 1.5, one negative": tilted.product((one, three), (2.0, -0.5)),
    }


PRODUCTS = ("γ = 3", "against a condition", "AND and NOT", "sum 1.5", "sum 0.8", "sum 1.5, one negative")
PATHS = {"linear": paths.linear(), "trig": paths.trig(), "vp": paths.vp()}


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "path"), [*((n, "linear") for n in PRODUCTS), ("γ = 3", "trig"), ("sum 1.5", "trig")])
def test_along_the_flow_weights_and_densities_agree_on_each_path(name, path):
    """log Π p_i(x)^{w_i} − log q(x) = log W for every sample of the guided flow, with q from its likelihood."""
    path = PATHS[path]
    with jax.enable_x64(True):
        law = plane()
        velocity, ts, count = analytic.velocity(law, path), times.grid(2000), 12
        p = products(velocity, 1)[name]
        own = products(velocity, count)[name]

        @jax.jit
        def run(key):
            options = {"threshold": 0.0, "solver": lambda keys: solvers.rk4(), "dtype": float}
            r = tilted.feynman_kac(p, path, key[None], ts, (2,), particles=count, **options)
            log_w = r.log_weights[0] + r.log_z + math.log(count)
            x1 = r.x[0]
            log_p = sum(
                w * analytic.log_density(law, path, jnp.float64(1.0), x1, f.condition)
                for w, f in zip(own.weights, own.factors, strict=True)
            )

            def flow(t, x):
                return tilted.mix(own, [f.velocity(jnp.broadcast_to(t, (count,)), x, f.condition) for f in own.factors])

            q = likelihood.log_density(flow, x1, ts=ts)
            total, square = own.total, jnp.sum(q.x0**2, 1)
            start = -0.5 * total * square + jnp.log(total) - (-0.5 * square)  # N(0, I/W) over N(0, I), d = 2
            return log_w, log_p - (q.log_density + start)

        log_w, expected = run(KEY)
        assert np.ptp(np.asarray(log_w)) > 0.1
        np.testing.assert_allclose(log_w, expected, atol=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["γ = 3", "AND and NOT"])
def test_importance_weights_are_those_of_the_flow(name):
    with jax.enable_x64(True):
        law, count = plane(), 6
        velocity, ts = analytic.velocity(law, LINEAR), times.grid(100)
        p = products(velocity, count)[name]
        x0 = jax.random.normal(KEY, (count, 2), float)

        @jax.jit
        def run(x0):
            def flow(t, x):
                return tilted.mix(p, [f.velocity(jnp.broadcast_to(t, (count,)), x, f.condition) for f in p.factors])

            x1 = solvers.solve(solvers.rk4(), flow, x0, ts)
            return x1, tilted.importance_weights(p, x1, ts=ts)

        x1, w = run(x0)
        exact = sum(
            v * analytic.log_density(law, LINEAR, jnp.float64(1.0), x1, f.condition)
            for v, f in zip(p.weights, p.factors, strict=True)
        )
        np.testing.assert_allclose(w.log_target, exact, atol=1e-4)
        np.testing.assert_allclose(w.log_weights, w.log_target - w.log_sampler)
    with pytest.raises(ValueError, match="sum to 1"):
        tilted.importance_weights(products(velocity, count)["sum 1.5"], x1)


@pytest.mark.thorough
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_the_rate_is_that_of_the_scores(name, path, t):
    """(Σ w_i·u_i)·S − Σ w_i·u_i·s_i, from exact scores instead of velocities."""
    path = PATHS[path]
    with jax.enable_x64(True):
        law, count, t = plane(), 7, jnp.float64(t)
        velocity, score = analytic.velocity(law, path), analytic.score(law, path)
        p, x = products(velocity, count)[name], jax.random.normal(KEY, (count, 2), float)
        ts = jnp.full(count, t)
        us = [f.velocity(ts, x, f.condition) for f in p.factors]
        scores = [score(ts, x, f.condition) for f in p.factors]
        mixed = sum(w * u for w, u in zip(p.weights, us, strict=True))
        total = sum(w * s for w, s in zip(p.weights, scores, strict=True))
        expected = jnp.sum(mixed * total, 1) - sum(
            w * jnp.sum(u * s, 1) for w, u, s in zip(p.weights, us, scores, strict=True)
        )
        np.testing.assert_allclose(tilted.weight_rate(path, p, t, x, us), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("corrections", [1, 2, 4])
def test_matched_corrections_are_the_sde_of_that_strength(corrections):
    """In the limit of small steps: mean and variance at N and 2N steps, extrapolated to the closed form for η = M.

    The process is linear with Gaussian noise, so three starts with the same noise give its slope and offset, and the
    variance follows from the slope and that of the noise alone.
    """
    law = LAWS["Gaussian"]

    def moments(steps):
        keys = jax.random.split(KEY, 4000)

        @jax.jit
        def run(x):
            c = labels(*[0] * len(x))
            solver = tilted.predictor_corrector(LINEAR, keys[: len(x)], corrections)
            guided = guide(law.velocity, c, classifier_free(law.velocity, c, 3.0))
            return solvers.solve(solver, guided, x, times.grid(steps))[:, 0]

        zero, one = run(jnp.zeros((len(keys), 1))), run(jnp.ones((1, 1)))
        slope = float(one[0] - zero[0])
        return float(zero.mean()), slope**2 + float(zero.var())

    coarse, fine = moments(100), moments(400)
    exact = analytic.guided_moments(3.0, 0.0, 2.0, 1.5, 1.0, eta=corrections)
    for rough, better, expected, error in zip(coarse, fine, exact, (0.035, 0.025), strict=True):
        assert abs((4 * better - rough) / 3 - expected) < error
        assert abs(better - expected) < error


@pytest.mark.slow
def test_corrections_come_closer_like_one_over_their_number():
    exact, variance = analytic.tilted_moments(3.0, 0.0, 2.0, 1.5, 1.0)
    count = 20_000
    keys, c = jax.random.split(KEY, count), labels(*[0] * count)
    velocity = LAWS["Gaussian"].velocity

    @partial(jax.jit, static_argnums=0)
    def errors(corrections):
        solver = tilted.predictor_corrector(LINEAR, keys, corrections, rule="noise")
        guided = guide(velocity, c, classifier_free(velocity, c, 3.0))
        x = solvers.solve(solver, guided, jax.random.normal(KEY, (count, 1)), times.grid(50))
        return jnp.abs(x.mean() - exact[0]), jnp.abs(x.var() - variance[0, 0])

    means, variances = zip(*(errors(m) for m in (0, 2, 8)), strict=True)
    assert means[0] > 5 * means[1] > 8 * means[2]
    assert variances[0] > 2 * variances[1] > 3 * variances[2]


def test_a_corrector_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="corrections >= 0"):
        tilted.predictor_corrector(LINEAR, jax.random.split(KEY, 2), -1)
    solver = tilted.predictor_corrector(LINEAR, jax.random.split(KEY, 2), predictor=solvers.ab2())
    with pytest.raises(ValueError, match="have no memory"):
        solvers.solve(solver, lambda t, x: -x, jnp.ones((2, 1)), times.grid(3))
    assert len(solvers.evaluation_times(tilted.predictor_corrector(LINEAR, KEY, 3), times.grid(5))) == 1 + 4 * 4


@pytest.mark.parametrize(("rule", "size"), [("matched", 0.2 * 3.0), ("noise", 0.2 * 0.75**2)])
def test_corrections_are_langevin_steps_with_fresh_noise(rule, size):
    """x' = x + εs + √(2ε)z before each step but the first; at t = ¼, after a step of 0.2, where κ = 3 and σ = ¾."""
    n = 20_000
    keys = jax.random.split(KEY, n)

    def still(velocity, memory, x, t, t_next):
        velocity(t, x)
        return x, memory

    def last(velocity, corrections, ts=(0.05, 0.25, 0.5), start=0.0):
        predictor = solvers.Solver(lambda x: (), still, (0.0,))
        solver = tilted.predictor_corrector(LINEAR, keys, corrections, rule=rule, predictor=predictor)
        x = solvers.solve(solver, velocity, jnp.full((n, 1), start), jnp.array(ts))
        return np.asarray(x, np.float64)[:, 0]

    def flat(t, x):  # its score is 0
        return x / t

    one = last(flat, 1)
    np.testing.assert_allclose(one.var(), 2 * size, rtol=0.05)
    np.testing.assert_allclose(
        last(flat, 3).var(), 3 * 2 * size, rtol=0.05
    )  # with the same noise three times it would be 9
    later = last(flat, 1, (0.05, 0.25, 0.5, 0.75)) - one
    assert abs(np.corrcoef(later, one)[0, 1]) < 0.05
    pulled = last(lambda t, x: jnp.zeros_like(x), 1, start=2.0)  # u = 0 has the score −x/σ
    assert abs(pulled.mean() - 2 * (1 - size / 0.75)) < 5 * np.sqrt(2 * size / n)


@pytest.mark.thorough
@pytest.mark.parametrize("guided", [False, True])
def test_the_posterior_is_tracked_along_any_memoryless_path(guided):
    law, count = plane(), 400
    velocity = analytic.velocity(law, LINEAR)
    c = labels(*[0] * count)
    field = guide(velocity, c, classifier_free(velocity, c, 2.5 if guided else 0.0))
    keys = jax.random.split(KEY, count)

    @partial(jax.jit, static_argnums=0)
    def errors(steps):
        ts = times.grid(steps)
        x0 = jax.random.normal(KEY, (count, 2))
        xs = solvers.solve(solvers.euler_maruyama(LINEAR, keys), field, x0, ts, trajectory=True)

        def one(t, x, c=c):
            return velocity(jnp.broadcast_to(t, (count,)), x, c)

        tracked = tilted.log_posterior_ratio(LINEAR, ts, xs, one, partial(one, c=null(c)))
        at = steps * 9 // 10
        exact = [analytic.log_density(law, LINEAR, ts[at], xs[at], k) for k in (c, null(c))]
        return tracked[0], tracked[at] - (exact[0] - exact[1])

    start, rough = errors(100)
    _, fine = errors(1600)
    np.testing.assert_array_equal(start, 0)
    assert float(fine.std()) < 0.12
    assert 2.5 < float(rough.std() / fine.std()) < 6.5  # about the square root of the step ratio, 4


SYSTEMATIC = {
    "equal": np.zeros(16),
    "one": np.where(np.arange(16) == 5, 0.0, -1e4),
    "some": np.log(np.random.default_rng(0).dirichlet(np.ones(16))),
}


@pytest.mark.parametrize("name", SYSTEMATIC)
def test_systematic_resampling_takes_each_by_its_weight(name):
    log_w = jnp.asarray(SYSTEMATIC[name], jnp.float32)
    keys = jax.random.split(KEY, 2000)
    index = jnp.broadcast_to(jnp.arange(16), (2000, 16))
    chosen = tilted.resample(keys, jnp.broadcast_to(log_w, (2000, 16)), index)
    counts = jax.vmap(lambda row: jnp.bincount(row, length=16))(chosen)
    expected = 16 * np.asarray(jax.nn.softmax(log_w))
    assert (np.abs(np.asarray(counts) - expected) < 1 + 1e-4).all()
    np.testing.assert_allclose(counts.mean(0), expected, atol=0.05)
    sizes = {"equal": 16.0, "one": 1.0, "some": 1 / np.sum(np.exp(2 * SYSTEMATIC["some"]))}
    np.testing.assert_allclose(tilted.effective_size(log_w), sizes[name], rtol=1e-4)


def test_resampling_keeps_count_of_ancestors():
    r = powered(LAWS["two modes"].velocity, 5.0, jax.random.split(KEY, 3), 64, 30, (("threshold", 1.0),))
    assert bool(r.resampled[:, 8:-1].all())
    assert all(len(np.unique(a)) < 64 for a in np.asarray(r.ancestors))
    r = powered(LAWS["two modes"].velocity, 5.0, jax.random.split(KEY, 3), 64, 30, (("threshold", 0.0),))
    np.testing.assert_array_equal(r.ancestors, np.broadcast_to(np.arange(64), (3, 64)))
    assert not bool(r.resampled.any())


@pytest.mark.thorough
def test_a_law_depends_on_its_own_key_alone():
    """Not on the other distributions, nor on the devices."""
    velocity, keys, gammas = LAWS["two modes"].velocity, jax.random.split(KEY, 8), jnp.linspace(1.5, 6.0, 8)

    def draw(gamma, keys):
        p = tilted.powered(velocity, labels(*[0] * len(keys)), gamma)
        return tilted.feynman_kac(p, LINEAR, keys, times.grid(20), (1,), particles=50, threshold=0.95)

    whole = jax.jit(draw)(gammas, keys)
    assert bool(whole.resampled.any())
    order = jax.random.permutation(KEY, 8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    each = PartitionSpec("data")
    spread = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=each, out_specs=each, check_vma=False))
    for other in (jax.jit(draw)(gammas[order], keys[order]), spread(gammas[order], keys[order])):
        np.testing.assert_allclose(other.x, whole.x[order], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(other.log_z, whole.log_z[order], rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_gamma_is_traced_vmapped_and_differentiated():
    velocity, keys = LAWS["two modes"].velocity, jax.random.split(KEY, 2)

    @jax.jit
    def log_z(gamma):
        p = tilted.powered(velocity, labels(0, 0), gamma)
        return tilted.feynman_kac(p, LINEAR, keys, times.grid(8), (1,), particles=16, threshold=0.0).log_z.mean()

    values = [log_z(jnp.float32(g)) for g in (1.0, 2.0, 3.0)]
    assert log_z._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]  # which JAX does not declare
    np.testing.assert_allclose(values[0], 0.0, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(log_z)(jnp.array([1.0, 2.0, 3.0])), values, rtol=1e-5, atol=1e-5)
    slope = jax.grad(log_z)(jnp.float32(2.0))
    step = (log_z(jnp.float32(2.01)) - log_z(jnp.float32(1.99))) / 0.02
    np.testing.assert_allclose(slope, step, rtol=2e-2)


@pytest.mark.thorough
@pytest.mark.parametrize("solver", [None, "euler_maruyama", "renoise"])
@pytest.mark.parametrize("passes", ["together", "apart"])
def test_half_precision_and_both_ways_of_evaluating(solver, passes):
    law, keys = LAWS["two modes"], jax.random.split(KEY, 2)

    def draw(dtype):
        def velocity(t, x, c):
            return law.velocity(t, x.astype(jnp.float32), c).astype(x.dtype)

        make = solver and (lambda keys: solvers.STOCHASTIC[solver](LINEAR, keys, 1.0))
        p = tilted.powered(velocity, labels(0, 0), 3.0)
        return tilted.feynman_kac(
            p, LINEAR, keys, times.grid(30), (1,), particles=400, solver=make, passes=passes, dtype=dtype
        )

    half, full = (jax.jit(partial(draw, dtype))() for dtype in (jnp.bfloat16, jnp.float32))
    assert half.x.dtype == jnp.bfloat16
    assert half.log_weights.dtype == half.log_z.dtype == jnp.float32
    np.testing.assert_allclose(half.log_z, full.log_z, atol=0.25)


@pytest.mark.thorough
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_another_proposal_draws_the_same_law(scale):
    """Target γ = 3, proposed by the conditional process or by that with γ' = 2."""
    law, keys = LAWS["two modes"], jax.random.split(KEY, 16)
    p = tilted.powered(law.velocity, labels(*[0] * 16), 3.0)
    draw = partial(tilted.feynman_kac, p, LINEAR, ts=times.grid(400), shape=(1,), particles=1000)
    r = jax.jit(lambda keys: draw(keys, proposal=(1 - scale, scale)))(keys)
    distance, _ = lab.distances(drawn(r).reshape(-1), lab.powered(law, 3.0))
    assert distance < 0.025  # 0.16 for guidance
    ratio = np.exp(np.asarray(r.log_z) - log_normalisation(law, 3.0))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 4 + 0.02


@pytest.mark.thorough
def test_clip_and_until():
    velocity, keys = LAWS["two modes"].velocity, jax.random.split(KEY, 2)
    plain = powered(velocity, 4.0, keys, 100, 20, (("threshold", 0.0),))
    early = powered(velocity, 4.0, keys, 100, 20, (("threshold", 0.0), ("until", 0.5)))
    never = powered(velocity, 4.0, keys, 100, 20, (("until", 0.0),))
    flat = powered(velocity, 4.0, keys, 100, 20, (("threshold", 0.0), ("clip", 1e-6)))
    np.testing.assert_array_equal(plain.x, early.x)
    assert 0 < float(early.log_weights.std()) < float(plain.log_weights.std())
    np.testing.assert_allclose(never.log_weights, -math.log(100), rtol=1e-5)
    np.testing.assert_allclose(flat.log_weights, -math.log(100), rtol=1e-4)
    np.testing.assert_allclose(flat.log_z, jnp.mean(plain.log_weights, 1) + plain.log_z + math.log(100), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proposal": (1.0,)}, "one weight per factor"),
        ({"particles": 0}, "particles >= 1"),
        ({"threshold": 1.5}, "threshold <= 1"),
        ({"passes": "both"}, "passes must be"),
        ({"ts": jnp.array([0.0, 0.5, 0.5, 1.0])}, "strictly increasing from 0 to 1"),
        ({"ts": jnp.array([1.0, 0.5, 0.0])}, "strictly increasing from 0 to 1"),
        ({"ts": jnp.array([0.0, 0.5, 0.9])}, "strictly increasing from 0 to 1"),
        ({"ts": jnp.array([0.1, 0.5, 1.0])}, "strictly increasing from 0 to 1"),
    ],
)
def test_refuses(change, message):
    p = tilted.powered(LAWS["Gaussian"].velocity, labels(0), 2.0)
    options = {"ts": times.grid(4), "particles": 4, **change}
    with pytest.raises(ValueError, match=message):
        tilted.feynman_kac(p, LINEAR, KEY[None], shape=(1,), **options)


@pytest.mark.parametrize("ts", [[1.0, 0.5, 0.0], [0.0, 0.5, 0.9], [0.1, 0.5, 1.0], [0.0, 1.0, 0.5, 1.0]])
def test_a_traced_grid_that_is_none_makes_nan(ts):
    p = tilted.powered(LAWS["Gaussian"].velocity, labels(0), 2.0)
    run = jax.jit(lambda ts: tilted.feynman_kac(p, LINEAR, KEY[None], ts, (1,), particles=4).log_z)
    assert bool(jnp.isnan(run(jnp.array(ts))).all())


def test_refuses_products_that_are_no_law_at_the_start():
    one = Reference(LAWS["Gaussian"].velocity, labels(0))
    with pytest.raises(ValueError, match="sum to more than 0"):
        tilted.product((one, one), (0.5, -0.5))
    with pytest.raises(ValueError, match="one weight per factor"):
        tilted.product((one, one), (1.0,))
    p = tilted.powered(lambda t, x, c: x[:, :1], labels(0), 2.0)
    with pytest.raises(TypeError, match="shape"):
        tilted.feynman_kac(p, LINEAR, KEY[None], times.grid(4), (2,), particles=4)


@pytest.mark.thorough
def test_what_laws_can_be_normalised():
    a, b = np.diag([1.0, 2.0]), np.array([[1.5, 0.3], [0.3, 0.5]])
    for gamma in (0.5, 2.0, 5.0, -3.0):
        smallest = np.linalg.eigvalsh((1 - gamma) * np.linalg.inv(a) + gamma * np.linalg.inv(b)).min()
        np.testing.assert_allclose(analytic.tail_precision([a, b], [1 - gamma, gamma]), smallest, atol=1e-9)
    # The marginal has the components of the condition, so every γ > 1 works; a narrower marginal fails.
    every, own = np.array([0.2, 1.0, 0.5]), np.array([1.0, 0.5])
    assert analytic.tail_precision([every, own], [-9.0, 10.0]) > 0
    assert analytic.tail_precision([np.array([0.2, 0.5]), own], [-9.0, 10.0]) < 0
    with pytest.raises(ValueError, match="one weight per distribution"):
        analytic.tail_precision([every], [1.0, 2.0])


def test_guidance_mixes_what_the_product_does():
    """The velocity of ``powered`` is that of classifier-free guidance."""
    law, c = plane(), labels(0, 0, 1)
    velocity, x = analytic.velocity(law, LINEAR), jax.random.normal(KEY, (3, 2))
    p = tilted.powered(velocity, c, 2.5)
    us = [f.velocity(jnp.full(3, 0.4), x, f.condition) for f in p.factors]
    guided = guide(velocity, c, against(Reference(velocity, null(c)), cfg(constant(2.5)), constant(2.5)))
    np.testing.assert_allclose(tilted.mix(p, us), plain_velocity(guided)(jnp.float32(0.4), x), rtol=1e-5, atol=1e-5)
