"""Times: quantile functions are distributions and grids at once."""

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
    assert np.mean(abs(t - 0.5) < 0.1) > 0.3  # of uniform draws 0.2


def test_stratified_batch_has_one_draw_a_stratum():
    index = jnp.arange(256) + 512
    tau = times.draw(KEYS[:256], times.uniform())
    t = times.stratify(tau, index, 256)
    np.testing.assert_array_equal(np.floor(np.asarray(t, np.float64) * 256), np.arange(256))
    assert np.isfinite(times.logit_normal()(t)).all()
