"""How published packages resize an image before Inception sees it. The choice moves FID by more than models differ.

Every convention is linear in rows and in columns, so each is one matrix per side.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.errors import UserError, hint, listed
from flowguide.typing import Array

SIDE = 299  # of Inception's images


class Convention(NamedTuple):
    """How to resize and scale.

    Attributes:
      cubic: whether the kernel is Keys' cubic (a = −½) rather than the triangle of bilinear interpolation.
      half_pixel: whether pixel i lies at i + ½; otherwise it lies at i, so that images shift, as in TensorFlow 1.
      antialias: whether the kernel widens where an image shrinks.
      offset: the resized value that Inception sees as 0; 0..255 becomes (value − offset)/offset.
    """

    cubic: bool
    half_pixel: bool
    antialias: bool
    offset: float


_TENSORFLOW_1 = Convention(cubic=False, half_pixel=False, antialias=False, offset=128)
# The packages by name, as their numbers are what one compares with.
CONVENTIONS: dict[str, Convention] = {
    "adm": _TENSORFLOW_1,  # the evaluator of guided-diffusion (Dhariwal & Nichol 2021), used by DiT, SiT and others
    "torch-fidelity": _TENSORFLOW_1,
    "pytorch-fid": Convention(cubic=False, half_pixel=True, antialias=False, offset=127.5),
    "clean-fid": Convention(cubic=True, half_pixel=True, antialias=True, offset=128),  # Parmar et al. 2022
}


def resize(images: Array | np.ndarray, convention: str = "adm", side: int = SIDE) -> Array:
    """Returns what a package feeds to Inception, float32 ``(B, side, side, 3)`` in about [−1, 1].

    Args:
      images: ``(B, H, W, 3)`` or, repeated thrice, ``(B, H, W, 1)``, in 0..255, of any dtype.
      convention: name of a package: "adm", "torch-fidelity", "pytorch-fid" or "clean-fid".
      side: of the result.

    Raises:
      UserError: for another convention or shape.
    """
    if convention not in CONVENTIONS:
        known = listed(CONVENTIONS)
        raise UserError(f"resize knows the conventions {known}; got {convention!r}{hint(convention, CONVENTIONS)}")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise UserError(f"Inception takes images (B, H, W, 3) or (B, H, W, 1); got {images.shape}")
    how = CONVENTIONS[convention]
    rows, columns = (jnp.asarray(matrix(length, side, how), jnp.float32) for length in images.shape[1:3])
    highest = jax.lax.Precision.HIGHEST  # accelerators would round to bfloat16
    x = jnp.einsum("ih,bhwc->biwc", rows, images.astype(jnp.float32), precision=highest)
    x = jnp.einsum("jw,biwc->bijc", columns, x, precision=highest)
    return jnp.broadcast_to((x - how.offset) / how.offset, (*x.shape[:3], 3))


def matrix(length: int, side: int, how: Convention) -> np.ndarray:
    """Returns the matrix that resizes ``length`` pixels to ``side``, float64 ``(side, length)``; its rows sum to 1.

    Pixel i of the result lies at c_i = (i + h)·length/side − h among those of the image, h = ½ or 0, and weighs pixel j
    by kernel((j − c_i)/max(1, length/side)), the denominator only with antialiasing.
    """
    scale, half = length / side, 0.5 * how.half_pixel
    centre = (np.arange(side) + half) * scale - half
    width = max(scale, 1.0) if how.antialias else 1.0
    weights = (_cubic if how.cubic else _triangle)((np.arange(length) - centre[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)  # at the borders the weights outside are missing


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys 1981, eq. 15, with a = −½."""
    x = np.abs(x)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))
