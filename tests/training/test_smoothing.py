"""The noise that smooths a small set: its size is the one that explains examples best, and each draw is its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from flowguide.losses import example_keys
from flowguide.schema import Vectors
from flowguide.training.smoothing import WIDTHS, bandwidth, jittered

RNG = np.random.default_rng(0)


def by_hand(x):
    """The best width, from densities of SciPy, example by example."""
    scores = []
    for h in WIDTHS:
        kernel = multivariate_normal(np.zeros(x.shape[1]), h * h)
        each = [np.mean([kernel.pdf(a - b) for j, b in enumerate(x) if j != i]) for i, a in enumerate(x)]
        scores.append(np.sum(np.log(np.maximum(each, 1e-300))))
    return WIDTHS[int(np.argmax(scores))]


@pytest.mark.parametrize("spread", [0.1, 0.4])
def test_the_width_is_that_of_the_leave_one_out_likelihood(spread):
    x = RNG.choice([-1.0, 1.0], (14, 2)) + spread * RNG.normal(size=(14, 2))
    found = bandwidth(x)
    assert found == by_hand(x)
    assert 0.02 < found < 1  # inside of the grid
    assert bandwidth(np.concatenate([x, x[:1]]).reshape(15, 1, 2)) == found  # a copy and the shape do not matter


def test_what_is_discrete_has_no_width():
    rng = np.random.default_rng(1)
    assert bandwidth(np.ones((5, 3))) == 0
    ratings = rng.integers(0, 3, (300, 4)).astype(float)
    assert bandwidth(ratings) == 0
    assert bandwidth(np.repeat(np.eye(5), 8, axis=0)) == 0  # a column of classes
    assert 0 < bandwidth(np.concatenate([ratings, rng.normal(size=(300, 1))], axis=1)) < 0.5


def test_noise_has_its_size_and_depends_on_seed_step_and_example_alone():
    examples = Vectors((3, 2))
    draw: Any = jittered(lambda keys, x, coins: examples.to_model(x), 0.3)
    x = np.asarray(RNG.normal(size=(2000, 3, 2)), np.float32)
    keys = example_keys(jax.random.key(0), 5, jnp.arange(2000))
    noise = np.asarray(draw(keys, x, None)) - x
    assert np.std(noise) == pytest.approx(0.3, rel=0.03)
    assert np.abs(np.corrcoef(noise.reshape(2000, 6).T) - np.eye(6)).max() < 0.1
    part = np.asarray(draw(keys[7:9], x[7:9], None)) - x[7:9]
    np.testing.assert_allclose(part, noise[7:9], atol=1e-6)
    later = example_keys(jax.random.key(0), 6, jnp.arange(2000))
    assert np.abs(np.corrcoef(noise.ravel(), (np.asarray(draw(later, x, None)) - x).ravel())[0, 1]) < 0.05


def test_no_noise_is_no_change():
    def draw(keys, x, coins):
        return x

    assert jittered(draw, 0.0) is draw
