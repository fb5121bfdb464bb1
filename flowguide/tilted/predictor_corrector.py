"""Langevin steps on the mixed score, between the steps of the guided flow."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from flowguide import paths
from flowguide.paths import Path
from flowguide.solvers import Solver, ddim, memoryless
from flowguide.solvers.stochastic import noise
from flowguide.typing import Array, PRNGKey, PyTree, Velocity


def predictor_corrector(
    path: Path,
    keys: PRNGKey,
    corrections: int = 1,
    *,
    rule: Literal["matched", "noise"] = "matched",
    ratio: float = 0.2,
    predictor: Solver | None = None,
) -> Solver:
    """Takes M Langevin steps x' = x + εS + √(2ε)z at each node, then a predictor step to the next node.

    For a velocity mixed by guidance, S = Σ w_i·s_i is the score of Π p_t(x|c_i)^{w_i}, the target of the corrections
    (Song et al. 2021, Algorithm 2; Bradley & Nakkiran 2024, Algorithm 2). They quickly correct the shape of a mode, and
    slowly the weights of the modes. The result is an ordinary solver: it works with ``solve``, ``guide`` and any γ(t).
    There are no corrections at t = 0, where x already has the right distribution, and none at t = 1, where ε is 0.

    Args:
      path: the path.
      keys: typed keys ``(B,)``, one per sample.
      corrections: M ≥ 0; each costs one evaluation per step.
      rule: "matched" uses ε = κ·dt, with dt the previous step: as dt → 0 this is the guided SDE with η = M
        (``analytic.guided_moments``), whose distance to the target falls like 1/M. "noise" uses ε = ratio·σ².
      ratio: of the rule "noise", 2·snr² for the signal-to-noise ratio of Song et al.; unstable from about 2/γ on.
      predictor: a solver without memory; ``ddim(path)`` by default.

    Raises:
      ValueError: if ``corrections`` is negative, the rule is unknown, or the predictor has memory.
    """
    if corrections < 0 or rule not in ("matched", "noise"):
        raise ValueError(
            f'expected corrections >= 0 and rule "matched" or "noise"; got corrections={corrections}, rule={rule!r}'
        )
    predict = ddim(path) if predictor is None else predictor

    def init(x: Array) -> PyTree:
        if jax.tree.leaves(predict.init(x)):
            raise ValueError("the predictor must have no memory, because the corrections change x: use ddim(path)")
        return jnp.int32(0), jnp.zeros(())

    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        index, dt = memory

        def corrected(x: Array) -> Array:
            size = (memoryless()(path, t) * dt if rule == "matched" else ratio * path.sigma(t) ** 2).astype(x.dtype)
            for i in range(corrections):
                score = paths.velocity_to_score(path, t, x, velocity(t, x))
                z = noise(keys, index * corrections + i, x)
                x = (x + size * score + jnp.sqrt(2 * size) * z).astype(x.dtype)
            return x

        x = jax.lax.cond(index > 0, corrected, lambda x: x, x) if corrections else x
        x, _ = predict.step(velocity, (), x, t, t_next)
        return x, (index + 1, (t_next - t).astype(dt.dtype))

    return Solver(init, step, (*(0.0,) * corrections, *predict.nodes), predict.nodes, forward_only=True)
