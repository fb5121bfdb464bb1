"""Embeddings of time and condition, with a learned null token ∅ for each field."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.layers import Dense, embedding
from flowguide.schema import Aligned, ClassMap, Field, Fields, Known, Label, Labels, Series, Tokens, Vector
from flowguide.schema.standard import standardised
from flowguide.typing import Array


def sinusoidal(t: Array, size: int, scale: float = 1000.0) -> Array:
    """Returns cos(scale·t·ω) and sin(scale·t·ω), ω log-spaced from 1 down to 1e-4: float32 (B, size), size even.

    This is the position encoding of Vaswani et al. 2017, §3.5, by default for the 1,000 steps of Ho et al. 2020,
    Appendix B.
    """
    frequency = jnp.exp(-math.log(10_000.0) * jnp.arange(size // 2) / (size // 2))
    angle = scale * t.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nnx.Module):
    """t (B,) in [0, 1] -> float32 (B, width): sinusoids, then a two-layer MLP."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, size: int = 128, scale: float = 1000.0):
        self.size, self.scale = size, scale
        self.hidden = Dense(size, width, rngs=rngs)
        self.out = Dense(width, width, rngs=rngs)

    def __call__(self, t: Array) -> Array:
        return self.out(nnx.silu(self.hidden(sinusoidal(t, self.size, self.scale))))


class Embedded(NamedTuple):
    """An embedded field or condition.

    Attributes:
      vector: float32 (B, width); for a condition, the sum over its fields.
      sequence: float32 (B, L, width), tokens for attention; for a condition, the concatenation over its fields. None
        without tokens.
      mask: bool (B, L), False where a sequence is padded; None without a sequence.
      beside: float32 (B, *sides, k), channels to concatenate with x (``concatenated``); for a condition, one array for
        each field that has them.
    """

    vector: Array
    sequence: Array | None = None
    mask: Array | None = None
    beside: tuple[Array, ...] = ()


class LabelEmbedding(nnx.Module):
    """A learned row for each class."""

    def __init__(self, field: Label, width: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(embedding(rngs.params(), (len(field.values), width)))
        self.null = nnx.Param(embedding(rngs.params(), (width,)))

    def __call__(self, value: Array, present: Array) -> Embedded:
        """int32 (B,), bool (B,) -> a vector (B, width)."""
        return Embedded(jnp.where(present[:, None], self.table[value], self.null[...]))


class LabelsEmbedding(nnx.Module):
    """The sum of the learned rows of all classes that apply; the null token stands for ∅, not for no class."""

    def __init__(self, field: Labels, width: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(embedding(rngs.params(), (len(field.values), width)))
        self.null = nnx.Param(embedding(rngs.params(), (width,)))

    def __call__(self, value: Array, present: Array) -> Embedded:
        """bool (B, K), bool (B,) -> a vector (B, width)."""
        return Embedded(jnp.where(present[:, None], value.astype(jnp.float32) @ self.table[...], self.null[...]))


class VectorEmbedding(nnx.Module):
    """A two-layer MLP of the vector."""

    def __init__(self, field: Vector, width: int, *, rngs: nnx.Rngs):
        self.hidden = Dense(field.size, width, rngs=rngs)
        self.out = Dense(width, width, rngs=rngs)
        self.null = nnx.Param(embedding(rngs.params(), (width,)))
        self.mean, self.scale = field.mean, field.scale

    def __call__(self, value: Array, present: Array) -> Embedded:
        """float32 (B, size), bool (B,) -> a vector (B, width)."""
        present = present[:, None]
        value = standardised(value, self.mean, self.scale)
        value = jnp.where(present, value, 0.0)  # a NaN in an absent value would reach the weights' gradient
        return Embedded(jnp.where(present, self.out(nnx.silu(self.hidden(value))), self.null[...]))


class TokensEmbedding(nnx.Module):
    """A learned row for each word and each position; the null token is a sequence of length one."""

    def __init__(self, field: Tokens, width: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(embedding(rngs.params(), (len(field.words), width)))
        self.position = nnx.Param(embedding(rngs.params(), (field.length, width)))
        self.null = nnx.Param(embedding(rngs.params(), (width,)))
        self.pool = Dense(width, width, rngs=rngs)

    def __call__(self, value: Array, present: Array) -> Embedded:
        """int32 (B, L), bool (B,) -> the pooled mean (B, width), the sequence (B, L, width) and its mask."""
        sequence = jnp.where(present[:, None, None], self.table[value] + self.position[...], self.null[...])
        mask = jnp.where(present[:, None], value != 0, jnp.arange(value.shape[1]) == 0)
        return Embedded(self.pool(_mean(sequence, mask)), sequence, mask)


class SeriesEmbedding(nnx.Module):
    """A projection of each vector and a learned row for each position; the null token is a sequence of length one."""

    def __init__(self, field: Series, width: int, *, rngs: nnx.Rngs):
        self.inlet = Dense(field.size, width, rngs=rngs)
        self.position = nnx.Param(embedding(rngs.params(), (field.length, width)))
        self.null = nnx.Param(embedding(rngs.params(), (width,)))
        self.pool = Dense(width, width, rngs=rngs)
        self.mean, self.scale = field.mean, field.scale

    def __call__(self, value: Array, present: Array) -> Embedded:
        """floats (B, L, size), bool (B,) -> the pooled mean (B, width), the sequence (B, L, width) and its mask."""
        present = present[:, None]
        shown = present & ~jnp.isnan(value[..., 0])
        value = standardised(value.astype(jnp.float32), self.mean, self.scale)
        value = jnp.where(shown[..., None], value, 0.0)
        sequence = jnp.where(present[..., None], self.inlet(value) + self.position[...], self.null[...])
        mask = jnp.where(present, shown, jnp.arange(value.shape[1]) == 0)
        return Embedded(self.pool(_mean(sequence, mask)), sequence, mask)


def _mean(sequence: Array, mask: Array) -> Array:
    """Returns the mean (B, width) of the unpadded rows of a sequence (B, L, width); 0 if there are none."""
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return jnp.sum(sequence * mask[..., None], axis=1) / count


class BesideEmbedding(nnx.Module):
    """Channels beside x. Where the field is absent, a learned array takes their place."""

    def __init__(self, field: Aligned | ClassMap | Known, width: int, *, rngs: nnx.Rngs):
        self.width, self.field = width, field
        self.null = nnx.Param(embedding(rngs.params(), _beside_shape(field)))

    def __call__(self, value: Array, present: Array) -> Embedded:
        """(B, *field.shape), bool (B,) -> channels (B, *sides, k), and nothing to add to the vector."""
        channels = self._channels(value)
        present = present.reshape(-1, *(1,) * (channels.ndim - 1))
        return Embedded(jnp.zeros((value.shape[0], self.width)), beside=(jnp.where(present, channels, self.null[...]),))

    def _channels(self, value: Array) -> Array:
        if isinstance(self.field, ClassMap):
            return jax.nn.one_hot(value, len(self.field.values))
        if isinstance(self.field, Aligned):
            return self.field.array.to_model(value)
        seen = self.field.array.to_model(value)
        known = ~jnp.isnan(value)
        return jnp.concatenate([jnp.where(jnp.isnan(seen), 0.0, seen), known.astype(jnp.float32)], axis=-1)


def _beside_shape(field: Aligned | ClassMap | Known) -> tuple[int, ...]:
    """Returns the shape of a field's channels beside one example, ``(*sides, k)``."""
    if isinstance(field, ClassMap):
        return (*field.shape, len(field.values))
    *sides, channels = field.shape
    return (*sides, field.array.model_shape[-1] + channels if isinstance(field, Known) else channels)


class Embedding(NamedTuple):
    """The embedding of a field type.

    Attributes:
      make: (field, width, rngs=...) -> a module whose call is (value, present) -> ``Embedded``. Its parameter ``null``
        replaces the embedding where the field is absent.
      has_sequence: whether its ``Embedded`` has a sequence.
      beside: field -> the shape of its channels beside one example; None if it has none.
    """

    make: Callable[..., nnx.Module]
    has_sequence: bool = False
    beside: Callable[[Any], tuple[int, ...]] | None = None


# By field type; register new field types here.
EMBEDDINGS: dict[type, Embedding] = {
    Label: Embedding(LabelEmbedding),
    Labels: Embedding(LabelsEmbedding),
    Vector: Embedding(VectorEmbedding),
    Tokens: Embedding(TokensEmbedding, has_sequence=True),
    Series: Embedding(SeriesEmbedding, has_sequence=True),
    Aligned: Embedding(BesideEmbedding, beside=_beside_shape),
    ClassMap: Embedding(BesideEmbedding, beside=_beside_shape),
    Known: Embedding(BesideEmbedding, beside=_beside_shape),
}


class ConditionEmbedding(nnx.Module):
    """Embeds a condition field by field: Condition -> ``Embedded``.

    Each field has its own learned null token (``<field>/null`` among the parameters), which replaces the embedding
    exactly where the field is absent: the value there has no influence, and only absent examples train the token. The
    value of a single field may be a bare array; several fields need a dict by name.

    With ``tokens``, a field that has neither a sequence nor channels beside x is also a sequence of one token, its
    vector. So attention can tell the fields apart, of which the sum of the vectors shows only a mixture.
    """

    def __init__(self, fields: Fields, width: int, *, tokens: bool = False, rngs: nnx.Rngs):
        self.width, self.tokens = width, tokens
        made = {name: _embedding(field).make(field, width, rngs=rngs) for name, field in fields.items()}
        self.fields = nnx.data(made)
        self.shapes = tuple((name, field.shape) for name, field in fields.items())

    def __call__(self, c: Condition, batch: int) -> Embedded:
        """Embeds a condition; ``batch`` is the batch size, which a condition without fields does not determine.

        Raises:
          ValueError: if the condition's names or shapes differ from those of the fields.
        """
        value, present = self._by_name(c.value), self._by_name(c.present)
        vector, sequences, masks, beside = jnp.zeros((batch, self.width)), [], [], []
        for name, embed in self.fields.items():
            want, got = ((batch, *dict(self.shapes)[name]), (batch,)), (value[name].shape, present[name].shape)
            if got != want:
                raise ValueError(
                    f"field {name!r}: expected value {want[0]} and present {want[1]}, got {got[0]} and {got[1]}"
                )
            embedded: Embedded = embed(value[name], present[name])
            vector = vector + embedded.vector
            beside += embedded.beside
            if embedded.sequence is not None:
                sequences.append(embedded.sequence)
                masks.append(embedded.mask)
            elif self.tokens and not embedded.beside:
                sequences.append(embedded.vector[:, None])
                masks.append(jnp.ones((batch, 1), bool))
        if not sequences:
            return Embedded(vector, beside=tuple(beside))
        return Embedded(vector, jnp.concatenate(sequences, axis=1), jnp.concatenate(masks, axis=1), tuple(beside))

    def _by_name(self, tree: Any) -> dict[str, Array]:
        if not isinstance(tree, dict):
            leaves = jax.tree.leaves(tree)
            tree = dict(zip(self.fields, leaves, strict=True)) if len(leaves) == len(self.fields) <= 1 else leaves
        if not isinstance(tree, dict) or set(tree) != set(self.fields):
            got = sorted(tree) if isinstance(tree, dict) else f"{len(tree)} arrays without names"
            raise ValueError(f"the network was built for fields {sorted(self.fields)}; the condition has {got}")
        return tree


def has_sequence(fields: Fields, *, tokens: bool = False) -> bool:
    """Returns whether a ``ConditionEmbedding`` of these fields gives a sequence."""
    embeddings = [_embedding(field) for field in fields.values()]
    return any(embedding.has_sequence or (tokens and not embedding.beside) for embedding in embeddings)


def beside_shapes(fields: Fields) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes ``(*sides, k)`` of the channels that these fields put beside one example."""
    found = [(embedding.beside, field) for field in fields.values() if (embedding := _embedding(field)).beside]
    return tuple(shape(field) for shape, field in found if shape is not None)


def channels_beside(fields: Fields, axes: int) -> int:
    """Returns the number of channels that these fields add to examples with so many spatial axes.

    Raises:
      ValueError: if a field has another number of axes.
    """
    shapes = beside_shapes(fields)
    if odd := [shape for shape in shapes if len(shape) != axes + 1]:
        raise ValueError(
            f"a condition with sides {odd[0][:-1]} cannot lie beside examples with {axes} spatial axes: reshape it, "
            "or use the network mlp, which flattens both"
        )
    return sum(shape[-1] for shape in shapes)


def concatenated(x: Array, embedded: Embedded) -> Array:
    """Concatenates x (B, *sides, C) with the channels beside it, resized to the sides of x: (B, *sides, C + Σk).

    Resizing repeats or drops entries ("nearest"), so that a class stays a class.
    """
    sides = x.shape[1:-1]
    resized = [jax.image.resize(b, (b.shape[0], *sides, b.shape[-1]), "nearest") for b in embedded.beside]
    return jnp.concatenate([x, *resized], axis=-1) if resized else x


def _embedding(field: Field) -> Embedding:
    if type(field) not in EMBEDDINGS:
        raise TypeError(f"no embedding for the field {field!r}: register one in networks.embed.EMBEDDINGS")
    return EMBEDDINGS[type(field)]
