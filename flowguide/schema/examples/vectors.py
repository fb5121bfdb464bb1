"""Arrays of floats: points, vectors, latents without an autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flowguide.kinds import fits
from flowguide.schema.examples.example import check_shape, mirrored_where
from flowguide.schema.standard import check_standard, restored, standardised
from flowguide.typing import Array, PRNGKey


class Vectors(NamedTuple):
    """float32 arrays of any fixed shape, which the network sees standardised.

    Attributes:
      shape: of one example.
      mean: along the last axis, subtracted from what is stored; empty for zeros.
      scale: along the last axis, what is stored is then divided by; empty for ones.
      names: along the last axis, names of the columns of a table; may be empty.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    kind = "points"
    dtype = np.float32
    as_pictures = False
    variance = 1.0  # they are standardised

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def model_shape(self) -> tuple[int, ...]:
        return self.shape

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Vectors:
        examples = cls(**content)
        check_shape(examples.shape)
        size = examples.shape[-1] if examples.shape else 1
        check_standard(size, examples.mean, examples.scale)
        if not fits(examples.names, Sequence[str]) or len(examples.names) not in (0, size):
            raise ValueError(f"names are {examples.names!r:.60}, not {size} texts")
        return examples

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) for name, value in self._asdict().items() if value or name == "shape"}

    def to_model(self, x: Any) -> Array:
        return standardised(jnp.asarray(x).astype(jnp.float32), self.mean, self.scale)

    def draw(self, keys: PRNGKey, x: Any, coins: Array | None = None) -> Array:
        return mirrored_where(coins, self.to_model(x), self.mirrored)

    def to_output(self, x: Any) -> Any:
        return restored(x, self.mean, self.scale)

    @property
    def log_volume(self) -> float:
        """log |det| of ``to_output``: a log-density of what the network sees is that of what is stored, plus this."""
        each = float(np.sum(np.log(self.scale))) if self.scale else 0.0
        return each * math.prod(self.shape[:-1])

    def named(self, x: Any) -> Any:
        return x

    def mirrored(self, x: Array) -> Array:
        raise ValueError("flip mirrors images, and these examples are arrays of floats: set flip to False")
