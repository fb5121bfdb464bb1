"""Pixels to floats and back; image files of every kind."""

import io
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFile

from flowguide.data.pixels import decode, encode_png
from flowguide.errors import DataError
from flowguide.schema import Vectors, to_floats, to_pixels
from flowguide.schema.image_files import MOST_PIXELS


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_every_pixel_value_survives(as_array):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = jax.jit(to_floats)(as_array(pixels))
    assert x.dtype == jnp.float32
    assert (x.min(), x.max()) == (-1, 1)
    image = to_pixels(as_array(x))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)


def test_floats_pass_and_are_clipped_on_the_way_out():
    x = np.array([[-3.0, -1.0, 0.0, 1.0, 7.0]], np.float32)
    np.testing.assert_array_equal(Vectors((5,)).to_model(x), x)
    assert to_pixels(x).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_lossless(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    np.testing.assert_array_equal(decode(encode_png(pixels).read(), pixels.shape), pixels)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_the_central_square_is_cut_and_resized(mode):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 200  # the central square
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=100)
    image = decode(file.getvalue(), (8, 8, 3), resize=True)
    assert image.shape == (8, 8, 3)
    assert abs(image.astype(int)[:, 1:-1] - 200).max() <= 4


def png(width, height, rows):
    """A grey PNG that states one size, and holds ``rows`` rows of zeros."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("resize", [False, True])
def test_an_image_of_too_many_pixels_is_not_decoded(resize, monkeypatch):
    """40 kB of file, and gigabytes of pixels."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for width, height in ((2**16, 2**16), (1, 2**30), (2**13 + 1, 2**13)):
        with pytest.raises(DataError, match="pixels"):
            decode(png(width, height, 2**25 // (width + 1)), (8, 8, 1), resize)
    assert MOST_PIXELS == 2**26


def test_an_image_of_another_size_is_refused():
    with pytest.raises(DataError, match="it has 9 x 8 pixels; expected 8 x 8"):
        decode(png(9, 8, 8), (8, 8, 1))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_images_cut_short_or_changed_are_refused_in_one_line(form):
    """Bits of the content may change pixels unseen in a JPEG; whatever else happens is a ``DataError``."""
    random, file = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).save(file, form)
    whole = file.getvalue()
    for end in range(0, len(whole) * 3 // 4, 7):
        with pytest.raises(DataError, match="cannot be read"):
            decode(whole[:end], (12, 12, 3))
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        try:
            assert decode(bytes(damaged), (12, 12, 3)).shape == (12, 12, 3)
        except DataError:
            refused += 1
    assert refused > 20


def test_only_formats_of_pixels_are_read():
    """Pillow would hand PostScript to Ghostscript."""
    with pytest.raises(DataError, match="cannot be read"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n", (8, 8, 1))
