"""Guidance: neutral settings, closed forms on Gaussians, and skipped evaluations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import analytic, guidance, paths, solvers, times
from flowguide.condition import Condition, bind, given, null
from tests.support.plain import plain_velocity

B, D = 6, 2
P = paths.linear()
# Class 0 is the condition, class 1 the negative; null means all three components.
LAW = analytic.mixture([0.5, 0.3, 0.2], [[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.3, 0.5, 0.4])
U = analytic.velocity(LAW, P)
C, NEGATIVE = given(jnp.zeros(B, int)), given(jnp.ones(B, int))
X = jax.random.normal(jax.random.key(0), (B, D))
T = jnp.float32(0.4)
UC, UN, UD = (bind(U, c)(T, X) for c in (C, null(C), NEGATIVE))
PASSES: list[guidance.Passes] = ["together", "apart"]


def guided(gamma, passes: guidance.Passes = "together", **options):
    return plain_velocity(guidance.guide(U, C, guidance.classifier_free(U, C, gamma, **options), passes))


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_cfg_is_its_formula(gamma, passes):
    np.testing.assert_allclose(guided(gamma, passes)(T, X), (1 - gamma) * UN + gamma * UC, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("passes", PASSES)
def test_gamma_one_is_the_conditional_velocity_and_zero_the_reference(passes):
    np.testing.assert_array_equal(guided(1.0, passes)(T, X), UC)
    np.testing.assert_allclose(guided(0.0, passes)(T, X), UN, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(guided(0.0, passes, negative=[NEGATIVE])(T, X), UD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("passes", PASSES)
def test_negative_weight_of_gamma_minus_one_is_replacement(passes):
    g = 2.5
    replaced = guided(g, passes, negative=[NEGATIVE])(T, X)
    weighed = guided(g, passes, negative=[NEGATIVE], gamma_negative=g - 1)(T, X)
    np.testing.assert_allclose(replaced, (1 - g) * UD + g * UC, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weighed, replaced, rtol=1e-5, atol=1e-6)


def test_several_negatives_add_up_and_weight_zero_is_plain_cfg():
    v = guided(2.0, negative=[NEGATIVE, C], gamma_negative=0.5)(T, X)
    np.testing.assert_allclose(v, UN + 2 * (UC - UN) - 0.5 * (UD - UN) - 0.5 * (UC - UN), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(guided(2.0, negative=[NEGATIVE], gamma_negative=0.0)(T, X), guided(2.0)(T, X), rtol=1e-5)


def test_per_sample_scales_and_permutation():
    g = jnp.linspace(0.0, 5.0, B)
    v = guided(g)(T, X)
    for i in range(B):
        np.testing.assert_allclose(v[i], guided(g[i])(T, X)[i], rtol=1e-5, atol=1e-6)
    order = jax.random.permutation(jax.random.key(1), B)
    np.testing.assert_allclose(guided(g[order])(T, X[order]), v[order], rtol=1e-5, atol=1e-6)


def test_times_of_each_sample_switch_on_their_own():
    t = jnp.linspace(0.1, 0.9, B)
    v = guided(3.0, interval=(0.3, 0.6))(t, X)
    for i in range(B):
        expected = guided(3.0, interval=(0.3, 0.6))(t[i], X)[i]
        np.testing.assert_allclose(v[i], expected, rtol=1e-5, atol=1e-6)


def test_rescale_restores_the_spread_of_each_sample():
    v = guided(4.0, phi=1.0)(T, X)
    np.testing.assert_allclose(v.std(-1), UC.std(-1), rtol=1e-5)
    plain = guided(4.0)(T, X)
    np.testing.assert_allclose(guided(4.0, phi=0.3)(T, X), 0.3 * v + 0.7 * plain, rtol=1e-5)
    # Parallel to the unscaled result: only the norm changes.
    np.testing.assert_allclose(
        v * jnp.linalg.norm(plain, axis=-1, keepdims=True),
        plain * jnp.linalg.norm(v, axis=-1, keepdims=True),
        rtol=1e-4,
        atol=1e-5,
    )
    zero = guidance.rescale(guidance.cfg(guidance.constant(2.0)), phi=1.0)(T, X, 0 * X, (0 * X,))
    np.testing.assert_array_equal(zero, 0 * X)


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["linear", "trig"])
@pytest.mark.parametrize("gamma", [1.5, 2.0, 3.0, 5.0])
def test_cfg_samples_the_variance_2_to_the_1_minus_gamma(gamma, path):
    """x|c ~ N(c, 1), c ~ N(0, 1): the flow is x0 -> 2^((1−γ)/2)·x0 (Bradley & Nakkiran 2024), not the γ-powered law."""
    with jax.enable_x64(True):
        p = paths.PATHS[path]()
        both = {True: analytic.mixture([1.0], [[0.0]], 1.0), False: analytic.mixture([1.0], [[0.0]], 2.0)}
        conditional, marginal = (analytic.velocity(both[k], p) for k in (True, False))

        def joint(t, x, c):
            return jnp.where(c.present[:, None], conditional(t, x, c), marginal(t, x, c))

        x0 = jnp.linspace(-2.0, 2.0, 5)[:, None]
        c = given(jnp.zeros(5, int))
        v = guidance.guide(joint, c, guidance.classifier_free(joint, c, gamma))
        x1 = solvers.solve(solvers.rk4(), v, x0, times.grid(200).astype(jnp.float64))
        np.testing.assert_allclose(x1, x0 * 2 ** ((1 - gamma) / 2), rtol=1e-6)


def test_negative_condition_of_equal_covariance_moves_the_mean_alone():
    """With equal covariances the guided flow ends exactly in N(m_d + γ(m_c − m_d), v)."""
    with jax.enable_x64(True):
        m = analytic.mixture([0.5, 0.5], [[1.0], [-0.5]], 0.4)
        u = analytic.velocity(m, P)
        x0, g = jnp.linspace(-2.0, 2.0, 5)[:, None], 3.0
        c, d = given(jnp.zeros(5, int)), given(jnp.ones(5, int))
        v = guidance.guide(u, c, guidance.classifier_free(u, c, g, negative=[d]))
        x1 = solvers.solve(solvers.rk4(), v, x0, times.grid(100).astype(jnp.float64))
        np.testing.assert_allclose(x1, -0.5 + g * 1.5 + np.sqrt(0.4) * x0, rtol=1e-6)


def counted(calls):
    def velocity(t, x, c):
        jax.debug.callback(lambda n: calls.append(n), jnp.int32(x.shape[0] // B))
        return U(t, x, c)

    return velocity


AWAY = (
    ({}, 1),
    ({"negative": [NEGATIVE]}, 1),
    ({"negative": [NEGATIVE], "gamma_negative": 0.5}, 2),
)
# Every solver with one set of options, and one solver with all of them.
WAYS = [(solver, *AWAY[2], "together") for solver in sorted(solvers.SOLVERS)]
WAYS += [("heun", *away, passes) for away in AWAY for passes in PASSES if (away, passes) != (AWAY[2], "together")]


@pytest.mark.thorough
@pytest.mark.parametrize(("solver", "options", "references", "passes"), WAYS)
def test_interval_computes_no_reference_outside(solver, options, references, passes):
    calls, s, ts = [], solvers.SOLVERS[solver](paths.linear()), times.grid(10)
    u = counted(calls)
    g = guidance.classifier_free(u, C, 3.0, interval=(0.35, 0.65), **options)
    jax.block_until_ready(jax.jit(lambda x: solvers.solve(s, guidance.guide(u, C, g, passes), x, ts))(X))
    jax.effects_barrier()
    at = np.asarray(solvers.evaluation_times(s, ts))
    inside = ((at >= 0.35) & (at <= 0.65)).sum()
    assert 0 < inside < at.size
    assert sum(calls) == at.size + references * inside == guidance.network_evaluations(s, g, ts)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("negative", [(), (NEGATIVE,)], ids=["null", "negative"])
@pytest.mark.parametrize(("gamma", "cost"), [(0.0, 1), (1.0, 1), (2.0, 2)])
def test_traced_gamma_of_one_or_zero_elides_a_pass_and_gamma_never_recompiles(gamma, cost, negative, passes):
    calls, traces = [], []
    u = counted(calls)

    @jax.jit
    def run(x, gamma):
        traces.append(0)
        rules = guidance.classifier_free(u, C, gamma, negative=negative)
        return plain_velocity(guidance.guide(u, C, rules, passes))(T, x)

    jax.block_until_ready(run(X, 5.0))
    jax.effects_barrier()
    calls.clear()
    jax.block_until_ready(run(X, gamma))
    jax.effects_barrier()
    assert len(traces) == 1
    assert sum(calls) == cost


def test_interval_equals_the_masked_form():
    ts = times.grid(20)
    cut = guided(3.0, interval=(0.3, 0.6))

    def masked(t, x):
        return jnp.where((t >= 0.3) & (t <= 0.6), guided(3.0)(t, x), bind(U, C)(t, x))

    a, b = (solvers.solve(solvers.heun(), v, X, ts) for v in (cut, masked))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_another_network_as_reference():
    weak = lambda t, x, c: 0.5 * U(t, x, c)  # noqa: E731
    gamma = guidance.constant(2.0)
    g = guidance.against(guidance.Reference(weak, C), guidance.cfg(gamma), gamma)
    for passes in PASSES:
        np.testing.assert_allclose(plain_velocity(guidance.guide(U, C, g, passes))(T, X), 1.5 * UC, rtol=1e-5)


def test_fields_can_be_guided_partly():
    """If only some samples have a condition, only those are guided."""
    c = Condition(C.value, jnp.arange(B) < 3)
    v = plain_velocity(guidance.guide(U, c, guidance.classifier_free(U, c, 4.0)))(T, X)
    np.testing.assert_allclose(v[3:], UN[3:], rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(v[:3] - UN[:3]).max()) > 0.1


def test_grad_flows_through_gamma_and_x():
    def f(g, x):
        return plain_velocity(guidance.guide(U, C, guidance.classifier_free(U, C, g)))(T, x).sum()

    np.testing.assert_allclose(jax.grad(f)(2.0, X), (UC - UN).sum(), rtol=1e-4)
    assert np.isfinite(jax.grad(f, 1)(2.0, X)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative": [NEGATIVE, C]}, "only one negative"),
        ({"gamma_negative": 1.0}, "but no negative condition"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        guidance.classifier_free(U, C, 2.0, **options)


def test_unknown_passes_are_refused():
    twice: Any = "twice"
    with pytest.raises(ValueError, match="together"):
        guided(2.0, twice)


def test_labels_that_are_not_wrapped_are_refused():
    """Their zeros would be taken for ∅, but are class 0."""
    labels = jnp.array([1, 2])
    with pytest.raises(TypeError, match=r"expected a Condition, got an array of shape \(2,\): wrap it as .*given\(c\)"):
        guidance.classifier_free(lambda t, x, c: x, labels, 2.0)  # pyright: ignore[reportArgumentType]
    rules = guidance.classifier_free(lambda t, x, c: x, given(labels), 2.0)
    with pytest.raises(TypeError, match="expected a Condition, got a list: wrap it"):
        guidance.guide(lambda t, x, c: x, [1, 2], rules)  # pyright: ignore[reportArgumentType]
