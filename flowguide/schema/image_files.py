"""Image files as people have them: turned by EXIF, with a transparent palette, too large. For data and for prompts."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only those who name a file need Pillow
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # for some others Pillow would start external programs
MOST_PIXELS = 2**26  # per file; 200 MB decoded in colour
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_ORIENTATION, _TRANSPOSED = 0x0112, range(5, 9)  # the EXIF tag, and its values that swap width and height


def check(image: Image) -> None:
    """Checks an image that is open; decodes nothing.

    Raises:
      ValueError: if it has more than ``MOST_PIXELS``, or more than 8 bits a channel, which Pillow would clip.
    """
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels; expected at most {MOST_PIXELS:,}")
    if image.mode[0] in "IF":
        raise ValueError("it has more than 8 bits a channel; expected 8: convert it, or give arrays of floats")


def channels(image: Image) -> int:
    """Returns the channels that an image needs: 1 for grey, 3, or 4 if some of it is transparent. Decodes nothing."""
    return 4 if image.has_transparency_data else 1 if image.mode in ("1", "L") else 3


def size(image: Image) -> tuple[int, int]:
    """Returns width and height of an image as people see it. Decodes nothing."""
    width, height = image.size
    return (height, width) if _orientation(image) in _TRANSPOSED else (width, height)


def upright(image: Image) -> Image:
    """Returns an image as people see it: turned as its EXIF data say."""
    from PIL import ImageOps

    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _orientation(image: Image) -> int:
    if "exif" in image.info:  # getexif alone would decode a PNG to look for more
        with contextlib.suppress(Exception):  # damaged EXIF data are no reason to refuse the pixels
            return image.getexif().get(_ORIENTATION, 1)
    return 1
