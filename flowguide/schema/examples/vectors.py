"""Arrays of floats: points, vectors, latents without an autoencoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flowguide.schema.examples.example import check_shape
from flowguide.typing import Array


class Vectors(NamedTuple):
    """float32 arrays of any fixed shape, which the network sees as they are."""

    shape: tuple[int, ...]

    kind = "points"
    dtype = np.float32
    as_pictures = False

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Vectors:
        examples = cls(**content)
        check_shape(examples.shape)
        return examples

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    def to_model(self, x: Any) -> Array:
        return jnp.asarray(x).astype(jnp.float32)

    def to_output(self, x: Any) -> Any:
        return x

    def mirrored(self, x: Array) -> Array:
        raise ValueError("flip mirrors images, and these examples are arrays of floats: set flip to False")
