"""Reads one array from a file that a prompt names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowguide.errors import UserError
from flowguide.schema.examples import Examples, Images

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def takes(array: Examples) -> str:
    """Returns what kind of file ``read`` takes, in words."""
    return "an image file" if isinstance(array, Images) else "a file .npy"


def load(what: str, text: str, array: Examples) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image or an array of any size; returns it, and the opacity ``(H, W, 1)`` of an image, None without one.

    Args:
      what: takes it, for messages.
      text: the file.
      array: what kind of example it is, and how many channels an image has.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        return _image(Path(text), array) if isinstance(array, Images) else (np.load(text), None)
    except Exception as error:  # Pillow and NumPy raise nearly anything for damaged files
        raise UserError(f"{what} takes {takes(array)}; {text!r:.200} cannot be read ({error})") from error


def read(name: str, text: str, array: Examples) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image or an array; returns it as stored, ``array.shape``, and the opacity ``(H, W, 1)`` of an image.

    Args:
      name: of the field, for messages.
      text: the file.
      array: what it must be.

    Raises:
      UserError: if it cannot be read, or has another shape.
    """
    found, alpha = load(f"field {name!r}", text, array)
    number = np.issubdtype(found.dtype, np.number) and not np.iscomplexobj(found)
    if found.shape != array.shape or not number:
        raise UserError(
            f"field {name!r} takes {takes(array)} of shape {array.shape}; got {found.dtype} {found.shape} in "
            f"{text!r:.200}: crop or resize it"
        )
    return found.astype(array.dtype), alpha


def _image(path: Path, array: Images) -> tuple[np.ndarray, np.ndarray | None]:
    from PIL import Image  # only those who name a file need Pillow

    with Image.open(path) as image:
        channels = array.shape[-1]
        alpha = np.asarray(image.convert("RGBA"))[..., 3:] if "A" in image.getbands() and channels != 4 else None
        pixels = np.asarray(image.convert(_MODES.get(channels, "RGB")))
    return pixels.reshape(*pixels.shape[:2], -1), alpha
