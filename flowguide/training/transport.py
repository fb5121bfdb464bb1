"""Couplings by name: those that need a solver of optimal transport take it from Optax or OTT."""

from __future__ import annotations

from collections.abc import Callable

import optax

from flowguide import couplings
from flowguide.errors import UserError
from flowguide.typing import Array


def assigned(condition_weight: float = 0.0) -> couplings.Coupling:
    """Exact minibatch optimal transport; condition_weight adds the distance of conditions to the cost."""
    return couplings.minibatch(couplings.assigned(optax.assignment.hungarian_algorithm), condition_weight)


def sinkhorn(epsilon: float = 0.05, condition_weight: float = 0.0) -> couplings.Coupling:
    """Entropic minibatch optimal transport, epsilon in units of the mean cost; needs flowguide[ot]."""
    try:
        from ott.geometry.geometry import Geometry
        from ott.solvers.linear import solve
    except ImportError as error:
        raise UserError(f'coupling "sinkhorn" needs OTT ({error}): pip install "flowguide[ot]"') from error

    def plan(cost: Array) -> Array:
        return solve(Geometry(cost_matrix=cost, epsilon=epsilon, relative_epsilon="mean")).matrix

    return couplings.minibatch(couplings.drawn(plan), condition_weight)


COUPLINGS: dict[str, Callable[..., couplings.Coupling]] = {
    "independent": couplings.independent,
    "assigned": assigned,
    "sinkhorn": sinkhorn,
}
