"""Which noise is paired with which data: a coupling takes (keys, x0, x1, c) and gives each x1 one of the x0.

When to use which: ``independent`` for conditional generation. Minibatch transport makes the flow straighter, so that
few steps do, but only with ``condition_weight`` does it leave p(x0|c) as sampling will draw it. What either does to the
samples is measured by ``benchmarks/couplings.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from flowguide.condition import Condition
from flowguide.typing import Array, PRNGKey

# keys (B,), x0 (B, *D), x1 (B, *D), c -> x0 (B, *D), row j for x1's row j
Coupling: TypeAlias = Callable[[PRNGKey, Array, Array, Condition], Array]
# keys (B,), cost (B, B) -> for each column of the cost its row, int32 (B,)
Match: TypeAlias = Callable[[PRNGKey, Array], Array]


def independent() -> Coupling:
    """x0 and x1 as drawn. The right choice for conditional generation: p(x0|c) stays N(0, I)."""
    return lambda keys, x0, x1, c: x0


def minibatch(match: Match, condition_weight: float = 0.0) -> Coupling:
    """Minibatch optimal transport of squared distances (Tong et al. 2024, §3.2; Pooladian et al. 2023, §3).

    Straighter unconditional flows. Without ``condition_weight`` it ignores the condition: noise that lies towards the
    data of c is then given to c, so that x0 is no longer independent of c, while sampling still starts from N(0, I).
    With it, noise i is taken to belong to condition i, and to move it to an example of another condition costs extra
    (Cheng & Schwing 2025, "The Curse of Conditions", §3): with a large weight pairs change within a condition alone,
    and p(x0|c) stays N(0, I). A field that has many values in a batch then leaves nothing to exchange.

    It pairs within the batch that it is given, in training that of one device (see ``within``): the result depends on
    how many devices share a batch.

    Args:
      match: ``assigned`` or ``drawn``: how the transport problem is solved.
      condition_weight: cost of a changed condition, in units of the mean squared distance within the batch, for each
        field: of two labels or words that differ, or a squared distance of 1 between two vectors.
    """

    def couple(keys: PRNGKey, x0: Array, x1: Array, c: Condition) -> Array:
        cost = _squared_distances(x0, x1)
        if condition_weight:
            cost = cost + condition_weight * jnp.mean(cost) * sum(map(_differences, jax.tree.leaves(c.value)))
        return x0[match(keys, cost)]

    return couple


def within(coupling: Coupling, shares: int) -> Coupling:
    """``coupling`` within each of ``shares`` consecutive shares of the batch, which must be a multiple of them.

    What the devices would do, each with its share: for a program that sees the batch of all of them.
    """
    if shares == 1:
        return coupling

    def couple(keys: PRNGKey, x0: Array, x1: Array, c: Condition) -> Array:
        given = (keys, x0, x1, c)
        cut = jax.tree.map(lambda a: a.reshape(shares, a.shape[0] // shares, *a.shape[1:]), given)
        return jax.vmap(coupling)(*cut).reshape(x0.shape)

    return couple


def assigned(assignment: Callable[[Array], tuple[Array, Array]]) -> Match:
    """The cheapest permutation.

    Args:
      assignment: cost ``(B, B)`` -> rows and columns ``(B,)``, e.g. ``optax.assignment.hungarian_algorithm``.
    """

    def match(keys: PRNGKey, cost: Array) -> Array:
        rows, columns = assignment(cost)
        return jnp.zeros(cost.shape[0], jnp.int32).at[columns].set(rows)

    return match


def drawn(plan: Callable[[Array], Array]) -> Match:
    """Each x1 draws its noise from its column of a transport plan, as of the entropic problem (Sinkhorn).

    The same noise may go to two x1; over the draws its law is kept, as the rows of a plan have equal sums.

    Args:
      plan: cost ``(B, B)`` -> joint probabilities ``(B, B)``, up to a factor.
    """

    def match(keys: PRNGKey, cost: Array) -> Array:
        return jax.vmap(jax.random.categorical)(keys, jnp.log(plan(cost)).T)

    return match


def _squared_distances(a: Array, b: Array) -> Array:
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    return jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None] - 2 * a @ b.T


def _differences(value: Array) -> Array:
    """How much the values (B, ...) of a field differ from each other, ``(B, B)``."""
    if jnp.issubdtype(value.dtype, jnp.floating):
        return _squared_distances(value, value)
    value = value.reshape(value.shape[0], -1)
    return jnp.mean(value[:, None] != value[None], axis=-1)
