"""Weakens a network for guidance to move away from: skips blocks, or perturbs their attention.

A perturbation adds no parameters, so the network and its weakened version share them. Blocks count from 0, in the
order in which they are applied.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from flowguide.typing import Array

Mixing = Literal["full", "identity", "blurred"]


class Perturbation(NamedTuple):
    """How to weaken a network; hashable. The default changes nothing.

    Attributes:
      skip: blocks that pass their input through (skip-layer guidance; spatio-temporal skip guidance, Hyung et al.
        2024).
      attention: "identity" lets each token of the grid attend only to itself, and not to a conditioning sequence
        (perturbed-attention guidance, Ahn et al. 2024); "blurred" blurs the queries over the grid of tokens (smoothed
        energy guidance, Hong 2024); "full" leaves attention unchanged. Tokens outside of the grid (class tokens,
        registers, words of joint attention) attend as before, and a cross-attention layer stays as it is.
      blur: standard deviation of the blur, in tokens: 0 is the plain network, inf gives all tokens the mean query.
      layers: blocks whose attention is perturbed; None for all blocks with attention.
    """

    skip: tuple[int, ...] = ()
    attention: Mixing = "full"
    blur: float = math.inf
    layers: tuple[int, ...] | None = None


class Treatment(NamedTuple):
    """A perturbation's effect on one block; fields as in ``Perturbation``."""

    skipped: bool = False
    attention: Mixing = "full"
    blur: float = 0.0


UNPERTURBED = Perturbation()
PLAIN = Treatment()


def treatments(perturbation: Perturbation, attends: tuple[bool, ...]) -> tuple[Treatment, ...]:
    """Returns the treatment of each block under ``perturbation``.

    Args:
      perturbation: perturbation of the whole network.
      attends: for each block, whether it has attention.

    Raises:
      ValueError: if a named block does not exist; if attention is perturbed, but no block or not all of ``layers`` have
        attention; if ``attention`` is unknown, ``blur`` is negative, or ``layers`` is given with attention "full".
    """
    skip, attention, blur, layers = perturbation
    with_attention = [i for i, has in enumerate(attends) if has]
    if not set(skip) <= set(range(len(attends))):
        raise ValueError(f"skip must name blocks among {list(range(len(attends)))}; got {tuple(skip)}")
    if attention not in get_args(Mixing):
        raise ValueError(f"attention must be one of {get_args(Mixing)}; got {attention!r}")
    if attention == "full":
        if layers is not None:
            raise ValueError(f'layers={tuple(layers)} says whose attention to perturb, but attention is "full"')
    elif not with_attention:
        raise ValueError(f"attention={attention!r} needs a network with attention, but this one has none: use skip")
    elif not set(layers or ()) <= set(with_attention):
        raise ValueError(f"layers must name blocks with attention, among {with_attention}; got {layers}")
    if not blur >= 0:
        raise ValueError(f"blur must be 0 or more tokens, or inf; got {blur}")

    # Blur 0 gives the plain network exactly, not only up to rounding.
    changed = PLAIN if attention == "blurred" and blur == 0 else Treatment(False, attention, blur)
    chosen = with_attention if layers is None else layers

    def treat(block: int) -> Treatment:
        if block in skip:
            return Treatment(skipped=True)
        return changed if attention != "full" and block in chosen else PLAIN

    return tuple(map(treat, range(len(attends))))


def blurred(q: Array, grid: tuple[int, ...], sigma: float) -> Array:
    """Blurs ``q`` with a Gaussian over the grid of tokens, whose weights are renormalised to sum to 1 at the edges.

    Args:
      q: (B, T, heads, H); the T tokens form the grid, in row-major order.
      grid: number of tokens along each axis, such as (height, width); 1 to 3 axes.
      sigma: standard deviation in tokens, positive; inf is the mean over all tokens.

    Returns:
      An array of the shape and dtype of ``q``.
    """

    def weights(size: int) -> Array:
        places = np.arange(size)
        weight = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
        return jnp.asarray(weight / weight.sum(axis=1, keepdims=True), q.dtype)

    # A Gaussian is separable: one factor per axis.
    on_grid = q.reshape(q.shape[0], *grid, *q.shape[2:])
    new, old = "xyz"[: len(grid)], "ijk"[: len(grid)]
    factors = ",".join(map("".join, zip(new, old, strict=True)))
    return jnp.einsum(f"{factors},b{old}nd->b{new}nd", *map(weights, grid), on_grid).reshape(q.shape)
