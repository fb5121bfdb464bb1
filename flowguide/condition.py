"""Conditions: what a sample is asked to be, field by field, and the right to say nothing.

A condition carries a *value* and, for each field and example, whether it is *present*. Where a field is
absent the network puts its learned null token ∅; the value there is ignored. What training drops is
therefore exactly what sampling leaves out, and no label id has to be set aside for "nothing".

A condition of one field is a pair of arrays; one of several fields a pair of equal trees (dicts, by name).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flowguide.typing import Array, CondVelocity, PRNGKey, Velocity


class Label(NamedTuple):
    """A field with one of ``len(values)`` classes; examples hold its index, int32 ``(B,)``."""

    values: tuple[str, ...]


class Vector(NamedTuple):
    """A field with a continuous vector, float32 ``(B, size)``."""

    size: int


class Tokens(NamedTuple):
    """A field with a sequence of words, int32 ``(B, length)``; id 0 pads, ids index ``words``."""

    length: int
    words: tuple[str, ...]


Field: TypeAlias = Label | Vector | Tokens
Fields: TypeAlias = dict[str, Field]


class Condition(NamedTuple):
    """Values and their presence.

    Attributes:
      value: an array ``(B, ...)``, or a tree of them with one leaf a field.
      present: bool ``(B,)``, or a tree of the same structure; False means ∅.
    """

    value: Any
    present: Any


def given(value: Any) -> Condition:
    """The condition in which every field of ``value`` is present for every example."""
    value = jax.tree.map(jnp.asarray, value)
    return Condition(value, jax.tree.map(lambda v: jnp.ones(v.shape[:1], bool), value))


def null(like: Condition) -> Condition:
    """∅ for every field and example, in the shape of ``like``; values are zeroed so that none can leak.

    Raises:
      TypeError: if ``like`` is no ``Condition``.
    """
    check_condition(like)
    return jax.tree.map(jnp.zeros_like, like)


def check_condition(c: Any) -> None:
    """Raises ``TypeError`` for bare labels or other values: their zeros would be taken for ∅, and are a class."""
    if not isinstance(c, Condition):
        got = f"an array of shape {jnp.shape(c)}" if hasattr(c, "shape") else f"a {type(c).__name__}"
        raise TypeError(f"expected a Condition, got {got}: wrap it as flowguide.condition.given(c)")


def drop(keys: PRNGKey, c: Condition, rate: float = 0.1, field_rate: float | tuple[float, float] = 0.1) -> Condition:
    """Replaces conditions by ∅ at random, so that one network learns u(t, x, c) and u(t, x, ∅).

    Each example loses its whole condition with probability ``rate`` (Ho & Salimans 2022, Algorithm 1,
    ``p_uncond``). Where there are several fields, each is moreover lost with probability ``field_rate`` by a
    coin of its own, so that any subset of the fields can be left out when sampling. With rates of 0.1, prompts
    that name one field of many are hardly ever seen; ``field_rate=(0, 1)`` lets each example draw its rate first,
    which makes every *number* of fields present equally likely. A condition of one field has one coin, ``rate``.

    Args:
      keys: typed keys ``(B,)``, one an example: the draw of an example does not depend on its neighbours.
      c: the condition, batch ``B``.
      rate: probability in [0, 1] that everything is dropped.
      field_rate: probability in [0, 1] that one field of several is dropped, or two, between which each example
        draws its own uniformly.
    """
    leaves, structure = jax.tree.flatten(c.present)
    low, high = field_rate if isinstance(field_rate, tuple) else (field_rate, field_rate)
    if len(leaves) == 1:
        low = high = 0.0
    coins = jax.vmap(lambda key: jax.random.uniform(key, (2 + len(leaves),)))(keys)
    kept, own_rate = coins[:, 0] >= rate, low + (high - low) * coins[:, 1]
    present = [p & kept & (coins[:, i + 2] >= own_rate) for i, p in enumerate(leaves)]
    return Condition(c.value, jax.tree.unflatten(structure, present))


def concatenate(*cs: Condition) -> Condition:
    """Conditions of the same fields, one after the other along the batch axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *cs)


def bind(velocity: CondVelocity, c: Condition) -> Velocity:
    """Fixes the condition: u(t, x) = velocity(t, x, c). Here, and only here, a scalar t becomes ``(B,)``."""

    def bound(t: Array, x: Array) -> Array:
        return velocity(jnp.broadcast_to(t, x.shape[:1]), x, c)

    return bound
