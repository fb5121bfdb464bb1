"""Which noise is paired with which data: a coupling takes (x0, x1, c) and returns x0 in a new order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from flowguide.condition import Condition
from flowguide.typing import Array

Coupling: TypeAlias = Callable[[Array, Array, Condition], Array]
# cost (B, B) -> rows and columns (B,) of the cheapest assignment, as optax.assignment.hungarian_algorithm
Assignment: TypeAlias = Callable[[Array], tuple[Array, Array]]


def independent() -> Coupling:
    """x0 and x1 as drawn. The right choice for conditional generation: p(x0|c) stays N(0, I)."""
    return lambda x0, x1, c: x0


def minibatch(assignment: Assignment, condition_weight: float = 0.0) -> Coupling:
    """Minibatch optimal transport (Tong et al. 2024; Pooladian et al. 2023): squared distances, exact assignment.

    Straighter unconditional flows. Without ``condition_weight`` it ignores the condition: noise that lies towards the
    data of c is then given to c, so that x0 is no longer independent of c, while sampling still starts from N(0, I).
    With it, noise i is taken to belong to condition i, and to move it to an example of another condition costs extra
    (Cheng & Schwing 2025, "The Curse of Conditions", §3): with a large weight pairs change within a condition alone,
    and p(x0|c) stays N(0, I). A field that has many values in a batch then leaves nothing to exchange.

    It pairs within the batch of one device, so that the result depends on how many devices share a batch.

    Args:
      assignment: solves the linear assignment problem, e.g. ``optax.assignment.hungarian_algorithm``.
      condition_weight: cost of a changed condition, in units of the mean squared distance within the batch, for each
        field: of two labels or words that differ, or a squared distance of 1 between two vectors.
    """

    def couple(x0: Array, x1: Array, c: Condition) -> Array:
        cost = _squared_distances(x0, x1)
        if condition_weight:
            cost = cost + condition_weight * jnp.mean(cost) * sum(map(_differences, jax.tree.leaves(c.value)))
        rows, columns = assignment(cost)
        return jnp.zeros_like(x0).at[columns].set(x0[rows])

    return couple


def _squared_distances(a: Array, b: Array) -> Array:
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    return jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None] - 2 * a @ b.T


def _differences(value: Array) -> Array:
    """How much the values (B, ...) of a field differ from each other, ``(B, B)``."""
    if jnp.issubdtype(value.dtype, jnp.floating):
        return _squared_distances(value, value)
    value = value.reshape(value.shape[0], -1)
    return jnp.mean(value[:, None] != value[None], axis=-1)
