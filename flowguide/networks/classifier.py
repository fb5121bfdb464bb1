"""A classifier of noisy data, p_t(c|x_t), for classifier guidance of an unconditional velocity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.embed import TimeEmbedding
from flowguide.networks.layers import Dense, check_sizes, computing_dtype, zeros
from flowguide.networks.mlp import MLPBlock
from flowguide.networks.module import Network, Params
from flowguide.schema import Fields, Label
from flowguide.typing import Array


class Classifier(nnx.Module):
    """Logits of p_t(c|x) for x (B, *shape): residual blocks on the flattened x, each modulated by time."""

    def __init__(
        self,
        shape: Sequence[int],
        fields: Fields,
        *,
        width: int = 128,
        depth: int = 2,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Builds the network; at initialisation all classes are equally probable.

        Args:
          shape: shape of one example.
          fields: fields of the condition: one ``Label``, whose classes the network predicts.
          width: size of the hidden layers and of the time embedding.
          depth: number of residual blocks.
          dtype: dtype of the computation, "float32" or "bfloat16"; parameters and output are float32.
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if ``fields`` is not one ``Label``, or a size is not positive.
        """
        labels = [field for field in fields.values() if isinstance(field, Label)]
        if not len(labels) == len(fields) == 1:
            raise ValueError(
                f"a classifier tells the classes of one label apart; got fields {sorted(fields)}: name one in the data"
            )
        check_sizes(width=width, depth=depth)
        self.dtype = computing_dtype(dtype)
        self.time = TimeEmbedding(width, rngs=rngs)
        self.inlet = Dense(math.prod(shape), width, dtype=self.dtype, rngs=rngs)
        self.blocks = nnx.data([MLPBlock(width, dtype=self.dtype, rngs=rngs) for _ in range(depth)])
        self.outlet = Dense(width, len(labels[0].values), kernel_init=zeros, rngs=rngs)

    def __call__(self, t: Array, x: Array, c: Condition | None = None) -> Array:
        """t (B,), x (B, *shape) -> logits float32 (B, K). Ignores c, which ``as_network`` passes."""
        signal = nnx.silu(self.time(t)).astype(self.dtype)
        h = self.inlet(x.reshape(x.shape[0], -1).astype(self.dtype))
        for block in self.blocks:
            h = block(h, signal)
        return self.outlet(nnx.silu(h).astype(jnp.float32))


def log_probability(network: Network, params: Params) -> Callable[[Array, Array, Condition], Array]:
    """Returns the function (t () or ``(B,)``, x ``(B, *D)``, c of one label) -> log p_t(c|x) ``(B,)``.

    The result is 0 where c is ∅, whose probability is 1. ``guidance.with_gradient`` takes the gradient in x of
    ``lambda t, x: log_p(t, x, c)``.

    Args:
      network: ``as_network`` of a ``Classifier``, so that ``velocity`` returns logits.
      params: parameters of ``network``.
    """

    def log_p(t: Array, x: Array, c: Condition) -> Array:
        (label,), (present,) = jax.tree.leaves(c.value), jax.tree.leaves(c.present)
        all_log_p = jax.nn.log_softmax(network.velocity(params, jnp.broadcast_to(t, x.shape[:1]), x, c))
        return jnp.where(present, jnp.take_along_axis(all_log_p, label[:, None], axis=1)[:, 0], 0.0)

    return log_p
