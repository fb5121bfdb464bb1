"""Conditions with a presence flag per field and example, so that any field can be left out.

A condition carries a *value* and, for each field and example, whether it is *present*. Where a field is absent, the
network uses its learned null token ∅ and ignores the value. Dropout in training and omission in sampling are therefore
the same operation, and no label id has to be reserved for "nothing".

A condition with one field is a pair of arrays; one with several fields is a pair of equal trees (dicts, by name).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowguide.typing import Array, CondVelocity, PRNGKey, Velocity


class Condition(NamedTuple):
    """Values and their presence.

    Attributes:
      value: an array ``(B, ...)``, or a tree with one such leaf per field.
      present: bool ``(B,)``, or a tree of the same structure; False means ∅.
    """

    value: Any
    present: Any


def given(value: Any) -> Condition:
    """Returns the condition in which every field of ``value`` is present for every example."""
    value = jax.tree.map(jnp.asarray, value)
    return Condition(value, jax.tree.map(lambda v: jnp.ones(v.shape[:1], bool), value))


def null(like: Condition) -> Condition:
    """Returns ∅ for every field and example, in the shape of ``like``; values are zeroed so that none can leak.

    Raises:
      TypeError: if ``like`` is not a ``Condition``.
    """
    check_condition(like)
    return jax.tree.map(jnp.zeros_like, like)


def check_condition(c: Any) -> None:
    """Raises ``TypeError`` unless c is a ``Condition``: ``null`` would turn bare labels into class 0, not into ∅."""
    if not isinstance(c, Condition):
        got = f"an array of shape {jnp.shape(c)}" if hasattr(c, "shape") else f"a {type(c).__name__}"
        raise TypeError(f"expected a Condition, got {got}: wrap it as flowguide.condition.given(c)")


def drop(keys: PRNGKey, c: Condition, rate: float = 0.1, field_rate: float | tuple[float, float] = 0.1) -> Condition:
    """Replaces conditions by ∅ at random, so that one network learns u(t, x, c) and u(t, x, ∅).

    Each example loses its whole condition with probability ``rate`` (Ho & Salimans 2022, Algorithm 1, ``p_uncond``). If
    there are several fields, each is also dropped independently with probability ``field_rate``, so that any subset of
    the fields can be left out when sampling. With rates of 0.1 the network hardly ever sees a prompt that names one of
    many fields; with ``field_rate=(0, 1)`` each example first draws its own rate, which makes every *number* of present
    fields equally likely. A condition with one field only uses ``rate``.

    Args:
      keys: typed keys ``(B,)``, one per example: the draw of an example does not depend on its neighbours.
      c: the condition, batch ``B``.
      rate: probability in [0, 1] that everything is dropped.
      field_rate: probability in [0, 1] that one of several fields is dropped, or two bounds between which each example
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
    """Concatenates conditions of the same fields along the batch axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *cs)


def bind(velocity: CondVelocity, c: Condition) -> Velocity:
    """Fixes the condition: u(t, x) = velocity(t, x, c). This is the only place where a scalar t becomes ``(B,)``."""

    def bound(t: Array, x: Array) -> Array:
        return velocity(jnp.broadcast_to(t, x.shape[:1]), x, c)

    return bound
