"""Latents as they are stored, drawn, standardised and described."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.errors import DataError
from flowguide.schema import DataInfo, example_spec, with_known
from flowguide.schema.examples import Latents, as_stored, examples_from_json, examples_to_json

PLAIN = Latents((8, 12, 3), (2, 3, 4), "ab", (0.5, -1.0, 2.0, 0.0), (2.0, 0.5, 4.0, 1.0))
BOTH = PLAIN._replace(flips=True, dtype="float16", mean=())
RNG = np.random.default_rng(0)
MEAN, LOG_VARIANCE = RNG.normal(size=(2, 5, 2, 2, 3, 4))  # (mean or log-variance, B, image or mirrored, h, w, C)
KEYS = jax.random.split(jax.random.key(0), 5)


@pytest.mark.parametrize("examples", [PLAIN, BOTH])
def test_json_keeps_them(examples):
    content = json.loads(json.dumps(examples_to_json(examples)))
    assert examples_from_json(content) == examples
    assert content["kind"] == "latents"
    assert "decoded" not in content


def test_shapes():
    assert (PLAIN.shape, PLAIN.model_shape, PLAIN.as_pictures) == ((8, 12, 3), (2, 3, 4), True)
    latent = PLAIN._replace(decoded=False)
    assert (latent.shape, latent.model_shape, latent.as_pictures) == ((2, 3, 4), (2, 3, 4), False)
    assert (example_spec(PLAIN, 7).shape, example_spec(PLAIN, 7).dtype) == ((7, 2, 3, 8), np.float32)
    assert (example_spec(BOTH, 7).shape, example_spec(BOTH, 7).dtype) == ((7, 2, 2, 3, 8), np.float16)
    stored = as_stored(MEAN, LOG_VARIANCE, "float16")
    assert (stored.shape[1:], stored.dtype) == (BOTH.stored_shape, np.float16)


def drawn(examples, stored, coins=None):
    return np.asarray(jax.jit(examples.draw)(KEYS, stored, coins), np.float64)


def test_a_draw_is_mean_plus_deviation_times_noise_of_its_own_key():
    """In NumPy, from noise that is found at one example and must be that of all: at another root it differs."""
    stored = as_stored(MEAN[:, 0], LOG_VARIANCE[:, 0], "float32")
    found = drawn(PLAIN, stored)
    z = found * PLAIN.scale + PLAIN.mean
    noise = (z - MEAN[:, 0]) / np.exp(LOG_VARIANCE[:, 0] / 2)
    assert abs(noise.mean()) < 4.5 / noise.size**0.5
    assert abs(noise.std() - 1) < 4.5 / (2 * noise.size) ** 0.5
    assert len(np.unique(noise.round(4))) == noise.size  # every number of every example has its own
    for key, each in zip(KEYS, noise, strict=True):
        np.testing.assert_allclose(each, jax.random.normal(jax.random.fold_in(key, 3), (2, 3, 4)), atol=2e-5)
    # The same keys draw the same, whatever the batch.
    np.testing.assert_array_equal(
        np.asarray(PLAIN.draw(KEYS[3:], stored[3:])), np.asarray(PLAIN.draw(KEYS, stored))[3:]
    )


def test_coins_choose_the_moments_of_the_mirrored_image():
    stored = as_stored(MEAN, LOG_VARIANCE, "float32")
    coins = jnp.array([True, False, True, True, False])
    examples = BOTH._replace(dtype="float32")
    first, second = (drawn(PLAIN._replace(mean=()), stored[:, i]) for i in (0, 1))
    np.testing.assert_allclose(
        drawn(examples, stored, coins), np.where(coins[:, None, None, None], second, first), 1e-6
    )
    np.testing.assert_allclose(drawn(examples, stored), first, 1e-6)
    with pytest.raises(ValueError, match="encode again with --flips"):
        PLAIN.draw(KEYS, stored[:, 0], coins)


def test_the_mean_is_seen_and_comes_back():
    seen = PLAIN.to_model(as_stored(MEAN[:, 0], LOG_VARIANCE[:, 0], "float32"))
    np.testing.assert_allclose(seen, (MEAN[:, 0] - PLAIN.mean) / PLAIN.scale, 1e-5, 1e-6)
    np.testing.assert_allclose(PLAIN.to_output(seen), MEAN[:, 0], 1e-5, 1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"image": [8, 12]},
        {"latent": [2, 0, 4]},
        {"mean": [0.0]},
        {"scale": [1.0, 1.0, 1.0, 0.0]},
        {"flips": 1},
        {"dtype": "int8"},
        {"autoencoder": 3},
        {"decoded": False},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(change):
    with pytest.raises(ValueError, match=r"(shape|mean|scale|flips|dtype|autoencoder) is .*, not "):
        examples_from_json({**examples_to_json(PLAIN), **change})


def test_no_part_of_latents_is_known():
    with pytest.raises(DataError, match="no part is known from a part of the image"):
        with_known(DataInfo("faces", PLAIN, {}))
