"""Converts image files to uint8 pixels, and back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from flowguide.errors import DataError
from flowguide.kinds import fits
from flowguide.schema import image_files

LARGEST_SIDE = 2**13  # to which images are resized


def encode_png(pixels: np.ndarray) -> io.BytesIO:
    """Encodes uint8 pixels ``(H, W, C)`` as a PNG file in memory, which TFDS can store without TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    file.seek(0)
    return file


def check_side(image_size: int | None) -> None:
    """Raises ``DataError`` unless images can be resized to this side; None is for no resizing."""
    if image_size is not None and not (fits(image_size, int) and 1 <= image_size <= LARGEST_SIDE):
        raise DataError(f"got image_size={image_size!r}, expected a side in pixels, 1 to {LARGEST_SIDE}")


def decode(file: bytes, shape: tuple[int, int, int], resize: bool = False, *, upright: bool = False) -> np.ndarray:
    """Returns the pixels of an image file, uint8 ``shape``; checks its size before decoding.

    Args:
      file: the content of a file of one of ``image_files.FORMATS``; of an animation, the first picture is taken.
      shape: (H, W, channels) with 1, 3 or 4 channels. Other colour modes are converted: ImageNet has some grey and CMYK
        files.
      resize: whether to resize the largest centred crop of this aspect ratio; otherwise files must have this size.
      upright: whether to turn the image as its EXIF data say. TFDS does not.

    Raises:
      DataError: if the file is damaged, has another size, more than ``image_files.MOST_PIXELS``, or 16 bits a channel.
    """
    height, width, channels = shape
    try:
        with Image.open(io.BytesIO(file), formats=image_files.FORMATS) as image:
            image_files.check(image)
            size = image_files.size(image) if upright else image.size
            if not resize and size != (width, height):
                raise ValueError(f"it has {size[0]} x {size[1]} pixels; expected {width} x {height}")
            image = (image_files.upright(image) if upright else image).convert(image_files.MODES[channels])
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.asarray(image).reshape(shape)
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise DataError(f"got an image that cannot be read ({error}): repair or remove it") from error
