"""Latents of images: what an autoencoder's encoder says of them, drawn anew at each step of training."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.schema.examples.example import check_shape
from flowguide.schema.standard import check_standard, restored, standardised
from flowguide.typing import Array, PRNGKey


class Latents(NamedTuple):
    """Mean and log-variance of an image's latents, which the network sees as a draw, standardised by channel.

    A sampler draws latents; with the autoencoder they are decoded to the images that a user gets.

    Attributes:
      image: (H, W, channels) of an image.
      latent: (h, w, C) of its latents.
      autoencoder: identity of the autoencoder, ``Autoencoder.identity``.
      mean: by channel, subtracted from latents; empty for zeros.
      scale: by channel, latents are then divided by; empty for ones.
      flips: whether the moments of the mirrored image are stored too, for ``flip``.
      dtype: of what is stored, "float32" or "float16".
      decoded: whether a user gets images; otherwise latents, float32 in the autoencoder's own units.
    """

    image: tuple[int, ...]
    latent: tuple[int, ...]
    autoencoder: str
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    flips: bool = False
    dtype: str = "float32"
    decoded: bool = True

    kind = "latents"
    variance = 1.0  # they are standardised

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image if self.decoded else self.latent

    @property
    def model_shape(self) -> tuple[int, ...]:
        return self.latent

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """(h, w, 2C), mean and log-variance; (2, h, w, 2C) with those of the mirrored image."""
        h, w, channels = self.latent
        return (*((2,) if self.flips else ()), h, w, 2 * channels)

    @property
    def as_pictures(self) -> bool:
        return self.decoded

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Latents:
        examples = cls(**content)
        for shape in (examples.image, examples.latent):
            check_shape(shape)
            if len(shape) != 3:
                raise ValueError(f"shape is {shape!r:.60}, not height, width, channels")
        check_standard(examples.latent[-1], examples.mean, examples.scale)
        if not isinstance(examples.autoencoder, str):
            raise ValueError(f"autoencoder is {examples.autoencoder!r:.60}, not a text")
        if not isinstance(examples.flips, bool) or examples.decoded is not True:
            raise ValueError(f"flips is {examples.flips!r:.60}, not true or false")
        if examples.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype is {examples.dtype!r:.60}, not float32 or float16")
        return examples

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items() if k != "decoded"}

    def moments(self, x: Any, coins: Array | None = None) -> tuple[Array, Array]:
        """Returns mean and log-variance ``(B, h, w, C)`` of stored examples, mirrored where ``coins`` say so.

        Raises:
          ValueError: for coins, if the moments of mirrored images are not stored.
        """
        x = jnp.asarray(x).astype(jnp.float32)
        if coins is not None and not self.flips:
            raise ValueError(
                "flip mirrors images, and the latents of mirrored images are not stored: set flip to False, or encode "
                "again with --flips"
            )
        if self.flips:
            x = x[:, 0] if coins is None else jnp.where(coins[:, None, None, None], x[:, 1], x[:, 0])
        mean, log_variance = jnp.split(x, 2, axis=-1)
        return mean, log_variance

    def draw(self, keys: PRNGKey, x: Any, coins: Array | None = None) -> Array:
        mean, log_variance = self.moments(x, coins)
        own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 3)
        noise = jax.vmap(lambda key: jax.random.normal(key, self.latent))(own)
        return standardised(mean + jnp.exp(0.5 * log_variance) * noise, self.mean, self.scale)

    def to_model(self, x: Any) -> Array:
        return standardised(self.moments(x)[0], self.mean, self.scale)

    def to_output(self, x: Any) -> Any:
        return restored(x, self.mean, self.scale)

    def named(self, x: Any) -> Any:
        return x

    def mirrored(self, x: Array) -> Array:
        raise ValueError("flip mirrors images, not their latents: set flip to False")


def as_stored(mean: np.ndarray, log_variance: np.ndarray, dtype: str) -> np.ndarray:
    """Returns moments ``(..., h, w, C)`` as they are stored, ``(..., h, w, 2C)``."""
    with np.errstate(over="ignore"):  # what is too large for float16 becomes infinite
        return np.concatenate([mean, log_variance], axis=-1).astype(dtype)
