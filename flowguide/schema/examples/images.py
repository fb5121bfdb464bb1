"""Images."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flowguide.schema.examples.example import check_shape, mirrored_where
from flowguide.typing import Array, PRNGKey


class Images(NamedTuple):
    """uint8 images ``(H, W, C)``, which the network sees as float32 in [-1, 1]."""

    shape: tuple[int, ...]

    kind = "image"
    dtype = np.uint8
    as_pictures = True
    variance = 0.25  # that of CIFAR-10

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def model_shape(self) -> tuple[int, ...]:
        return self.shape

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Images:
        examples = cls(**content)
        check_shape(examples.shape)
        if len(examples.shape) != 3:
            raise ValueError(f"shape is {examples.shape!r:.60}, not height, width, channels")
        return examples

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    def to_model(self, x: Any) -> Array:
        return to_floats(x)

    def draw(self, keys: PRNGKey, x: Any, coins: Array | None = None) -> Array:
        return mirrored_where(coins, self.to_model(x), self.mirrored)

    def to_output(self, x: Any) -> Any:
        return to_pixels(x)

    def named(self, x: Any) -> Any:
        return x

    def mirrored(self, x: Array) -> Array:
        return x[:, :, ::-1]


def to_floats(x: Any) -> Array:
    """Converts uint8 pixels 0..255 to float32 in [-1, 1]. Works inside ``jit``."""
    return (2 * jnp.asarray(x).astype(jnp.float32) - 255) / 255


def to_pixels(x: Any) -> Any:
    """Converts floats in [-1, 1] to uint8 pixels: rounds, and clips what is outside; NumPy or JAX arrays."""
    return ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
