"""What every kind of example provides, so that no other file needs to know which kinds there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.typing import Array, PRNGKey


class Examples(Protocol):
    """A kind of example with its settings, such as ``Images(shape)``. Implementations are NamedTuples.

    Attributes:
      kind: the word for this kind in ``info.json``.
      shape: of one example, as a user gets it.
      stored_shape: of one example, as stored.
      model_shape: of one example, as the network sees it.
      dtype: of a stored example.
      as_pictures: whether outputs are pictures, uint8 ``(H, W, C)``, that can be saved as PNG files.
      variance: that the numbers which the network sees usually have around their mean; posterior guidance assumes it.
    """

    kind: str
    variance: float

    @property
    def dtype(self) -> Any: ...

    @property
    def as_pictures(self) -> bool: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def stored_shape(self) -> tuple[int, ...]: ...

    @property
    def model_shape(self) -> tuple[int, ...]: ...

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Examples:
        """Rebuilds the kind from ``to_json``'s settings; raises ValueError for settings that cannot be."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as JSON, without ``kind``."""
        ...

    def to_model(self, x: Any) -> Array:
        """Converts stored examples to the float32 that the network sees. Works inside ``jit``."""
        ...

    def draw(self, keys: PRNGKey, x: Any, coins: Array | None = None) -> Array:
        """Converts stored examples to what the network sees at one step of training. Works inside ``jit``.

        Args:
          keys: typed keys ``(B,)``, for kinds that draw something themselves. They fold in 3, or 5 and more; training
            has taken the others.
          x: stored, ``(B, *stored_shape)``.
          coins: bool ``(B,)``, which to mirror left to right; None for none.

        Raises:
          ValueError: for coins, if the kind has no left and right.
        """
        ...

    def to_output(self, x: Any) -> Any:
        """Converts what the network draws to what ``sampling`` returns; NumPy or JAX arrays."""
        ...

    def named(self, x: Any) -> Any:
        """Converts outputs to what ``Model.sample`` returns: the same, or an array with the names of classes."""
        ...

    def mirrored(self, x: Array) -> Array:
        """Returns examples mirrored left to right; raises ValueError for kinds that have no left and right."""
        ...


def example_spec(examples: Examples, batch: int) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a batch of stored examples."""
    return jax.ShapeDtypeStruct((batch, *examples.stored_shape), np.dtype(examples.dtype))


def mirrored_where(coins: Array | None, x: Array, mirrored: Callable[[Array], Array]) -> Array:
    """Returns x ``(B, *D)`` mirrored where ``coins`` ``(B,)`` say so; None mirrors nothing."""
    return x if coins is None else jnp.where(coins.reshape(-1, *(1,) * (x.ndim - 1)), mirrored(x), x)


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises ValueError unless all sides are whole numbers of 1 or more, with a product below 2^31."""
    whole = [isinstance(side, int) and not isinstance(side, bool) and 1 <= side < 2**31 for side in shape]
    size = 1
    for side in shape if all(whole) else ():
        size *= side
    if not all(whole) or size >= 2**31:
        raise ValueError(f"shape is {shape!r:.60}, not whole numbers of 1 or more, of a product below 2^31")
