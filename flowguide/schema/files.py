"""Reads one array from a file that a prompt names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flowguide.errors import UserError, one_line
from flowguide.schema import image_files
from flowguide.schema.examples import Examples, Images


def takes(array: Examples) -> str:
    """Returns what kind of file ``read`` takes, in words."""
    return "an image file" if isinstance(array, Images) else "a file .npy"


def read_any(what: str, text: str, array: Examples) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image or an array of any size; returns it, and the opacity ``(H, W, 1)`` of an image, None without one.

    Args:
      what: takes it, for messages.
      text: the file.
      array: what kind of example it is, and how many channels an image has.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        if not Path(text).is_file():  # a pipe would wait
            raise FileNotFoundError("there is no such file")
        return _image(Path(text), array) if isinstance(array, Images) else (load(text), None)
    except Exception as error:  # Pillow and NumPy raise nearly anything for damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise UserError(f"{what} takes {takes(array)}; {text!r:.200} cannot be read ({reason})") from error


def read(name: str, text: str, array: Examples) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image or an array; returns it as stored, ``array.shape``, and the opacity ``(H, W, 1)`` of an image.

    Args:
      name: of the field, for messages.
      text: the file.
      array: what it must be.

    Raises:
      UserError: if it cannot be read, or has another shape.
    """
    found, alpha = read_any(f"field {name!r}", text, array)
    number = np.issubdtype(found.dtype, np.number) and not np.iscomplexobj(found)
    if found.shape != array.shape or not number:
        raise UserError(
            f"field {name!r} takes {takes(array)} of shape {array.shape}; got {found.dtype} {found.shape} in "
            f"{text!r:.200}: crop or resize it"
        )
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        return found.astype(array.dtype), alpha


def load(file: str | Path, **options: Any) -> np.ndarray:
    """Returns the array of a file ``.npy``; options as for ``np.load``.

    Raises:
      ValueError, OSError, EOFError: if it holds Python objects, or is no such file.
    """
    with open(file, "rb") as content:
        if content.read(6) != b"\x93NUMPY":  # np.load would take it for a pickle, and advise to trust it
            raise ValueError("it is no .npy file")
    return np.load(file, allow_pickle=False, **options)


def _image(path: Path, array: Images) -> tuple[np.ndarray, np.ndarray | None]:
    from PIL import Image  # only those who name a file need Pillow

    with Image.open(path, formats=image_files.FORMATS) as image:
        image_files.check(image)
        channels, has_alpha = array.shape[-1], image_files.channels(image) == 4
        image = image_files.upright(image)
        alpha = np.asarray(image.convert("RGBA"))[..., 3:] if has_alpha and channels != 4 else None
        pixels = np.asarray(image.convert(image_files.MODES.get(channels, "RGB")))
    return pixels.reshape(*pixels.shape[:2], -1), alpha
