"""Multi-head attention of an example's tokens over themselves and a conditioning sequence.

A grid of tokens may have other tokens before it: class tokens, registers, or words. They have no place in the grid, so
rotary positions leave them alone.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from flowguide.networks.layers import Dense, RMSNorm, layer_norm, zeros
from flowguide.networks.perturbation import PLAIN, Treatment, blurred
from flowguide.networks.positions import rotated
from flowguide.typing import Array

KERNELS = ("xla", "cudnn")


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


def cudnn_attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Returns ``attend`` of the same arguments, by cuDNN's flash attention where it runs.

    Elsewhere it warns once for each cause and computes ``attend``. The kernel takes bfloat16 and float16 on NVIDIA GPUs
    since Ampere. It has no forward-mode derivative (JVP).
    """
    if reason := cudnn_refusal(q.shape, k.shape, str(q.dtype), mask is not None):
        _warn_once(f"attention='cudnn' is computed as 'xla': {reason}")
        return attend(q, k, v, mask)
    return _cudnn(q, k, v, mask)


@functools.cache
def cudnn_refusal(q: tuple[int, ...], k: tuple[int, ...], dtype: str, masked: bool) -> str:
    """Returns why cuDNN's attention does not run for these shapes and this dtype; "" if it does.

    On a GPU it asks cuDNN itself: it compiles the kernel and its gradient for one example.
    """
    if jax.default_backend() != "gpu":
        return f"it needs an NVIDIA GPU, and JAX runs on {jax.default_backend()}"
    if dtype not in ("bfloat16", "float16"):
        return f"it needs bfloat16 or float16, and the network computes in {dtype}: set dtype='bfloat16'"

    def one(shape: tuple[int, ...], kind: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape[1:]), kind)

    def loss(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        return jnp.sum(_cudnn(q, k, v, mask).astype(jnp.float32))

    try:
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(
            one(q), one(k), one(k), one(k[:2], "bool") if masked else None
        ).compile()
    except Exception as error:  # cuDNN, its bindings and XLA each raise their own kinds
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ""


def _cudnn(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    if mask is not None:
        mask = jnp.broadcast_to(mask[:, None, None, :], (q.shape[0], 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


class Attention(nnx.Module):
    """Self-attention (B, T, width) -> (B, T, width); a sequence (B, L, context) adds L keys and values."""

    def __init__(
        self,
        width: int,
        heads: int,
        context: int | None,
        *,
        qk_norm: bool = False,
        rope: bool = False,
        kernel: str = "xla",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
          width: size of a token.
          heads: number of heads.
          context: width of the sequence; None without one.
          qk_norm: whether to normalise queries and keys by an RMSNorm over each head (Henry et al. 2020, Dehghani et
            al. 2023).
          rope: whether to rotate the grid's queries and keys by their places (``positions.rotated``).
          kernel: one of ``KERNELS``.
          dtype: dtype of the computation.
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if ``heads`` does not divide ``width``.
        """
        if width % heads:
            raise ValueError(f"heads must divide the channels of attention; got {width} channels and heads={heads}")
        self.heads, self.rope, self.kernel = heads, rope, kernel
        self.qkv = Dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.context_kv = None if context is None else Dense(context, 2 * width, dtype=dtype, rngs=rngs)
        self.out = Dense(width, width, dtype=dtype, rngs=rngs)
        self.q_norm, self.k_norm = (RMSNorm(width // heads) if qk_norm else None for _ in range(2))

    def __call__(
        self,
        x: Array,
        sequence: Array | None,
        mask: Array | None,
        grid: tuple[int, ...],
        treatment: Treatment = PLAIN,
    ) -> Array:
        """Attends; the last tokens of x form a row-major ``grid``, and ``treatment`` perturbs attention."""
        q, k, v = self.project(x, grid, treatment)
        if self.context_kv is not None and sequence is not None and mask is not None:
            more, values = jnp.split(self.context_kv(layer_norm(sequence)), 2, axis=-1)
            more = _normalised(_split(more, self.heads), self.k_norm)
            k, v = (jnp.concatenate(a, axis=1) for a in ((k, more), (v, _split(values, self.heads))))
            mask = jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], axis=1)
        else:
            mask = None
        return self.out(mix(q, k, v, mask, grid, treatment, self.kernel).reshape(x.shape))

    def project(self, x: Array, grid: tuple[int, ...], treatment: Treatment = PLAIN) -> tuple[Array, Array, Array]:
        """Returns queries, keys and values (B, T, heads, H) of tokens that end in a ``grid``; () for none.

        Queries are blurred before they are rotated: a rotated query is bound to its place.
        """
        q, k, v = (_split(a, self.heads) for a in jnp.split(self.qkv(x), 3, axis=-1))
        q, k = _normalised(q, self.q_norm), _normalised(k, self.k_norm)
        if treatment.attention == "blurred":
            q = _on_grid(lambda a: blurred(a, grid, treatment.blur), q, grid)
        if self.rope:
            q, k = (_on_grid(lambda a: rotated(a, grid), a, grid) for a in (q, k))
        return q, k, v


class CrossAttention(nnx.Module):
    """Attention of tokens (B, T, width) to a sequence (B, L, context); its output is 0 at first."""

    def __init__(
        self,
        width: int,
        heads: int,
        context: int,
        *,
        qk_norm: bool = False,
        kernel: str = "xla",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer; arguments are those of ``Attention``."""
        self.heads, self.kernel = heads, kernel
        self.q = Dense(width, width, dtype=dtype, rngs=rngs)
        self.kv = Dense(context, 2 * width, dtype=dtype, rngs=rngs)
        self.out = Dense(width, width, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.q_norm, self.k_norm = (RMSNorm(width // heads) if qk_norm else None for _ in range(2))

    def __call__(self, x: Array, sequence: Array, mask: Array) -> Array:
        """Attends to the rows of the sequence that ``mask`` (B, L) shows; without any, the mean value is 0."""
        q = _normalised(_split(self.q(x), self.heads), self.q_norm)
        k, v = (_split(a, self.heads) for a in jnp.split(self.kv(layer_norm(sequence)), 2, axis=-1))
        something = jnp.any(mask, axis=1, keepdims=True)
        # A softmax over no keys would be NaN, so an empty sequence attends to all and drops the result.
        mixed = _attend(q, _normalised(k, self.k_norm), v, mask | ~something, self.kernel)
        return self.out(jnp.where(something[..., None, None], mixed, 0).reshape(x.shape))


def joint_attention(
    image: Attention,
    text: Attention,
    x: Array,
    sequence: Array,
    mask: Array,
    grid: tuple[int, ...],
    treatment: Treatment = PLAIN,
) -> tuple[Array, Array]:
    """Returns attention over tokens of an image and of a text, each with its own layers (Esser et al. 2024, §4).

    Args:
      image: layer of the image's tokens.
      text: layer of the text's tokens, of the same width and heads.
      x: (B, T, width); its last tokens form a row-major ``grid``.
      sequence: tokens of the text, (B, L, width).
      mask: bool (B, L), False where the text is padded.
      grid: number of tokens along each axis.
      treatment: perturbs attention of the grid's tokens.

    Returns:
      The image's tokens (B, T, width) and the text's (B, L, width).
    """
    pairs = zip(text.project(sequence, ()), image.project(x, grid, treatment), strict=True)
    q, k, v = (jnp.concatenate(pair, axis=1) for pair in pairs)
    mask = jnp.concatenate([mask, jnp.ones(x.shape[:2], bool)], axis=1)
    mixed = mix(q, k, v, mask, grid, treatment, image.kernel)
    words = sequence.shape[1]
    mixed = mixed.reshape(*mixed.shape[:2], -1)
    return image.out(mixed[:, words:]), text.out(mixed[:, :words])


def mix(
    q: Array, k: Array, v: Array, mask: Array | None, grid: tuple[int, ...], treatment: Treatment, kernel: str
) -> Array:
    """Returns ``attend`` of T queries whose last tokens form a grid; with "identity", the grid's own values there.

    The first T keys and values are those of the T tokens. Tokens outside of the grid attend as in the plain network.
    """
    if treatment.attention != "identity":
        return _attend(q, k, v, mask, kernel)
    tokens, others = q.shape[1], q.shape[1] - math.prod(grid)
    own = v[:, others:tokens]
    return jnp.concatenate([_attend(q[:, :others], k, v, mask, kernel), own], axis=1) if others else own


def _attend(q: Array, k: Array, v: Array, mask: Array | None, kernel: str) -> Array:
    return cudnn_attend(q, k, v, mask) if kernel == "cudnn" else attend(q, k, v, mask)


def _on_grid(change: Callable[[Array], Array], a: Array, grid: tuple[int, ...]) -> Array:
    """Changes the last tokens of ``a`` (B, T, heads, H), those of the grid."""
    others = a.shape[1] - math.prod(grid)
    return jnp.concatenate([a[:, :others], change(a[:, others:])], axis=1) if others else change(a)


def _normalised(a: Array, norm: RMSNorm | None) -> Array:
    return a if norm is None else norm(a)


def _split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, -1)
