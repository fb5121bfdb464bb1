"""Embeddings of the time and of the condition, with a learned null token ∅ for each field."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition, Field, Fields, Label, Tokens, Vector
from flowguide.networks.layers import Dense, embedding
from flowguide.typing import Array


def sinusoidal(t: Array, size: int) -> Array:
    """cos(1000·t·ω) and sin(1000·t·ω), ω log-spaced from 1 down to 1e-4: float32 (B, size), size even.

    The position encoding of Vaswani et al. 2017, §3.5, of the 1,000 steps of Ho et al. 2020, Appendix B.
    """
    frequency = jnp.exp(-math.log(10_000.0) * jnp.arange(size // 2) / (size // 2))
    angle = 1000.0 * t.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nnx.Module):
    """t (B,) in [0, 1] -> float32 (B, width): sinusoids, then a two-layer MLP."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, size: int = 128):
        self.size = size
        self.hidden = Dense(size, width, rngs=rngs)
        self.out = Dense(width, width, rngs=rngs)

    def __call__(self, t: Array) -> Array:
        return self.out(nnx.silu(self.hidden(sinusoidal(t, self.size))))


class LabelEmbedding(nnx.Module):
    """A row for each class."""

    def __init__(self, field: Label, width: int, *, rngs: nnx.Rngs):
        self.shape = ()
        self.table = nnx.Param(embedding(rngs.params(), (len(field.values), width)))
        self.null = nnx.Param(embedding(rngs.params(), (width,)))

    def __call__(self, value: Array, present: Array) -> Array:
        """int32 (B,), bool (B,) -> float32 (B, width)."""
        return jnp.where(present[:, None], self.table[value], self.null[...])


class VectorEmbedding(nnx.Module):
    """A two-layer MLP of the vector."""

    def __init__(self, field: Vector, width: int, *, rngs: nnx.Rngs):
        self.shape = (field.size,)
        self.hidden = Dense(field.size, width, rngs=rngs)
        self.out = Dense(width, width, rngs=rngs)
        self.null = nnx.Param(embedding(rngs.params(), (width,)))

    def __call__(self, value: Array, present: Array) -> Array:
        """float32 (B, size), bool (B,) -> float32 (B, width)."""
        present = present[:, None]
        value = jnp.where(present, value, 0.0)  # an absent NaN would come back through the weights' gradient
        return jnp.where(present, self.out(nnx.silu(self.hidden(value))), self.null[...])


class TokensEmbedding(nnx.Module):
    """A row for each word and each position; the null token is a sequence of length one."""

    def __init__(self, field: Tokens, width: int, *, rngs: nnx.Rngs):
        self.shape = (field.length,)
        self.table = nnx.Param(embedding(rngs.params(), (len(field.words), width)))
        self.position = nnx.Param(embedding(rngs.params(), (field.length, width)))
        self.null = nnx.Param(embedding(rngs.params(), (width,)))
        self.pool = Dense(width, width, rngs=rngs)

    def __call__(self, value: Array, present: Array) -> tuple[Array, Array, Array]:
        """int32 (B, L), bool (B,) -> summary (B, width), sequence (B, L, width), mask bool (B, L)."""
        sequence = jnp.where(present[:, None, None], self.table[value] + self.position[...], self.null[...])
        mask = jnp.where(present[:, None], value != 0, jnp.arange(value.shape[1]) == 0)
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        return self.pool(jnp.sum(sequence * mask[..., None], axis=1) / count), sequence, mask


FieldEmbedding: TypeAlias = LabelEmbedding | VectorEmbedding | TokensEmbedding


class Embedded(NamedTuple):
    """A condition as the networks see it.

    Attributes:
      vector: the sum over fields, float32 (B, width).
      sequence: the words of all token fields, one after the other, float32 (B, L, width); None without such.
      mask: bool (B, L), False where a sequence is padded; None without token fields.
    """

    vector: Array
    sequence: Array | None
    mask: Array | None


class ConditionEmbedding(nnx.Module):
    """Condition -> Embedded, one embedding a field.

    Each field has a learned null token of its own (``<field>/null`` among the parameters), which takes the place
    of the embedding exactly where the field is absent: the value there has no influence, and the token learns from
    absent examples alone. A single field may come as a bare array, several as a dict by name.
    """

    def __init__(self, fields: Fields, width: int, *, rngs: nnx.Rngs):
        self.width = width
        self.fields = nnx.data({name: _embedding(field, width, rngs) for name, field in fields.items()})

    def __call__(self, c: Condition, batch: int) -> Embedded:
        """``batch`` is the size of the batch, which a condition without fields cannot tell.

        Raises:
          ValueError: if names or shapes of the condition are not those of the fields.
        """
        value, present = self._by_name(c.value), self._by_name(c.present)
        vector, sequences, masks = jnp.zeros((batch, self.width)), [], []
        for name, embed in self.fields.items():
            want, got = ((batch, *embed.shape), (batch,)), (value[name].shape, present[name].shape)
            if got != want:
                raise ValueError(
                    f"field {name!r}: expected value {want[0]} and present {want[1]}, got {got[0]} and {got[1]}"
                )
            if isinstance(embed, TokensEmbedding):
                summary, sequence, mask = embed(value[name], present[name])
                sequences.append(sequence)
                masks.append(mask)
            else:
                summary = embed(value[name], present[name])
            vector = vector + summary
        if not sequences:
            return Embedded(vector, None, None)
        return Embedded(vector, jnp.concatenate(sequences, axis=1), jnp.concatenate(masks, axis=1))

    def _by_name(self, tree: Any) -> dict[str, Array]:
        if not isinstance(tree, dict):
            leaves = jax.tree.leaves(tree)
            tree = dict(zip(self.fields, leaves, strict=True)) if len(leaves) == len(self.fields) <= 1 else leaves
        if not isinstance(tree, dict) or set(tree) != set(self.fields):
            got = sorted(tree) if isinstance(tree, dict) else f"{len(tree)} arrays without names"
            raise ValueError(f"the network was built for fields {sorted(self.fields)}; the condition has {got}")
        return tree


def has_sequence(fields: Fields) -> bool:
    """Whether ``Embedded.sequence`` of these fields is an array."""
    return any(isinstance(field, Tokens) for field in fields.values())


def _embedding(field: Field, width: int, rngs: nnx.Rngs) -> FieldEmbedding:
    match field:
        case Label():
            return LabelEmbedding(field, width, rngs=rngs)
        case Vector():
            return VectorEmbedding(field, width, rngs=rngs)
        case Tokens():
            return TokensEmbedding(field, width, rngs=rngs)
    raise TypeError(f"a field is a Label, a Vector or Tokens; got {field!r}")
