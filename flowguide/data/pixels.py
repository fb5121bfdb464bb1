"""Images: as bytes in a file, as uint8 pixels, and as the floats that a model sees."""

from __future__ import annotations

import io
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from flowguide.data.errors import DataError
from flowguide.typing import Array

MOST_PIXELS = 2**26  # of a file, decoded: 200 MB in colour

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FORMATS = ("PNG", "JPEG", "GIF", "BMP")  # what TFDS decodes; Pillow alone would start programs for some others


def to_model(x: Any) -> Array:
    """uint8 pixels 0..255 as float32 in [-1, 1]; anything else as float32, unchanged. Works inside ``jit``."""
    x = jnp.asarray(x)
    return (2 * x.astype(jnp.float32) - 255) / 255 if x.dtype == jnp.uint8 else x.astype(jnp.float32)


def to_image(x: Any) -> Any:
    """Floats in [-1, 1] as uint8 pixels, rounded, and clipped where they are outside; NumPy or JAX arrays."""
    return ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def encode_png(pixels: np.ndarray) -> io.BytesIO:
    """uint8 pixels ``(H, W, C)`` as a PNG file in memory: the form in which TFDS needs no TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    file.seek(0)
    return file


def decode(file: bytes, shape: tuple[int, int, int], resize: bool = False) -> np.ndarray:
    """The pixels of an image file, uint8 ``shape``. Its size is looked at before it is decoded.

    Args:
      file: the content of a PNG, JPEG, GIF or BMP file.
      shape: (H, W, channels), of 1, 3 or 4 channels. Files of other kinds are converted: ImageNet has grey and CMYK
        files among its RGB.
      resize: cut the largest centred part of these proportions out and resize it; without it files must have this size.

    Raises:
      DataError: where the file is damaged, has another size, or more than ``MOST_PIXELS``.
    """
    height, width, channels = shape
    try:
        with Image.open(io.BytesIO(file), formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, and {MOST_PIXELS:,} are the most")
            if not resize and image.size != (width, height):
                raise ValueError(f"it has {image.width} x {image.height} pixels; expected {width} x {height}")
            image = image.convert(_MODES[channels])
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.asarray(image).reshape(shape)
    except Exception as error:  # Pillow raises nearly anything for files that are damaged
        raise DataError(f"got an image that cannot be read ({error}): repair or remove it") from error
