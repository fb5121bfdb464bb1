"""Couplings pair noise with data: a coupling takes (keys, x0, x1, c) and assigns one x0 to each x1.

When to use which: ``independent`` for conditional generation. Minibatch optimal transport makes the flow straighter, so
that fewer steps suffice, but only with ``condition_weight`` does it keep p(x0|c) as it is when sampling.
``benchmarks/couplings.py`` measures the effect of each on the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from flowguide.condition import Condition
from flowguide.typing import Array, PRNGKey


class Coupling(Protocol):
    """keys ``(B,)``, x0 ``(B, *D)``, x1 ``(B, *D)``, c of batch B -> x0 ``(B, *D)``, row j for row j of x1."""

    def __call__(self, keys: PRNGKey, x0: Array, x1: Array, c: Condition, /) -> Array: ...


class Match(Protocol):
    """keys ``(B,)``, cost ``(B, B)`` -> the row chosen for each column of the cost, int32 ``(B,)``."""

    def __call__(self, keys: PRNGKey, cost: Array, /) -> Array: ...


def independent() -> Coupling:
    """Keeps x0 and x1 as drawn. The right choice for conditional generation: p(x0|c) stays N(0, I)."""
    return lambda keys, x0, x1, c: x0


def next_example() -> Coupling:
    """Gives row j of x1 the x0 of row j − 1, the first that of the last: never its own.

    It finds each example another one of the batch, for targets that contrast them. The batch is shuffled, so the other
    one is independent of it.

    Raises:
      ValueError: in use, if there is one example alone.
    """

    def couple(keys: PRNGKey, x0: Array, x1: Array, c: Condition) -> Array:
        if x0.shape[0] < 2:
            raise ValueError("expected 2 examples or more, so that each has another one; got 1")
        return jnp.roll(x0, 1, axis=0)

    return couple


def minibatch(match: Match, condition_weight: float = 0.0) -> Coupling:
    """Minibatch optimal transport with squared distances (Tong et al. 2024, §3.2; Pooladian et al. 2023, §3).

    It makes unconditional flows straighter. Without ``condition_weight`` it ignores the condition: noise near the data
    of c is paired with c, so x0 is no longer independent of c, while sampling still starts from N(0, I). With it, noise
    i belongs to condition i, and pairing it with an example of another condition costs extra (Cheng & Schwing 2025,
    "The Curse of Conditions", §3): with a large weight pairs change only within a condition, and p(x0|c) stays N(0, I).
    If a field takes many values in a batch, there is then nothing left to exchange.

    It pairs within the batch it is given, which in training is that of one device (see ``within``): the result depends
    on how many devices share a batch.

    Args:
      match: ``assigned`` or ``drawn``: how the transport problem is solved.
      condition_weight: cost of a changed condition, in units of the mean squared distance within the batch. It applies
        per field, to two labels or words that differ, or to a squared distance of 1 between two vectors.
    """

    def couple(keys: PRNGKey, x0: Array, x1: Array, c: Condition) -> Array:
        cost = _squared_distances(x0, x1)
        if condition_weight:
            cost = cost + condition_weight * jnp.mean(cost) * sum(map(_differences, jax.tree.leaves(c.value)))
        return x0[match(keys, cost)]

    return couple


def within(coupling: Coupling, shares: int) -> Coupling:
    """Applies ``coupling`` within each of ``shares`` equal, consecutive parts of the batch.

    For a program that sees the global batch and must reproduce what each device would do with its part. The size of the
    batch must be a multiple of ``shares``.
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
    """Samples the noise of each x1 from its column of a transport plan, e.g. that of the entropic problem (Sinkhorn).

    The same noise may go to two x1. On average over the draws the distribution of the noise is kept, because the rows
    of a plan have equal sums.

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
    """Pairwise differences ``(B, B)`` between the values (B, ...) of a field."""
    if jnp.issubdtype(value.dtype, jnp.floating):
        value = jnp.nan_to_num(value)  # NaN marks what is unknown
        return _squared_distances(value, value)
    value = value.reshape(value.shape[0], -1)
    return jnp.mean(value[:, None] != value[None], axis=-1)
