"""Importance weights for samples of the guided flow, which measure how far it is from the target distribution."""

from __future__ import annotations

from typing import NamedTuple

from flowguide import likelihood
from flowguide.condition import bind
from flowguide.guidance import evaluate
from flowguide.likelihood import Divergence
from flowguide.solvers import Solver
from flowguide.solvers.stochastic import is_one
from flowguide.tilted.product import Product, mix
from flowguide.typing import Array, Velocity


class Weighed(NamedTuple):
    """Importance weights and their parts, each ``(B,)``, in nats.

    Attributes:
      log_weights: log_target − log_sampler; the mean of their exponentials over samples estimates Z.
      log_target: Σ w_i·log p(x1|c_i), the unnormalised log-density of the target.
      log_sampler: log-density of the guided flow.
    """

    log_weights: Array
    log_target: Array
    log_sampler: Array


def importance_weights(
    p: Product,
    x1: Array,
    *,
    divergence: Divergence | None = None,
    ts: Array | None = None,
    solver: Solver | None = None,
) -> Weighed:
    """Returns log Π p(x1|c_i)^{w_i} − log q(x1) for samples x1 of the flow of Σ w_i·u_i, whose density is q.

    It computes one likelihood per factor and one for the flow: for small d, or with Hutchinson's estimator, whose noise
    then enters the weights. Along the exact flow they equal the weights of ``feynman_kac`` without noise (pathwise).
    Their variance grows fast with γ: for Gaussians with variances 2 and 1 it is infinite from γ = 3 on.

    Args:
      p: the target, with conditions and weights of batch B; Σ w_i must be 1.
      x1: samples ``(B, *D)``.
      divergence: as in ``likelihood.log_density``.
      ts: nodes from noise to data.
      solver: RK4 by default.

    Raises:
      ValueError: if Σ w_i is not 1 by construction: the flow would not start from N(0, I).
    """
    if not is_one(p.total):
        raise ValueError(
            f"importance weights need a product whose weights sum to 1; got {p.total}: use powered or composed"
        )

    def density(velocity: Velocity) -> Array:
        return likelihood.log_density(velocity, x1, divergence=divergence, ts=ts, solver=solver).log_density

    log_target = mix(p, [density(bind(factor.velocity, factor.condition)) for factor in p.factors])
    log_sampler = density(lambda t, x: mix(p, evaluate(p.factors, t, x)))
    return Weighed(log_target - log_sampler, log_target, log_sampler)
