"""Diagnostics of guidance along a solve: the distance and angle between the conditional and the null velocity."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowguide import condition
from flowguide.condition import Condition
from flowguide.guidance.rules import inner, norm
from flowguide.solvers.solver import Solver, StatefulVelocity, solve
from flowguide.typing import Array, CondVelocity, Velocity


class Gap(NamedTuple):
    """Statistics at each node of a solve but the last, per sample.

    Attributes:
      t: ``(N,)``.
      difference: ‖u_c − u_∅‖ ``(N, B)``, over the whole sample.
      conditional: ‖u_c‖ ``(N, B)``.
      cosine: cosine of the angle between u_c and u_∅, ``(N, B)``.
    """

    t: Array
    difference: Array
    conditional: Array
    cosine: Array


def gap(
    velocity: CondVelocity, c: Condition, solver: Solver, guided: Velocity | StatefulVelocity, x0: Array, ts: Array
) -> Gap:
    """Compares u_c with u_∅ along a (guided) solve; costs two evaluations per node in addition to the solve."""
    states = solve(solver, guided, x0, ts, trajectory=True)[:-1]

    def at(_: None, here: tuple[Array, Array]) -> tuple[None, tuple[Array, ...]]:
        t, x = here
        u, null = (condition.bind(velocity, each)(t, x) for each in (c, condition.null(c)))
        product = norm(u) * norm(null)
        cosine = inner(u, null) / jnp.where(product == 0, 1.0, product)
        return None, tuple(value.reshape(x.shape[0]) for value in (norm(u - null), norm(u), cosine))

    return Gap(ts[:-1], *jax.lax.scan(at, None, (ts[:-1], states))[1])
