"""Pixels to floats and back; image files of every kind."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flowguide.data import to_image, to_model
from flowguide.data.pixels import decode, encode_png


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_every_pixel_value_survives(as_array):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = jax.jit(to_model)(as_array(pixels))
    assert x.dtype == jnp.float32
    assert (x.min(), x.max()) == (-1, 1)
    image = to_image(as_array(x))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)


def test_floats_pass_and_are_clipped_on_the_way_out():
    x = np.array([[-3.0, -1.0, 0.0, 1.0, 7.0]], np.float32)
    np.testing.assert_array_equal(to_model(x), x)
    assert to_image(x).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_lossless(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    np.testing.assert_array_equal(decode(encode_png(pixels).read(), channels), pixels)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_the_central_square_is_cut_and_resized(mode):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 200  # the central square
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=100)
    image = decode(file.getvalue(), 3, size=8)
    assert image.shape == (8, 8, 3)
    assert abs(image.astype(int)[:, 1:-1] - 200).max() <= 4
