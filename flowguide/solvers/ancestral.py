"""Ancestral sampling of a DDPM chain whose network predicts variances, as released DiT weights do."""

from __future__ import annotations

import jax.numpy as jnp

from flowguide import paths
from flowguide.chain import Chain, level
from flowguide.paths import Path
from flowguide.solvers.solver import Solver, over
from flowguide.solvers.stochastic import noise
from flowguide.typing import Array, PRNGKey, PyTree, Velocity


def ddpm(path: Path, keys: PRNGKey, chain: Chain) -> Solver:
    """DDPM with learned variances (Nichol & Dhariwal 2021, eqs. 11, 12 and 15), between any two times of a path.

    With ᾱ and ᾱ' of the chain at t and t', β = 1 − ᾱ/ᾱ' and β̃ = β(1 − ᾱ')/(1 − ᾱ), it draws, in the scale of the chain,

        x' = [√ᾱ'β·x̂1 + √(ᾱ/ᾱ')(1 − ᾱ')x]/(1 − ᾱ) + √Σ·z,   log Σ = s·log β + (1 − s)·log β̃,   s = (v + 1)/2,

    where v in [−1, 1] is the predicted range of the variance. Steps of a chain that are left out change ᾱ, not the
    formula (its §4). A step to t = 1 returns x̂1.

    The state is x and zeros, ``(B, *sides, 2C)``; the velocity takes it and returns u and v in their places
    (``networks.module.Ancestral``).

    Args:
      path: of the velocity.
      keys: typed keys ``(B,)``, one per sample.
      chain: that the network was trained on.
    """

    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        own, _ = jnp.split(x, 2, axis=-1)
        u, v = jnp.split(velocity(t, x), 2, axis=-1)
        data, now, then = paths.velocity_to_x1(path, t, own, u), level(chain, path, t), level(chain, path, t_next)
        # In terms of σ², for near the data ᾱ is 1 to rounding.
        beta = (now.sigma**2 - then.sigma**2) / then.alpha**2
        rest = (then.sigma / now.sigma) ** 2
        to_data, to_own = then.alpha * beta / now.sigma**2, now.alpha / then.alpha * rest
        tiny = jnp.finfo(x.dtype).tiny
        large, small = (over(jnp.log(jnp.maximum(a, tiny)), own) for a in (beta, beta * rest))
        share = (v + 1) / 2
        spread = jnp.exp((share * large + (1 - share) * small) / 2)
        mean = over(to_data, own) * data + over(to_own * now.scale, own) * own
        new = (mean + spread * noise(keys, memory, own)) / over(then.scale, own)
        new = jnp.where(t_next >= 1, data, new)
        return jnp.concatenate([new, jnp.zeros_like(new)], axis=-1).astype(x.dtype), memory + 1

    return Solver(lambda x: jnp.int32(0), step, (0.0,), forward_only=True)
