"""Warps of the unit interval: they set the distribution of t in training and the time grid in sampling.

A warp is an increasing function of [0, 1] onto itself. Applied to uniform draws it is the quantile function of a
distribution of t; applied to equally spaced nodes it gives a grid that is dense where that distribution is.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from flowguide.typing import Array, PRNGKey


class Warp(Protocol):
    """An increasing function of [0, 1] onto itself, elementwise in τ."""

    def __call__(self, tau: Array, /) -> Array: ...


TINY = 2.0**-24  # draws keep this distance from 0 and 1, where the logit is infinite


def uniform() -> Warp:
    """t = τ."""
    return lambda tau: tau


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Warp:
    """logit t ~ N(mean, std²) (Esser et al. 2024, eq. 19): more draws mid-way, where the task is hardest."""
    return lambda tau: jax.nn.sigmoid(mean + std * ndtri(tau))


def shift(s: float = 3.0) -> Warp:
    """t = τ/(τ + s(1 − τ)): s > 1 spends more time near noise (Esser et al. 2024, eq. 23, with t = 0 at noise)."""
    return lambda tau: tau / (tau + s * (1 - tau))


def sway(k: float = -1.0) -> Warp:
    """t = τ + k(cos(πτ/2) − 1 + τ), −1 ≤ k ≤ 2/(π − 2): k < 0 adds time near noise (Chen et al. 2024, F5-TTS)."""
    return lambda tau: tau + k * (jnp.cos(math.pi / 2 * tau) - 1 + tau)


def cosine() -> Warp:
    """t = (1 − cos πτ)/2: dense at both ends."""
    return lambda tau: 0.5 * (1 - jnp.cos(math.pi * tau))


def karras(rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Warp:
    """t = 1/(1 + σ), σ^{1/ρ} equally spaced from ``sigma_max`` to ``sigma_min`` (Karras et al. 2022, eq. 5).

    On the linear path σ = (1 − t)/t is the paper's noise level. For grids only: ``grid`` moves the ends to 0 and 1, but
    as a distribution of t in training it would never reach them.
    """
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return lambda tau: 1 / (1 + (start + tau * (end - start)) ** rho)


def mode(s: float = 1.29) -> Warp:
    """t = τ + s(cos²(πτ/2) − 1 + τ), −1 ≤ s ≤ 2/(π − 2): s > 0 draws more mid-way times (Esser et al. 2024, eq. 20)."""
    return lambda tau: tau + s * (jnp.cos(math.pi / 2 * tau) ** 2 - 1 + tau)


WARPS: dict[str, Callable[..., Warp]] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "shift": shift,
    "sway": sway,
    "cosine": cosine,
    "karras": karras,
    "mode": mode,
}


def named(text: str) -> Warp:
    """Returns a warp by its name and settings, "shift" or "shift:s=2" or "karras:rho=5:sigma_max=50".

    Raises:
      ValueError: for an unknown name or setting, and for what is no number.
    """
    name, *pairs = text.split(":")
    if name not in WARPS:
        raise ValueError(f"unknown warp {name!r}: there are {', '.join(sorted(WARPS))}")
    takes, settings = inspect.signature(WARPS[name]).parameters, {}
    for pair in pairs:
        setting, _, value = pair.partition("=")
        if setting not in takes:
            raise ValueError(f"warp {name!r} has no setting {setting!r}: it takes {', '.join(takes) or 'none'}")
        try:
            settings[setting] = float(value)
        except ValueError:
            raise ValueError(f"warp {name!r} takes numbers, as {name}:{setting}=2; got {pair!r}") from None
    return WARPS[name](**settings)


def draw(keys: PRNGKey, warp: Warp) -> Array:
    """Draws one t per example, float32 ``(B,)`` strictly inside (0, 1), from typed keys ``(B,)``."""
    return warp(jax.vmap(lambda key: jax.random.uniform(key, minval=TINY, maxval=1 - TINY))(keys))


def stratify(tau: Array, index: Array, count: int) -> Array:
    """Moves uniform draws ``tau`` (B,) into the strata [i/count, (i+1)/count) of their global ``index`` (B,).

    Each τ is still uniform on its own if the examples come in random order, and a batch of ``count`` covers the
    interval evenly, which lowers the variance of the loss (Kingma et al. 2021, Appendix I.1).
    """
    return jnp.clip((index % count + tau) / count, TINY, 1 - TINY)


def grid(steps: int, warp: Warp | None = None) -> Array:
    """Returns the nodes ``(steps + 1,)`` of a solve from noise to data; exactly 0 first and exactly 1 last.

    Raises:
      ValueError: if ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"a grid needs at least 1 step; got steps={steps}")
    # Rounded from float64, so that the node 9/10 equals a user's 0.9, for example at the end of a guidance interval.
    nodes = (warp or uniform())(jnp.asarray(np.linspace(0.0, 1.0, steps + 1)))
    return nodes.at[0].set(0.0).at[-1].set(1.0)
