"""A state dict as its authors' code keeps it in a file, and the one that is in it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from flowguide import weights
from flowguide.convert.family import Family, Sizes, Unstated
from flowguide.convert.parts import Fixed, Parts, shapes, to_params
from flowguide.errors import UserError, listed
from flowguide.typing import PyTree

STATED = Unstated()  # the network is as wide as a published one
PREFIXES = ("module.", "_orig_mod.", "net.")  # that wrappers of PyTorch, and JiT's own, put before every key


def read_weights(
    file: str | os.PathLike[str], family: Family, average: str | None = None, unstated: Unstated = STATED
) -> tuple[PyTree, Sizes]:
    """Returns the parameters of the network here, NumPy arrays, from a file of a released network; and its sizes.

    Args:
      file: of torch.save or safetensors, or its address in a bucket; nothing in it is executed.
      family: of the network.
      average: key of the file below which the weights are; None for the family's averaged weights or, if the file has
        none, the whole file.
      unstated: sizes that no shape tells.

    Raises:
      UserError: if the file cannot be read, or is not exactly that of such a network.
    """
    state, sizes = checked(chosen(weights.read(file), family.averages, average), family, unstated)
    return to_params(family.parts(sizes), sizes.depth, state), sizes


def chosen(arrays: Mapping[str, np.ndarray], averages: tuple[str, ...], average: str | None) -> dict[str, np.ndarray]:
    """Returns the state dict in a file: that of averaged weights or, if the file has none, all of it.

    Args:
      arrays: as ``weights.read`` returns them.
      averages: keys that the averaged weights may have, the best first.
      average: the key that they have; None for the first of ``averages`` that is there.

    Raises:
      UserError: if ``average`` is not there.
    """
    groups = {key.partition(".")[0] for key in arrays if "." in key}
    if average is not None and average not in groups:
        raise UserError(
            f"no weights are called {average!r:.100} in the file: --ema takes one of {listed(sorted(groups))}"
        )
    group = average or next((name for name in averages if name in groups), None)
    inside = (
        arrays if group is None else {k.partition(".")[2]: a for k, a in arrays.items() if k.startswith(f"{group}.")}
    )
    return {_stripped(key): a for key, a in inside.items()}


def checked(state: Mapping[str, np.ndarray], family: Family, unstated: Unstated) -> tuple[dict[str, np.ndarray], Sizes]:
    """Returns a state dict of a family, float32, without what is not needed, and the sizes of its network.

    Raises:
      UserError: if it is not exactly that of such a network: keys, shapes, values that are computed, or a number that
        is not finite.
    """
    state = {key: a for key, a in state.items() if not (family.dropped and key.startswith(family.dropped))}
    found = {key: a.shape for key, a in state.items()}
    sizes = family.sizes(found, unstated)
    parts = family.parts(sizes)
    weights.check(state, shapes(parts, sizes.depth), f"a {family.title} with {sizes.text()}")
    _check_values(state, parts)
    return {key: np.asarray(a, np.float32) for key, a in state.items()}, sizes


def _check_values(state: Mapping[str, np.ndarray], parts: Parts) -> None:
    for key, a in state.items():
        if a.dtype.kind not in "fV":  # V: bfloat16
            raise UserError(f"expected weights of floats; got {key} of {a.dtype}: these are other weights")
        if not np.isfinite(a).all():
            raise UserError(f"{key} has a number that is not finite: download the file again, or take another average")
    for part in parts:
        if isinstance(part, Fixed):
            a = np.asarray(state[part.key], np.float64)
            apart = float(np.abs(a - part.value).max())
            if apart > _rounding(state[part.key]):
                raise UserError(
                    f"{part.key} differs by up to {apart:.2g} from the fixed values that it has in the paper: a "
                    "network that learned its own cannot be converted"
                )


def _rounding(a: np.ndarray) -> float:
    """Returns how far numbers of up to 1 may be off in a file.

    Half precision rounds them. In float32, authors average these tables with the weights: there 0.9999 and 1 − 0.9999
    do not add up to 1, and the average of a constant ends at 0.99983 times it.
    """
    return 0.01 if a.dtype.itemsize == 2 else 1e-3


def _stripped(key: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""):
        key = key[len(prefix) :]
    return key
