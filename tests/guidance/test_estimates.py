"""Rules with memory over several steps, against NumPy: momentum, and the posterior estimates."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import guidance, paths
from flowguide.guidance import posterior
from tests.support.by_hand import (
    NULL,
    OTHER,
    SIZE,
    B,
    G,
    N,
    T,
    V,
    X,
    arrays,
    cfg,
    coefficients,
    column,
    data,
    g,
    lengths,
    n,
    noise,
    projected,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("path", ["linear", "trig"])
@pytest.mark.parametrize("momentum", [-0.5, 0.8])
def test_momentum_over_three_steps(momentum, path):
    """g_k = D_v − D_ref + β·g_{k−1}: the stored difference is neither shortened nor projected."""
    largest = 1.5
    rule = guidance.projected(G, paths.PATHS[path](), parallel=0.3, largest=largest, momentum=momentum)
    assert isinstance(rule, guidance.StatefulRule)
    memory, past, rng = rule.init(jnp.asarray(X)), 0 * X, np.random.default_rng(1)
    for t in (0.1, 0.35, 0.7):
        x, v, ref = rng.normal(size=(3, B, SIZE))
        past = data(path, t, x, v) - data(path, t, x, ref) + momentum * past
        assert (lengths(past) > largest).any()
        got, memory = rule.apply(memory, jnp.float64(t), *arrays(x, v), arrays(ref))
        np.testing.assert_allclose(got, projected(path, t, x, v, past, 0.3, largest), rtol=1e-8, atol=1e-10)


def log_ratio(path, t0, x0, one, other, t, x):
    """Difference of the log densities of the memoryless step, and its variance, from λ = log(α/σ)."""
    (a0, b0, *_), (a, b, *_) = coefficients(path, t0), coefficients(path, t)
    fade = 0.0 if a0 == 0 else np.exp(-(np.log(a / b) - np.log(a0 / b0)))
    variance = b**2 * (1 - fade**2)

    def log_density(u):
        mean = a * data(path, t0, x0, u) + b * fade * noise(path, t0, x0, u)
        return -((x - mean) ** 2).sum(1) / (2 * variance)

    return log_density(one) - log_density(other), variance


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
@pytest.mark.parametrize(("t0", "t"), [(0.0, 0.2), (0.3, 0.45), (0.6, 0.95)])
def test_log_ratio_of_one_step(path, t0, t):
    seen = (jnp.float64(t0), *arrays(X, V, NULL))
    got, variance = posterior.log_ratio(paths.PATHS[path](), seen, jnp.float64(t), jnp.asarray(OTHER))
    expected = log_ratio(path, t0, X, V, NULL, t, OTHER)
    np.testing.assert_allclose(got, expected[0], rtol=1e-6)
    np.testing.assert_allclose(variance, expected[1], rtol=1e-6)


def test_log_ratio_is_zero_where_nothing_is_seen_or_left():
    for t0, t in ((-1.0, 0.5), (0.9, 1.0)):
        seen = (jnp.float64(t0), *arrays(X, V, NULL))
        ratio, variance = posterior.log_ratio(paths.linear(), seen, jnp.float64(t), jnp.asarray(OTHER))
        np.testing.assert_array_equal(ratio, 0)
        assert variance == np.inf


def walk(path, seed):
    """Times, states and velocities under c, ∅ and d of six steps, which lead to where c would and ∅ would in turn."""
    rng, ts = np.random.default_rng(seed), np.array([0.2, 0.3, 0.45, 0.6, 0.7, 0.8])
    size, x, steps = column([0.3, 1.0, 2.0, 4.0, 9.0]), rng.normal(size=(B, SIZE)), []
    for i, t in enumerate(ts):
        v, ref, away = size * rng.normal(size=(3, B, SIZE))
        steps.append((t, x, v, ref, away))
        if i + 1 < len(ts):
            a, b, *_ = coefficients(path, ts[i + 1])
            u = np.where(column((np.arange(B) + i // 2) % 2 == 0), v, ref)
            x = a * data(path, t, x, u) + b * noise(path, t, x, u) + 0.1 * rng.normal(size=(B, SIZE))
    return steps


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
def test_dynamic_negative_over_six_steps(path):
    """u_∅ + γ(v − u_∅) − λ·p/(1 − p)(u_d − u_∅), log p += τ·log-ratio + offset/(2v); p leaves both bounds again."""
    prior, tau, offset, largest = 0.3, 0.6, 0.05, 0.7
    rule = guidance.dynamic_negative(G, N, paths.PATHS[path](), prior=prior, tau=tau, offset=offset, largest=largest)
    log_p, before, bounds = np.full(B, np.log(prior)), None, set()
    memory = rule.init(jnp.asarray(X))
    # d instead of the condition, so that half of the samples move towards it.
    for t, x, d, ref, v in walk(path, 3):
        if before is not None:
            ratio, variance = log_ratio(path, *before, t, x)
            log_p = log_p + tau * ratio + offset / (2 * variance)
            bounds |= set(np.sign(log_p - np.clip(log_p, np.log(1e-6), np.log(largest))).tolist())
            log_p = np.clip(log_p, np.log(1e-6), np.log(largest))
        p, before = np.exp(log_p), (t, x, d, ref)
        got, memory = rule.apply(memory, jnp.float64(t), *arrays(x, v), arrays(ref, d))
        expected = cfg(v, ref, g(t)) - column(n(t) * p / (1 - p)) * (d - ref)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
    assert bounds == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("path", ["linear", "trig", "vp"])
def test_feedback_over_six_steps(path):
    """γ = p/(p − (1 − π)), log p += τ·log-ratio + δ, between ln((1 − π)γ_max/(γ_max − 1)) and 3, γ − 1 multiplied."""
    pi, tau, drift, largest = 0.8, 0.7, -0.15, 4.0
    rule = guidance.feedback(N, paths.PATHS[path](), pi=pi, tau=tau, drift=drift, largest=largest)
    level, before, bounds = np.zeros(B), None, set()
    lowest = np.log((1 - pi) * largest / (largest - 1))
    memory = rule.init(jnp.asarray(X))
    for t, x, v, ref, _ in walk(path, 4):
        if before is not None:
            level = level + tau * log_ratio(path, *before, t, x)[0] + drift
            bounds |= set(np.sign(level - np.clip(level, lowest, 3)).tolist())
            level = np.clip(level, lowest, 3)
        before = (t, x, v, ref)
        scale = np.exp(level) / (np.exp(level) - (1 - pi))
        assert (scale <= largest + 1e-9).all()
        got, memory = rule.apply(memory, jnp.float64(t), *arrays(x, v), arrays(ref))
        np.testing.assert_allclose(got, v + column(n(t) * (scale - 1)) * (v - ref), rtol=1e-6, atol=1e-8)
    assert bounds == {-1.0, 0.0, 1.0}


def test_feedback_has_one_as_its_multiplier_and_bounds():
    rule = guidance.feedback(guidance.constant(1.0), paths.linear(), pi=0.8)
    got, _ = rule.apply(rule.init(jnp.asarray(X)), jnp.float64(T), *arrays(X, V), arrays(NULL))
    np.testing.assert_allclose(got, NULL + (V - NULL) / 0.8, rtol=1e-6)
    for wrong in ({"pi": 0.0}, {"pi": 1.1}, {"largest": 1.0}):
        with pytest.raises(ValueError, match="expected 0 < pi <= 1 and largest > 1"):
            guidance.feedback(guidance.constant(1.0), paths.linear(), **wrong)
