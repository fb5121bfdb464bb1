"""Multi-head attention of an example's tokens over themselves and an optional conditioning sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from flowguide.networks.layers import Dense, layer_norm
from flowguide.networks.perturbation import PLAIN, Treatment, blurred
from flowguide.typing import Array


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Returns softmax(qkᵀ/√H)v (Vaswani et al. 2017, eq. 1), with float32 statistics.

    Args:
      q: queries (B, T, heads, H).
      k: keys (B, S, heads, H).
      v: values (B, S, heads, H).
      mask: bool (B, S), True for keys to attend to; every example needs at least one.

    Returns:
      (B, T, heads, H), in the dtype of ``q``.
    """
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[:, None, None, :])
    # On XLA:CPU, plain batched matmuls are twice as fast. This normalises the small output instead of the weights.
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    logits = jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.swapaxes((mixed / total).astype(v.dtype), 1, 2)


class Attention(nnx.Module):
    """Self-attention (B, T, width) -> (B, T, width); a sequence (B, L, context) adds L keys and values."""

    def __init__(self, width: int, heads: int, context: int | None, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Builds the layer; ``context`` is the width of the sequence, None without one.

        Raises:
          ValueError: if ``heads`` does not divide ``width``.
        """
        if width % heads:
            raise ValueError(f"heads must divide the channels of attention; got {width} channels and heads={heads}")
        self.heads = heads
        self.qkv = Dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.context_kv = None if context is None else Dense(context, 2 * width, dtype=dtype, rngs=rngs)
        self.out = Dense(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Array,
        sequence: Array | None,
        mask: Array | None,
        grid: tuple[int, ...],
        treatment: Treatment = PLAIN,
    ) -> Array:
        """Attends; the T tokens form a row-major ``grid``, and ``treatment`` perturbs attention."""
        q, k, v = (self._split(a) for a in jnp.split(self.qkv(x), 3, axis=-1))
        if treatment.attention == "identity":
            return self.out(v.reshape(x.shape))
        if treatment.attention == "blurred":
            q = blurred(q, grid, treatment.blur)
        if self.context_kv is not None and sequence is not None and mask is not None:
            more = jnp.split(self.context_kv(layer_norm(sequence)), 2, axis=-1)
            k, v = (jnp.concatenate([a, self._split(b)], axis=1) for a, b in zip((k, v), more, strict=True))
            mask = jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], axis=1)
        return self.out(attend(q, k, v, mask).reshape(x.shape))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)
