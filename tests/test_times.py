"""Times: warps as quantile functions and as grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowguide import times
from flowguide.losses import example_keys

N = 20_000
KEYS = example_keys(jax.random.key(1), 0, jnp.arange(N))


@pytest.mark.parametrize("name", sorted(times.WARPS))
def test_warp_is_an_increasing_map_of_the_interval(name):
    t = np.asarray(times.grid(64, times.WARPS[name]()))
    assert t[0] == 0.0
    assert t[-1] == 1.0
    assert t.shape == (65,)
    assert (np.diff(t) > 0).all()


def test_grid_refuses_no_steps():
    with pytest.raises(ValueError, match="at least 1 step"):
        times.grid(0)
    np.testing.assert_array_equal(times.grid(1), [0.0, 1.0])


@pytest.mark.parametrize(
    ("warp", "law"),
    [(times.uniform(), stats.uniform()), (times.logit_normal(0.5, 1.3), stats.norm(0.5, 1.3))],
    ids=["uniform", "logit_normal"],
)
def test_draws_follow_their_law(warp, law):
    t = np.asarray(times.draw(KEYS, warp), np.float64)
    assert (t > 0).all()
    assert (t < 1).all()
    y = np.log(t / (1 - t)) if law.dist.name == "norm" else t
    assert stats.kstest(y, law.cdf).pvalue > 1e-4


TAU = np.array([0.05, 0.2, 0.45, 0.7, 0.9])
FORMULAS = {
    "uniform": (times.uniform(), TAU),
    "logit_normal": (times.logit_normal(-0.4, 0.8), 1 / (1 + np.exp(0.4 - 0.8 * stats.norm.ppf(TAU)))),
    "shift": (times.shift(2.0), TAU / (TAU + 2 * (1 - TAU))),
    "sway": (times.sway(-0.7), TAU - 0.7 * (np.cos(np.pi * TAU / 2) - 1 + TAU)),
    "cosine": (times.cosine(), np.sin(np.pi * TAU / 2) ** 2),
    "karras": (times.karras(3.0, 0.01, 50.0), 1 / (1 + (50 ** (1 / 3) * (1 - TAU) + 0.01 ** (1 / 3) * TAU) ** 3)),
    "mode": (times.mode(0.9), TAU + 0.9 * (np.cos(np.pi * TAU / 2) ** 2 - 1 + TAU)),
}


@pytest.mark.parametrize("name", times.WARPS)
def test_warp_is_its_formula(name):
    warp, expected = FORMULAS[name]
    np.testing.assert_allclose(warp(jnp.asarray(TAU, jnp.float32)), expected, rtol=3e-6)


def test_defaults_are_those_of_the_papers():
    """Sway of −1 puts t = 1 − cos(πτ/2), denser near noise (F5-TTS, §3.2); Karras et al. 2022, Table 1; SD3's s = 3."""
    tau = jnp.asarray(TAU, jnp.float32)
    np.testing.assert_allclose(times.sway()(tau), 1 - np.cos(np.pi * TAU / 2), rtol=1e-5)
    np.testing.assert_array_equal(times.logit_normal()(tau), times.logit_normal(0.0, 1.0)(tau))
    np.testing.assert_array_equal(times.shift()(tau), times.shift(3.0)(tau))
    np.testing.assert_array_equal(times.karras()(tau), times.karras(7.0, 0.002, 80.0)(tau))
    np.testing.assert_array_equal(times.mode()(tau), times.mode(1.29)(tau))


def test_shift_matches_resolution_scaling():
    """The shift multiplies the noise-to-signal ratio (1 − t)/t by s (Esser et al. 2024, eq. 23)."""
    tau = jnp.linspace(0.1, 0.9, 9)
    t = times.shift(3.0)(tau)
    np.testing.assert_allclose((1 - t) / t, 3 * (1 - tau) / tau, rtol=1e-5)


def test_karras_levels():
    """Nodes of the noise level σ = (1 − t)/t are those of Karras et al. (2022), eq. 5."""
    levels = (80 ** (1 / 7) + np.linspace(0, 1, 11) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t = times.karras()(jnp.linspace(0.0, 1.0, 11))
    np.testing.assert_allclose((1 - t) / t, levels, rtol=1e-3, atol=1e-6)


def test_mode_is_symmetric_and_dense_in_the_middle():
    t = np.asarray(times.draw(KEYS, times.mode()))
    tau = jnp.linspace(0.0, 1.0, 9)
    np.testing.assert_allclose(times.mode()(tau) + times.mode()(1 - tau), 1.0, atol=1e-6)
    assert np.mean(abs(t - 0.5) < 0.1) > 0.3  # 0.2 for uniform draws


def test_stratified_batch_has_one_draw_a_stratum():
    index = jnp.arange(256) + 512
    tau = times.draw(KEYS[:256], times.uniform())
    t = times.stratify(tau, index, 256)
    np.testing.assert_array_equal(np.floor(np.asarray(t, np.float64) * 256), np.arange(256))
    assert np.isfinite(times.logit_normal()(t)).all()


def test_strata_at_the_ends_keep_off_zero_and_one():
    t = times.stratify(jnp.array([0.0, 1.0]), jnp.array([8, 15]), 8)
    assert 0 < t[0] < t[1] < 1
    assert np.isfinite(times.logit_normal()(t)).all()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("uniform", times.uniform()),
        ("shift", times.shift(3.0)),
        ("shift:s=0.4", times.shift(0.4)),
        ("karras:rho=5:sigma_max=60", times.karras(5.0, 0.002, 60.0)),
    ],
)
def test_a_warp_is_named_with_its_settings(text, same):
    tau = jnp.linspace(0.1, 0.9, 5)
    np.testing.assert_array_equal(times.named(text)(tau), same(tau))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shft", "unknown warp 'shft': there are cosine"),
        ("shift:k=2", "warp 'shift' has no setting 'k': it takes s"),
        ("uniform:k=2", "it takes none"),
        ("shift:s=two", "warp 'shift' takes numbers, as shift:s=2; got 's=two'"),
    ],
)
def test_a_name_that_is_no_warp_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        times.named(text)
