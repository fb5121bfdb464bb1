"""Images: as bytes in a file, as uint8 pixels, and as the floats that a model sees."""

from __future__ import annotations

import io
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from flowguide.typing import Array

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


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


def decode(file: bytes, channels: int, size: int | None = None) -> np.ndarray:
    """The pixels of an image file, uint8 ``(H, W, channels)``.

    Args:
      file: the content of a PNG, JPEG, ... file.
      channels: 1, 3 or 4. Files of another kind are converted: ImageNet has grey and CMYK files among its RGB.
      size: where given, the central square is cut out and resized to ``(size, size)``.
    """
    with Image.open(io.BytesIO(file)) as image:
        image = image.convert(_MODES[channels])
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)
