"""The optimiser: its rate over a run, decay of matrices alone, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.training.optimizer import adamw


@pytest.mark.parametrize(("decay", "end"), [("cosine", 0.0), ("linear", 0.0), ("none", 1e-2)])
def test_rate_rises_then_decays(decay, end):
    _, rate = adamw(1e-2, 100, warmup=10, decay=decay)
    np.testing.assert_allclose([rate(i) for i in range(10)], 1e-3 * np.arange(1, 11), rtol=1e-5)
    rates = np.array([rate(i) for i in range(10, 101)])
    assert rates[0] == pytest.approx(1e-2)
    assert (np.diff(rates) <= 0).all()
    assert rates[-1] == pytest.approx(end, abs=1e-9)


def test_without_warmup_starts_at_the_peak():
    assert adamw(1e-2, 100)[1](0) == pytest.approx(1e-2)


def test_weight_decay_shrinks_matrices_alone():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    optimizer, _ = adamw(0.1, 100, decay="none", weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.05)
    np.testing.assert_allclose(updates["b"], 0.0)


@pytest.mark.parametrize(("clip", "expected"), [(1.0, 1.0), (0.0, 200.0)])
def test_clipping(clip, expected):
    """Adam's first step has the size lr whatever the gradient, so clipping shows in its second moment."""
    params = {"w": jnp.zeros((4, 1))}
    optimizer, _ = adamw(0.1, 100, clip=clip, b2=0.0)
    _, state = optimizer.update({"w": jnp.full((4, 1), 100.0)}, optimizer.init(params), params)
    (nu,) = [x for x in jax.tree.leaves(state) if x.shape == (4, 1) and float(x[0, 0]) > (0.2 if clip else 1e3)]
    np.testing.assert_allclose(jnp.sqrt(nu.sum()), expected, rtol=1e-4)


@pytest.mark.parametrize(("settings", "message"), [({"decay": "sudden"}, "decay must be"), ({"warmup": 5}, "warm-up")])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        adamw(1e-3, 5, **settings)
