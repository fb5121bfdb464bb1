"""Which noise is paired with which data: a coupling takes (x0, x1) and returns x0 in a new order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp

from flowguide.typing import Array

Coupling: TypeAlias = Callable[[Array, Array], Array]
# cost (B, B) -> rows and columns (B,) of the cheapest assignment, as optax.assignment.hungarian_algorithm
Assignment: TypeAlias = Callable[[Array], tuple[Array, Array]]


def independent() -> Coupling:
    """x0 and x1 as drawn. The right choice for conditional generation: p(x0|c) stays N(0, I)."""
    return lambda x0, x1: x0


def minibatch(assignment: Assignment) -> Coupling:
    """Minibatch optimal transport (Tong et al. 2024; Pooladian et al. 2023): squared distances, exact assignment.

    Straighter unconditional flows. It ignores the condition, so that under conditioning x0 is no longer
    independent of c while sampling still starts from N(0, I); and it pairs within the batch of one device, so
    that the result depends on how many devices share a batch.

    Args:
      assignment: solves the linear assignment problem, e.g. ``optax.assignment.hungarian_algorithm``.
    """

    def couple(x0: Array, x1: Array) -> Array:
        a, b = x0.reshape(x0.shape[0], -1), x1.reshape(x1.shape[0], -1)
        cost = jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None] - 2 * a @ b.T
        rows, columns = assignment(cost)
        return jnp.zeros_like(x0).at[columns].set(x0[rows])

    return couple
