"""Resizing, pixel by pixel as the packages do it."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flowguide.errors import UserError
from flowguide.metrics.resizing import resize

SIDE = 13
IMAGES = {
    size: np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8) for size in [(5, 8), (13, 13), (40, 9)]
}


def bilinear(image, place):
    """Each output pixel lies at ``place(i, length)`` and mixes the four pixels around, edges repeated."""
    height, width, _ = image.shape
    result = np.zeros((SIDE, SIDE, 3))
    for i in range(SIDE):
        for j in range(SIDE):
            y, x = place(i, height), place(j, width)
            y0, x0 = math.floor(y), math.floor(x)
            for row, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
                for column, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
                    inside = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
                    result[i, j] += wy * wx * image[inside]
    return result


def tensorflow_1(image):
    return (bilinear(image, lambda i, length: i * length / SIDE) - 128) / 128


def pytorch(image):
    """``interpolate(mode="bilinear", align_corners=False)`` clamps places at 0."""
    return 2 * bilinear(image / 255, lambda i, length: max((i + 0.5) * length / SIDE - 0.5, 0)) - 1


def pillow(image):
    """Bicubic, each channel in float."""
    planes = [
        Image.fromarray(np.float32(image[..., k])).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for k in range(3)
    ]
    return (np.stack([np.asarray(p) for p in planes], -1) - 128) / 128


PACKAGES = {"adm": tensorflow_1, "torch-fidelity": tensorflow_1, "pytorch-fid": pytorch, "clean-fid": pillow}


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("size", IMAGES)
def test_pixels_are_those_of_the_package(name, size):
    found = resize(jnp.asarray(IMAGES[size]), name, SIDE)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [PACKAGES[name](image) for image in IMAGES[size]], atol=1e-5)


def test_conventions_differ_where_the_size_does():
    small, whole = (np.stack([resize(IMAGES[size], name, SIDE) for name in PACKAGES]) for size in ((5, 8), (13, 13)))
    np.testing.assert_array_equal(small[0], small[1])
    assert min(np.abs(small[i] - small[j]).max() for i, j in ((1, 2), (1, 3), (2, 3))) > 0.1
    np.testing.assert_allclose(whole[0], whole[3], atol=1e-6)


def test_grey_images_have_three_equal_channels():
    grey = IMAGES[5, 8][..., :1]
    np.testing.assert_array_equal(resize(grey, side=SIDE), resize(np.repeat(grey, 3, -1), side=SIDE))


def test_refusals():
    with pytest.raises(UserError, match="did you mean 'pytorch-fid'"):
        resize(IMAGES[5, 8], "pytorch_fid")
    with pytest.raises(UserError, match=r"got \(2, 5, 8, 2\)"):
        resize(IMAGES[5, 8][..., :2])
