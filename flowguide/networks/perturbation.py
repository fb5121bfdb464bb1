"""Weakened twins of a network, to be guided away from: blocks skipped, or attention that mixes tokens worse.

A perturbation says which blocks of a network do less than they were trained to do. It adds no parameters, so that
one set of them is both the network and its twin. Blocks count from 0, in the order in which they are applied.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from flowguide.typing import Array

Mixing = Literal["full", "identity", "blurred"]


class Perturbation(NamedTuple):
    """What to take from a network; hashable. The default takes nothing.

    Attributes:
      skip: blocks that hand on their input (skip-layer guidance; spatio-temporal skip guidance, Hyung et al. 2024).
      attention: "identity" lets each token see itself alone (perturbed-attention guidance, Ahn et al. 2024), and so
        nothing of a conditioning sequence; "blurred" blurs the queries over the grid of tokens (smoothed energy
        guidance, Hong 2024); "full" leaves attention as it was trained.
      blur: standard deviation of that blur, in tokens: 0 is the plain network, inf gives all tokens the mean query.
      layers: blocks whose attention is so perturbed; None for all that have attention.
    """

    skip: tuple[int, ...] = ()
    attention: Mixing = "full"
    blur: float = math.inf
    layers: tuple[int, ...] | None = None


class Treatment(NamedTuple):
    """What one block does under a perturbation; see there."""

    skipped: bool = False
    attention: Mixing = "full"
    blur: float = 0.0


UNPERTURBED = Perturbation()
PLAIN = Treatment()


def treatments(perturbation: Perturbation, attends: tuple[bool, ...]) -> tuple[Treatment, ...]:
    """What each block does under ``perturbation``.

    Args:
      perturbation: of the whole network.
      attends: for each block, whether it has attention.

    Raises:
      ValueError: if a block named is none of the network's, or its attention is to be perturbed and it has none; if
        ``attention`` is another word, ``blur`` is negative, or ``layers`` is given and attention is left as it is.
    """
    skip, attention, blur, layers = perturbation
    with_attention = [i for i, has in enumerate(attends) if has]
    if not set(skip) <= set(range(len(attends))):
        raise ValueError(f"skip must name blocks among {list(range(len(attends)))}; got {tuple(skip)}")
    if attention not in get_args(Mixing):
        raise ValueError(f"attention must be one of {get_args(Mixing)}; got {attention!r}")
    if attention == "full":
        if layers is not None:
            raise ValueError(f'layers={tuple(layers)} says whose attention to perturb, and attention is "full"')
    elif not with_attention:
        raise ValueError(f"attention={attention!r} needs a network with attention, and this one has none: use skip")
    elif not set(layers or ()) <= set(with_attention):
        raise ValueError(f"layers must name blocks with attention, among {with_attention}; got {layers}")
    if not blur >= 0:
        raise ValueError(f"blur must be 0 or more tokens, or inf; got {blur}")

    # A blur of nothing is the plain network itself, not arithmetic that comes close to it.
    changed = PLAIN if attention == "blurred" and blur == 0 else Treatment(False, attention, blur)
    chosen = with_attention if layers is None else layers

    def treat(block: int) -> Treatment:
        if block in skip:
            return Treatment(skipped=True)
        return changed if attention != "full" and block in chosen else PLAIN

    return tuple(map(treat, range(len(attends))))


def blurred(q: Array, grid: tuple[int, int], sigma: float) -> Array:
    """Gaussian blur over the grid of tokens; at its edges, the weights of the tokens there are made to add up to 1.

    Args:
      q: (B, height·width, heads, H), rows of the grid one after the other.
      grid: (height, width).
      sigma: standard deviation in tokens, positive; inf is the mean over all tokens.

    Returns:
      The shape and dtype of ``q``.
    """

    def weights(size: int) -> Array:
        places = np.arange(size)
        weight = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
        return jnp.asarray(weight / weight.sum(axis=1, keepdims=True), q.dtype)

    # A Gaussian is the product of one along the columns and one along the rows.
    on_grid = q.reshape(q.shape[0], *grid, *q.shape[2:])
    return jnp.einsum("hi,wj,bijnd->bhwnd", *map(weights, grid), on_grid).reshape(q.shape)
