"""All rules in one table (neutral setting, independence, dtypes, transforms), each also against its own reference."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, guidance, likelihood, paths, solvers, times
from flowguide.condition import bind, given, null
from flowguide.guidance import posterior, schedules
from flowguide.solvers.solver import as_stateful
from tests.support.plain import plain_rule, plain_velocity

P = paths.linear()
B, SHAPE = 5, (4, 4, 1)
X = jax.random.normal(jax.random.key(0), (B, *SHAPE))
C, D = given(jnp.arange(B) % 3), given(jnp.full(B, 3))
MAPS = jax.random.normal(jax.random.key(1), (5, 16, 16)) / 4
T = jnp.float32(0.4)


def velocity(t, x, c):
    """A made-up network: another nonlinear map for each label and for null."""
    own = MAPS[jnp.where(c.present, c.value, 4)].astype(x.dtype)
    h = jnp.einsum("bij,bj->bi", own, x.reshape(x.shape[0], -1))
    return (jnp.tanh(h).reshape(x.shape) + jnp.sin(3 * t).astype(x.dtype)[:, None, None, None] * x).astype(x.dtype)


def weak(t, x, c):
    return 0.5 * velocity(t, x, c)


V, NULL, AWAY = (bind(velocity, c)(T, X) for c in (C, null(C), D))


def one(rule, source=None):
    """Guidance by a rule of one reference; the null velocity by default."""
    return lambda gamma: guidance.against(source or guidance.Reference(velocity, null(C)), rule(gamma), gamma)


def two(rule):
    """Guidance by a rule of the null velocity and a condition to avoid."""
    return lambda gamma: guidance.always(
        [guidance.Reference(velocity, null(C)), guidance.Reference(velocity, D)], rule(gamma)
    )


def less_one(gamma):
    return lambda t: gamma(t) - 1


KEYS = jax.random.split(jax.random.key(2), B)
LABELS = guidance.independent(velocity, C, KEYS, lambda key: jax.random.randint(key, (), 0, 4))
# name -> γ(t) -> Guidance, which at γ = 1 is the conditional velocity
TABLE = {
    "cfg": one(guidance.cfg),
    "negative": one(guidance.cfg, guidance.Reference(velocity, D)),
    "autoguidance": one(guidance.cfg, guidance.Reference(weak, C)),
    "independent": one(guidance.cfg, LABELS),
    "retimed": one(guidance.cfg, guidance.retimed(velocity, C, KEYS, noise=0.8)),
    "rescale": one(lambda g: guidance.rescale(guidance.cfg(g))),
    "first_channels": one(lambda g: guidance.first_channels(guidance.projected(g, P, momentum=0.3), count=1)),
    "renormalise": one(lambda g: guidance.renormalise(guidance.cfg(g))),
    "zero_star": one(lambda g: guidance.zero_star(guidance.cfg(g))),
    "tangential": one(lambda g: guidance.tangential(guidance.cfg(g))),
    "projected": one(lambda g: guidance.projected(g, P, largest=2.0)),
    "projected, momentum": one(lambda g: guidance.projected(g, P, momentum=-0.5)),
    "frequencies": one(lambda g: guidance.frequencies([g, lambda t: 2 * g(t) - 1, g])),
    "magnitude_aware": one(lambda g: guidance.magnitude_aware(g, alpha=1.0)),
    "cfg_negative": two(lambda g: guidance.cfg_negative(g, less_one(g))),
    "composed": two(lambda g: guidance.composed([g, less_one(g)])),
    "perpendicular": two(lambda g: guidance.perpendicular(g, less_one(g))),
    "perturbed": lambda g: guidance.always(
        [guidance.Reference(velocity, null(C)), guidance.Reference(weak, C)], guidance.perturbed(g, less_one(g))
    ),
    "dynamic_negative": lambda g: guidance.always(
        [guidance.Reference(velocity, null(C)), guidance.Reference(velocity, D)],
        guidance.dynamic_negative(g, jnp.max(g(T)) - 1, P, tau=0.001),
    ),
    "feedback": one(lambda g: guidance.feedback(less_one(g), P, pi=0.9, tau=0.001)),
    "composition of rules": one(
        lambda g: guidance.rescale(
            guidance.zero_star(guidance.tangential(guidance.projected(g, P, momentum=0.3))), phi=0.5
        )
    ),
}
NAMES = sorted(TABLE)
EAGER = jax.disable_jit  # for a few tiny steps, running op by op is faster than compiling a loop


def sample(name, gamma, x=X, c=C, passes: guidance.Passes = "together", steps=4):
    gamma = guidance.constant(gamma)
    u = guidance.guide(velocity, c, TABLE[name](gamma), passes)
    return solvers.solve(solvers.ab2(), u, x, times.grid(steps))


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_gamma_one_is_conditional_sampling(name):
    with EAGER():
        plain = solvers.solve(solvers.ab2(), bind(velocity, C), X, times.grid(4))
        np.testing.assert_allclose(sample(name, 1.0), plain, rtol=1e-4, atol=1e-5)
        assert np.abs(sample(name, 3.0) - plain).max() > 0.01


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_know_each_other(name):
    """With a γ per sample, each result equals that of the sample alone, so the order of the batch does not matter."""
    gamma = jnp.linspace(1.5, 4.0, B)
    if name == "dynamic_negative":
        gamma = jnp.full(B, 2.0)
    with EAGER():
        whole, changed = sample(name, gamma), sample(name, gamma, X.at[1].set(9.0))
    keep = np.arange(B) != 1
    np.testing.assert_allclose(whole[keep], changed[keep], rtol=1e-4, atol=1e-5)
    assert np.abs(whole - changed)[1].max() > 0.1


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_one_call_or_several_are_the_same(name):
    with EAGER():
        np.testing.assert_allclose(sample(name, 2.5), sample(name, 2.5, passes="apart"), rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name):
    with EAGER():
        half = sample(name, 2.0, X.astype(jnp.bfloat16))
        full = np.asarray(sample(name, 2.0))
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float32) - full).mean() < 0.1 * np.abs(full).mean()


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_jit_vmap_and_grad_in_one_compilation(name):
    """All three at once, for new scales, noise and conditions, against plain calls and finite differences."""
    traces = []

    def total(gamma, x, label):
        traces.append(0)
        u = as_stateful(guidance.guide(velocity, C._replace(value=label), TABLE[name](guidance.constant(gamma))))
        first, memory = u.apply(u.init(x), T / 2, x)
        return jnp.sum(u.apply(memory, T, x + T / 2 * first)[0] ** 2)

    run = jax.jit(jax.vmap(jax.value_and_grad(total), in_axes=(0, None, None)))
    run(jnp.array([3.0, 5.0]), X + 1, (C.value + 1) % 3)
    values, slopes = run(jnp.array([2.0, 4.0]), X, C.value)
    assert len(traces) == 1
    with EAGER():
        low, middle, high = (float(total(g, X, C.value)) for g in (1.98, 2.0, 2.02))
    np.testing.assert_allclose(values[0], middle, rtol=1e-3)
    np.testing.assert_allclose(slopes[0], (high - low) / 0.04, rtol=0.05, atol=0.5)


@pytest.mark.parametrize(
    "rule",
    [
        lambda g: guidance.projected(g, P, parallel=1.0),
        lambda g: guidance.frequencies([g] * 3),
        lambda g: guidance.magnitude_aware(g, alpha=0.0),
        lambda g: guidance.beta_normalised(g, P, exponent=0.0),
    ],
    ids=["projected", "frequencies", "magnitude_aware", "beta_normalised"],
)
def test_settings_that_are_cfg(rule):
    np.testing.assert_allclose(
        rule(guidance.constant(2.5))(T, X, V, (NULL,)), 2.5 * V - 1.5 * NULL, rtol=1e-4, atol=1e-5
    )


def test_settings_that_are_cfg_with_a_negative():
    g, n = guidance.constant(2.5), guidance.constant(0.7)
    expected = guidance.cfg_negative(g, n)(T, X, V, (NULL, AWAY))
    np.testing.assert_allclose(
        guidance.contrastive(g, n, P, tau=0.0)(T, X, V, (NULL, AWAY)), expected, rtol=1e-4, atol=1e-5
    )
    composed = guidance.composed([g, guidance.constant(-0.7)])
    np.testing.assert_allclose(composed(T, X, V, (NULL, AWAY)), expected, rtol=1e-4, atol=1e-5)
    cfg = guidance.cfg(g)(T, X, V, (NULL,))
    np.testing.assert_allclose(
        guidance.perturbed(g, guidance.constant(0.0))(T, X, V, (NULL, AWAY)), cfg, rtol=1e-4, atol=1e-5
    )


def test_in_one_dimension_projections_have_nothing_to_turn():
    x, v, ref, away = jax.random.normal(jax.random.key(5), (4, 6, 1))
    g = guidance.constant(3.0)
    cfg = guidance.cfg(g)(T, x, v, (ref,))
    np.testing.assert_allclose(guidance.zero_star(guidance.cfg(g))(T, x, v, (ref,)), v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain_rule(guidance.projected(g, P))(T, x, v, (ref,)), v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(guidance.tangential(guidance.cfg(g))(T, x, v, (ref,)), cfg, rtol=1e-3, atol=1e-4)
    perpendicular = guidance.perpendicular(g, guidance.constant(2.0))
    np.testing.assert_allclose(perpendicular(T, x, v, (ref, away)), cfg, rtol=1e-3, atol=1e-4)


def test_projections_by_linear_algebra():
    """On the host: least squares for zero_star, singular vectors for tangential, orthogonality for the others."""
    v, ref, away, d = (np.asarray(a, float).reshape(B, -1) for a in (V, NULL, AWAY, paths.velocity_to_x1(P, T, X, V)))
    star = guidance.zero_star(guidance.cfg(guidance.constant(0.0)))(T, X, V, (NULL,))  # s*·u_ref itself
    kept = guidance.tangential(guidance.cfg(guidance.constant(0.0)))(T, X, V, (NULL,))
    apg = np.asarray(plain_rule(guidance.projected(guidance.constant(2.0), P))(T, X, V, (NULL,)) - V).reshape(B, -1)
    perp = guidance.perpendicular(guidance.constant(1.0), guidance.constant(1.0))(T, X, V, (NULL, AWAY)) - V
    for i in range(B):
        s = np.linalg.lstsq(ref[i][:, None], v[i], rcond=None)[0][0]
        np.testing.assert_allclose(np.ravel(star[i]), s * ref[i], rtol=1e-3, atol=1e-4)
        top = np.linalg.svd(np.stack([v[i], ref[i]]))[2][0]
        np.testing.assert_allclose(np.ravel(kept[i]), top * (top @ ref[i]), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(apg[i] @ d[i], 0, atol=1e-4)
        difference = v[i] - ref[i]
        np.testing.assert_allclose(
            apg[i], difference - d[i] * (difference @ d[i]) / (d[i] @ d[i]), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(np.ravel(perp[i]) @ difference, 0, atol=1e-4)
        assert np.ravel(perp[i]) @ (away[i] - ref[i]) < 0


def test_projected_difference_is_no_longer_than_allowed():
    g = guidance.constant(2.0)
    rules = (plain_rule(guidance.projected(g, P, parallel=1.0, largest=size)) for size in (100.0, 0.3))
    long, short = (rule(T, X, V, (NULL,)) - V for rule in rules)
    difference = jnp.linalg.norm(
        paths.velocity_to_x1(P, T, X, V + short).reshape(B, -1) - paths.velocity_to_x1(P, T, X, V).reshape(B, -1),
        axis=1,
    )
    np.testing.assert_allclose(difference, 0.3, rtol=1e-4)
    np.testing.assert_allclose(long, V - NULL, rtol=1e-3, atol=1e-5)


def test_pyramid_adds_up_and_its_last_level_is_smooth():
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    levels = guidance.laplacian(x, 3)
    np.testing.assert_allclose(sum(levels), x, rtol=1e-5, atol=1e-5)
    flat = guidance.laplacian(jnp.ones((1, 8, 8, 1)), 3)
    np.testing.assert_allclose(flat[-1], 1.0, rtol=1e-6)
    assert float(levels[0].std()) > 2 * float(levels[-1].std())
    with pytest.raises(ValueError, match=r"4 levels need images .* with sides of 8 or more; got \(2, 8, 6, 3\)"):
        guidance.laplacian(x, 4)


def test_threshold_and_renormalise_bound_what_they_say():
    rule = guidance.cfg(guidance.constant(6.0))
    d = paths.velocity_to_x1(P, T, X, guidance.threshold(rule, P, percentile=90.0)(T, X, V, (NULL,)))
    before = paths.velocity_to_x1(P, T, X, rule(T, X, V, (NULL,)))
    assert float(jnp.abs(before).max()) > 1.5
    assert float(jnp.abs(d).max()) <= 1.0 + 1e-4
    inside = guidance.threshold(rule, P, largest=100.0)(T, X, V, (NULL,))
    np.testing.assert_allclose(inside, rule(T, X, V, (NULL,)), rtol=1e-4, atol=1e-5)
    short = guidance.renormalise(rule)(T, X, V, (NULL,)).reshape(B, -1)
    assert (jnp.linalg.norm(short, axis=1) <= jnp.linalg.norm(V.reshape(B, -1), axis=1) * (1 + 1e-5)).all()


def test_zero_init_stands_still_at_first():
    rule = guidance.zero_init(guidance.cfg(guidance.constant(3.0)), until=0.3)
    np.testing.assert_array_equal(rule(jnp.float32(0.2), X, V, (NULL,)), 0 * X)
    np.testing.assert_allclose(rule(T, X, V, (NULL,)), 3 * V - 2 * NULL, rtol=1e-5)


@pytest.mark.parametrize("path", ["linear", "trig"])
def test_cfg_plus_plus_renoises_with_the_unconditional_noise(path):
    p, ts, strength = paths.PATHS[path](), times.grid(6, times.cosine()), 0.6
    scale = schedules.plus_plus(strength, p, ts)
    u = guidance.guide(velocity, C, guidance.classifier_free(velocity, C, scale))
    got = solvers.solve(solvers.ddim(p), u, X, ts)
    x = X
    for t, t_next in pairwise(ts):
        c, n = bind(velocity, C)(t, x), bind(velocity, null(C))(t, x)
        d_null, d = paths.velocity_to_x1(p, t, x, n), paths.velocity_to_x1(p, t, x, c)
        noise = paths.velocity_to_x0(p, t, x, n)
        x = p.alpha(t_next) * (d_null + strength * (d - d_null)) + p.sigma(t_next) * noise
    np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(guidance.SCHEDULES))
def test_schedules_have_the_mean_that_they_are_given(name):
    t = jnp.linspace(0, 1, 2001)
    values = guidance.SCHEDULES[name](3.0)(t) * jnp.ones_like(t)
    np.testing.assert_allclose(jnp.trapezoid(values, t), 3.0, rtol=1e-4)
    each = guidance.SCHEDULES[name](jnp.array([1.5, 3.0]))(jnp.float32(0.3))
    np.testing.assert_allclose(each[1], guidance.SCHEDULES[name](3.0)(jnp.float32(0.3)), rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["linear", "cosine", "power", "beta"])
def test_scales_that_change_sample_the_variance_of_the_moments(name):
    """The flow of x|c ~ N(c, 1), c ~ N(0, 1) at c = 0 under γ(t), against its moment equations."""
    with jax.enable_x64(True):
        scale = guidance.SCHEDULES[name](2.5)
        law = analytic.observation([[1.0]], 1.0)
        u, c = analytic.velocity(law, P), given(jnp.zeros((3, 1)))
        guided = guidance.guide(u, c, guidance.classifier_free(u, c, scale))
        x1 = solvers.solve(solvers.rk4(), guided, jnp.array([[0.0], [1.0], [-2.0]]), times.grid(300).astype(float))
    _, covariance = analytic.integrated_moments(lambda t: float(scale(jnp.float32(t))), P, 0.0, 2.0, 0.0, 1.0)
    np.testing.assert_allclose(x1[:, 0], np.sqrt(covariance[0, 0]) * np.array([0.0, 1.0, -2.0]), rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["linear", "trig"])
def test_an_interval_samples_the_variance_of_its_closed_form(path):
    """v_c[R(t2)/R(t1)]^(γ−1), R = (v_c + r)/(v_u + r): solved piece by piece, so that no step crosses an edge."""
    with jax.enable_x64(True):
        p, law, c = paths.PATHS[path](), analytic.observation([[1.0]], 1.0), given(jnp.zeros((2, 1)))
        u = analytic.velocity(law, p)
        x = jnp.array([[1.0], [-2.0]])
        for start, end, gamma in ((0.0, 0.3, 1.0), (0.3, 0.7, 3.0), (0.7, 1.0, 1.0)):
            guided = guidance.guide(u, c, guidance.classifier_free(u, c, gamma))
            x = solvers.solve(solvers.rk4(), guided, x, start + (end - start) * times.grid(100).astype(float))
        found = solvers.solve_adaptive(
            guidance.guide(u, c, guidance.classifier_free(u, c, 3.0, interval=(0.3, 0.7))),
            jnp.array([[1.0], [-2.0]]),
            jnp.array([0.0, 0.3, 0.7, 1.0]),
            rtol=1e-8,
            atol=1e-8,
        ).x
    exact = analytic.scheduled_variance(
        lambda t: np.where((t > 0.3) & (t < 0.7), 3.0, 1.0), p, 2.0, 1.0, breaks=(0.3, 0.7)
    )
    np.testing.assert_allclose(x[:, 0], np.sqrt(exact) * np.array([1.0, -2.0]), rtol=1e-6)
    np.testing.assert_allclose(found[:, 0], np.sqrt(exact) * np.array([1.0, -2.0]), rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_equal_covariances_ode_and_sde_sample_the_same(eta):
    """A negative condition instead of ∅ gives N(m_d + γ(m_c − m_d), v) for any noise of the sampler."""
    law = analytic.mixture([0.5, 0.5], [[1.0], [-0.5]], 0.4)
    u, c, d = analytic.velocity(law, P), given(jnp.zeros(20_000, int)), given(jnp.ones(20_000, int))
    guided = guidance.guide(u, c, guidance.classifier_free(u, c, 3.0, negative=[d]))
    keys = jax.random.split(jax.random.key(1), 20_000)
    solver = solvers.euler_maruyama(P, keys, solvers.memoryless(eta)) if eta else solvers.ab3()
    x1 = solvers.solve(solver, guided, jax.random.normal(jax.random.key(0), (20_000, 1)), times.grid(200))
    error = np.sqrt(0.4 / 20_000)
    assert abs(float(x1.mean()) - 4.0) < 4 * error + 0.005
    assert abs(float(x1.var()) / 0.4 - 1) < 4 * np.sqrt(2 / 20_000) + 0.005


LAW = analytic.mixture([0.5, 0.3, 0.2], [[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.3, 0.5, 0.4])
U = analytic.velocity(LAW, P)
POINTS = jax.random.normal(jax.random.key(7), (6, 2))
LABEL = given(jnp.array([0, 1, 2, 0, 1, 2]))


@pytest.mark.thorough
def test_exact_classifier_is_cfg():
    """κ∇log p_t(c|x) = u_c − u_∅ (Bayes), so the weight equals γ; no gradient before ``start``."""

    def log_probability(t, x):
        return analytic.log_density(LAW, P, t, x, LABEL) - analytic.log_density(LAW, P, t, x, null(LABEL))

    guided = guidance.with_gradient(bind(U, null(LABEL)), log_probability, 2.5, P)
    for t in (0.1, 0.6, 0.95):
        t = jnp.float32(t)
        cfg = plain_velocity(guidance.guide(U, LABEL, guidance.classifier_free(U, LABEL, 2.5)))(t, POINTS)
        np.testing.assert_allclose(guided(t, POINTS), cfg, rtol=2e-3, atol=2e-3)
    t = jnp.float32(0.01)
    np.testing.assert_array_equal(guided(t, POINTS), bind(U, null(LABEL))(t, POINTS))


def test_rectified_tends_to_cfg_as_the_look_ahead_shrinks():
    cfg = plain_velocity(guidance.guide(U, LABEL, guidance.classifier_free(U, LABEL, 3.0)))(T, POINTS)
    far, near, none = (guidance.rectified(U, LABEL, 2.0, half_step=h)(T, POINTS) for h in (0.02, 0.01, 0.0))
    np.testing.assert_allclose(none, cfg, rtol=1e-4, atol=1e-5)
    ratio = float(jnp.abs(far - cfg).max() / jnp.abs(near - cfg).max())
    assert 1.8 < ratio < 2.2  # first order in h


def test_annealed_conditions_emerge():
    keys = jax.random.split(jax.random.key(0), 4)
    c = given({"kind": jnp.arange(4), "style": jax.random.normal(jax.random.key(1), (4, 8)) * 2 + 1})
    seen = guidance.annealed(lambda t, x, c: c.value["style"], keys)
    late, mid, early = (seen(jnp.full(4, t), X, c) for t in (0.05, 0.2, 0.5))
    np.testing.assert_array_equal(early, c.value["style"])
    for changed in (late, mid):
        np.testing.assert_allclose(changed.mean(1), c.value["style"].mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(changed.std(1), c.value["style"].std(1), rtol=1e-4)
    of = [abs(float(np.corrcoef(np.ravel(a), np.ravel(c.value["style"]))[0, 1])) for a in (late, mid)]
    assert of[0] < 0.6 < of[1]
    np.testing.assert_array_equal(seen(jnp.full(4, 0.2), X, c), mid)
    doubled = jax.tree.map(lambda a: jnp.concatenate([a, a]), c)
    np.testing.assert_array_equal(seen(jnp.full(8, 0.2), X, doubled)[4:], mid)
    kinds = guidance.annealed(lambda t, x, c: c.value["kind"], keys)(jnp.full(4, 0.0), X, c)
    np.testing.assert_array_equal(kinds, c.value["kind"])
    with pytest.raises(ValueError, match="late < early"):
        guidance.annealed(velocity, keys, late=0.5, early=0.4)


@pytest.mark.thorough
def test_log_ratios_add_up_to_the_posterior():
    """Along the memoryless process of p(x) they estimate log p(c|x1)/p(c), more accurately with more steps."""
    x0, label = jax.random.normal(jax.random.key(3), (256, 2)), given(jnp.zeros(256, int))
    keys = jax.random.split(jax.random.key(4), 256)
    errors = []
    for steps in (50, 400):
        ts = times.grid(steps)
        states = solvers.solve(solvers.renoise(P, keys, 1.0), bind(U, null(label)), x0, ts, trajectory=True)

        def add(total, here):
            t, x, t_next, x_next = here
            seen = (t, x, bind(U, label)(t, x), bind(U, null(label))(t, x))
            return total + posterior.log_ratio(P, seen, t_next, x_next)[0], None

        total, _ = jax.lax.scan(add, jnp.zeros(256), (ts[:-2], states[:-2], ts[1:-1], states[1:-1]))
        t, x = ts[-2], states[-2]
        exact = analytic.log_density(LAW, P, t, x, label) - analytic.log_density(LAW, P, t, x, null(label))
        errors.append(float(jnp.sqrt(jnp.mean((total - exact) ** 2))))
    assert errors[1] < 0.2
    assert errors[1] < 0.6 * errors[0], errors


def test_dynamic_negative_is_the_velocity_without_d_where_its_estimate_is_right():
    rest = analytic.velocity(analytic.mixture(LAW.weights[1:], LAW.means[1:], LAW.covariances[1:]), P)
    d = given(jnp.zeros(6, int))
    rule = guidance.dynamic_negative(guidance.constant(0.0), 1.0, P, tau=0.0, largest=0.99)
    refs = bind(U, null(d))(T, POINTS), bind(U, d)(T, POINTS)
    log_p = jnp.log(0.5) + analytic.log_density(LAW, P, T, POINTS, d) - analytic.log_density(LAW, P, T, POINTS, null(d))
    memory = (rule.init(POINTS)[0], log_p)
    guided, _ = rule.apply(memory, T, POINTS, refs[0], refs)
    np.testing.assert_allclose(guided, bind(rest, null(d))(T, POINTS), rtol=2e-3, atol=2e-3)


def test_feedback_guides_more_where_the_sample_does_not_fit():
    rule, away = guidance.feedback(guidance.constant(1.0), P, pi=0.9), given(jnp.zeros(6, int))
    x0 = POINTS
    v, n = bind(U, away)(T, x0), bind(U, null(away))(T, x0)
    first, memory = rule.apply(rule.init(x0), T, x0, v, (n,))
    np.testing.assert_allclose(first, v + (0.1 / 0.9) * (v - n), rtol=1e-4, atol=1e-5)  # γ = 1/π
    later = jnp.float32(0.5)
    fits, misses = (
        paths.interpolate(P, later, paths.velocity_to_x0(P, T, x0, u), paths.velocity_to_x1(P, T, x0, u))
        for u in (v, n)
    )
    scales = []
    for x in (fits, misses):
        v2, n2 = bind(U, away)(later, x), bind(U, null(away))(later, x)
        guided, _ = rule.apply(memory, later, x, v2, (n2,))
        scales.append(jnp.linalg.norm(guided - n2, axis=1) / jnp.linalg.norm(v2 - n2, axis=1))
    assert (scales[0] <= scales[1] + 1e-5).all()
    assert (scales[0] < scales[1] - 1e-4).any()
    assert (scales[1] <= 10.0 + 1e-3).all()


def test_rules_of_one_reference_refuse_more():
    for rule in (guidance.cfg(guidance.constant(2.0)), guidance.projected(guidance.constant(2.0), P)):
        with pytest.raises(ValueError, match="takes one reference velocity; got 2"):
            plain_rule(rule)(T, X, V, (NULL, AWAY))
    with pytest.raises(ValueError, match="for each of 1 weights; got 1"):
        guidance.composed([guidance.constant(2.0)] * 2)(T, X, V, (NULL,))


def test_composition_is_its_formula():
    g = guidance.compose(velocity, C, 1.5, [(D, 0.5), (null(C), -3.0)])
    got = plain_velocity(guidance.guide(velocity, C, g))(T, X)
    np.testing.assert_allclose(got, NULL + 1.5 * (V - NULL) + 0.5 * (AWAY - NULL), rtol=1e-4, atol=1e-5)


# Memory: of rules, and of references that are reused


def momentum(gamma=2.0):
    scale = guidance.constant(gamma)
    rule = guidance.projected(scale, P, parallel=1.0, momentum=0.5)
    u = guidance.guide(velocity, C, guidance.against(guidance.Reference(velocity, null(C)), rule, scale))
    assert isinstance(u, solvers.StatefulVelocity)
    return u


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["euler", "heun", "ab3", "unipc2"])
def test_memory_advances_once_a_step_at_its_start(name):
    """Against a plain step-by-step solve with explicit memory."""
    u, ts = momentum(), times.grid(4)
    solver = solvers.SOLVERS[name](P)
    got = solvers.solve(solver, u, X, ts)
    x, memory, past = X, solver.init(X), u.init(X)
    for t, t_next in pairwise(ts):
        new_past = u.apply(past, t, x)[1]
        x, memory = solver.step(lambda t, x, past=past: u.apply(past, t, x)[0], memory, x, t, t_next)
        past = new_past
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)
    whole = solvers.solve(solver, u, X, ts, checkpoint=True)
    np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-6)


def counted(calls):
    def network(t, x, c):
        jax.debug.callback(lambda n: calls.append(n), jnp.int32(x.shape[0] // B))
        return velocity(t, x, c)

    return network


@pytest.mark.thorough
@pytest.mark.parametrize("passes", ["together", "apart"])
@pytest.mark.parametrize("reuse", [1, 2, 3])
@pytest.mark.parametrize("name", ["euler", "heun", "ab3"])
def test_reused_references_are_counted(name, reuse, passes):
    calls, solver, ts = [], solvers.SOLVERS[name](P), times.grid(9)
    u = counted(calls)
    g = guidance.classifier_free(u, C, 3.0, interval=(0.2, 0.8))
    run = jax.jit(lambda x: solvers.solve(solver, guidance.guide(u, C, g, passes, reuse), x, ts))
    jax.block_until_ready(run(X))
    jax.effects_barrier()
    assert sum(calls) == guidance.network_evaluations(solver, g, ts, reuse)
    if reuse > 1:
        assert sum(calls) < guidance.network_evaluations(solver, g, ts)


def test_reused_references_keep_their_difference():
    ts, x, kept = times.grid(6), X, jnp.zeros_like(X)
    got = solvers.solve(
        solvers.euler(), guidance.guide(velocity, C, guidance.classifier_free(velocity, C, 3.0), reuse=2), X, ts
    )
    for i, (t, t_next) in enumerate(pairwise(ts)):
        v = bind(velocity, C)(t, x)
        kept = v - bind(velocity, null(C))(t, x) if i % 2 == 0 else kept
        x = x + (t_next - t) * (v + 2 * kept)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


def test_what_remembers_is_no_vector_field():
    number: Any = 3.0
    u, x = momentum(), X
    for call in (
        lambda: solvers.solve_adaptive(u, x, jnp.array([0.0, 1.0])),
        lambda: likelihood.log_density(u, x),
        lambda: likelihood.encode(u, x),
        lambda: likelihood.decode(u, x),
        lambda: solvers.as_diffrax(u),
        lambda: solvers.fit_grid(solvers.ab2(), u, x, 4),
    ):
        with pytest.raises(TypeError, match="use a rule without memory"):
            call()
    with pytest.raises(ValueError, match="reuse is a number of steps"):
        guidance.guide(velocity, C, guidance.classifier_free(velocity, C, 3.0), reuse=0)
    with pytest.raises(TypeError, match="must be a function"):
        solvers.solve(solvers.euler(), number, x, times.grid(2))


@pytest.mark.thorough
def test_gap_is_measured_where_the_solve_passes():
    ts = times.grid(5)
    guided = guidance.guide(velocity, C, guidance.classifier_free(velocity, C, 2.0))
    gap = guidance.gap(velocity, C, solvers.euler(), guided, X, ts)
    states = solvers.solve(solvers.euler(), guided, X, ts, trajectory=True)
    for i, t in enumerate(ts[:-1]):
        v, n = (np.asarray(bind(velocity, c)(t, states[i])).reshape(B, -1) for c in (C, null(C)))
        np.testing.assert_allclose(gap.difference[i], np.linalg.norm(v - n, axis=1), rtol=1e-4)
        np.testing.assert_allclose(gap.conditional[i], np.linalg.norm(v, axis=1), rtol=1e-4)
        cosine = (v * n).sum(1) / np.linalg.norm(v, axis=1) / np.linalg.norm(n, axis=1)
        np.testing.assert_allclose(gap.cosine[i], cosine, rtol=1e-3, atol=1e-5)
