"""Converts image files to uint8 pixels, and back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from flowguide.errors import DataError

MOST_PIXELS = 2**26  # per file; 200 MB decoded in colour

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FORMATS = ("PNG", "JPEG", "GIF", "BMP")  # those TFDS decodes; for some others Pillow would start external programs


def encode_png(pixels: np.ndarray) -> io.BytesIO:
    """Encodes uint8 pixels ``(H, W, C)`` as a PNG file in memory, which TFDS can store without TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    file.seek(0)
    return file


def decode(file: bytes, shape: tuple[int, int, int], resize: bool = False) -> np.ndarray:
    """Returns the pixels of an image file, uint8 ``shape``; checks its size before decoding.

    Args:
      file: the content of a PNG, JPEG, GIF or BMP file.
      shape: (H, W, channels) with 1, 3 or 4 channels. Other colour modes are converted: ImageNet has some grey and CMYK
        files.
      resize: whether to resize the largest centred crop of this aspect ratio; otherwise files must have this size.

    Raises:
      DataError: if the file is damaged, has another size, or more than ``MOST_PIXELS``.
    """
    height, width, channels = shape
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels; expected at most {MOST_PIXELS:,}")
            if not resize and image.size != (width, height):
                raise ValueError(f"it has {image.width} x {image.height} pixels; expected {width} x {height}")
            image = image.convert(_MODES[channels])
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.asarray(image).reshape(shape)
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise DataError(f"got an image that cannot be read ({error}): repair or remove it") from error
