"""Exponential moving averages (EMA) of the parameters. A profile gives the weight of the old average in an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from flowguide.typing import Array, PyTree

# number of updates so far, from 0 -> weight of the old average
Profile: TypeAlias = Callable[[Array], Array]


def constant(decay: float = 0.999) -> Profile:
    """Returns the profile min(decay, (1 + n)/(10 + n)): constant after a warm-up that forgets the initial parameters.

    The warm-up is that of TensorFlow's ``ExponentialMovingAverage(num_updates)``; without it a short run would sample
    from its initialisation.
    """
    return lambda n: jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def power(std: float = 0.05) -> Profile:
    """Returns the power-function profile (1 − 1/n)^(γ + 1) of Karras et al. 2024 (EDM2), §3.1.

    Its width is always the fraction ``std`` of the training so far. The first update discards the initial parameters.

    Args:
      std: relative standard deviation σ_rel of the averaging weights, 0 < σ_rel < 12^-½ = 0.2887, that of equal
        weights.

    Raises:
      ValueError: if ``std`` is out of range.
    """
    gamma = power_exponent(std)
    # By logarithms, because float32 rounds 1 - 1/n: after a million updates the average would be 1 % too fast.
    return lambda n: jnp.exp((gamma + 1.0) * jnp.log1p(-1.0 / (n + 1.0)))


def power_exponent(std: float) -> float:
    """Returns γ such that weights ∝ τ^γ on [0, 1] have standard deviation ``std``: σ² = (γ+1)/((γ+2)²(γ+3)).

    Raises:
      ValueError: if no γ > 0 has this standard deviation.
    """
    if not 0.0 < std < 12**-0.5 - 1e-6:
        raise ValueError(f"a power-function EMA needs a relative width between 0 and 12^-½ = 0.2887; got {std}")
    low, high = 0.0, 1e6
    for _ in range(200):  # the width falls as γ grows
        middle = (low + high) / 2
        wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > std**2
        low, high = (middle, high) if wide else (low, middle)
    return low


PROFILES: dict[str, Callable[..., Profile]] = {"constant": constant, "power": power}


def update(profile: Profile, n: Array, average: PyTree, params: PyTree) -> PyTree:
    """Returns the average after update number ``n`` (from 0), float32."""
    keep = profile(n.astype(jnp.float32))
    return jax.tree.map(lambda a, p: p + keep * (a - p), average, params)
