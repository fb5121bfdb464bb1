"""How the tensors of a released network and the parameters of ours correspond, in both directions.

A state dict has PyTorch's layout: ``weight`` is (out, in). A dense layer here has ``kernel`` (in, out), and the layers
of all blocks are stacked. The functions below convert every tensor that is not copied. They take NumPy arrays and,
for networks too large to hold, JAX's abstract ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowguide.convert.numbers import time_frequencies
from flowguide.typing import PyTree

BLOCK = "blocks.{}."  # what the keys of a block start with


class Part(NamedTuple):
    """A tensor and its place among the parameters.

    Attributes:
      key: in the state dict; "{}" is the number of a block.
      shape: of the tensor.
      place: in the parameters, with slashes, as "blocks/attention/qkv/kernel".
      take: tensor -> parameter, or a dict of parameters below ``place``.
      give: the inverse.
    """

    key: str
    shape: tuple[int, ...]
    place: str
    take: Callable[[Any], Any]
    give: Callable[[Any], Any]


class Fixed(NamedTuple):
    """A tensor that is computed, and no parameter here: its values must be these.

    Attributes:
      key: in the state dict.
      value: float64.
    """

    key: str
    value: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


Parts = Sequence[Part | Fixed]


def shapes(parts: Parts, depth: int) -> dict[str, tuple[int, ...]]:
    """Returns the exact shapes of a state dict by key."""
    return {key: part.shape for part in parts for key in _keys(part, depth)}


def to_params(parts: Parts, depth: int, state: Mapping[str, Any]) -> PyTree:
    """Returns the parameters, nested dicts, of a state dict with exactly the right keys and shapes."""
    params: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, Fixed):
            continue
        found = [part.take(state[key]) for key in _keys(part, depth)]
        *parents, last = part.place.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _namespace(found[0]).stack(found) if part.key.startswith(BLOCK) else found[0]
    return params


def to_state(parts: Parts, depth: int, params: PyTree) -> dict[str, Any]:
    """Returns the state dict, float32, of parameters: the inverse of ``to_params``."""
    state: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, Fixed):
            state[part.key] = part.value.astype(np.float32)
            continue
        found: Any = params
        for name in part.place.split("/"):
            found = found[name]
        for i, key in enumerate(_keys(part, depth)):
            state[key] = part.give(found[i] if part.key.startswith(BLOCK) else found)
    return state


def dense(
    key: str, sizes: tuple[int, int], place: str, rows: np.ndarray | None = None, sign: int = 1
) -> Iterator[Part]:
    """Yields the weight and the bias of a dense layer.

    Args:
      key: without ".weight".
      sizes: outputs and inputs of the tensor.
      place: without "/kernel".
      rows: for each output here, the output of the tensor that it is, if not all in order. Others are dropped, and
        given back as zeros.
      sign: −1 if the outputs here are the negative ones.
    """
    size = sizes[0]
    rows = np.arange(size) if rows is None else rows
    back = np.full(size, len(rows))
    back[rows] = np.arange(len(rows))

    def give(a: Any) -> Any:  # (outputs here, ...) -> (size, ...)
        xp = _namespace(a)
        return sign * xp.concat([a, xp.zeros_like(a[:1])])[back]

    yield Part(f"{key}.weight", sizes, f"{place}/kernel", lambda w: sign * w[rows].T, lambda a: give(a.T))
    yield Part(f"{key}.bias", sizes[:1], f"{place}/bias", lambda b: sign * b[rows], give)


def film(key: str, width: int, parts: int, place: str) -> Iterator[Part]:
    """Yields a layer of modulations: (shift, scale, gate) of attention and MLP there, (scale, shift, gate) here."""
    order = {6: (1, 0, 2, 4, 3, 5), 2: (1, 0)}[parts]
    rows = np.arange(parts * width).reshape(parts, width)[list(order)].ravel()
    return dense(key, (parts * width, width), place, rows)


def copied(key: str, shape: tuple[int, ...], place: str) -> Part:
    """Returns a tensor that equals its parameter."""
    return Part(key, shape, place, lambda a: a, lambda a: a)


def batched(key: str, shape: tuple[int, ...], place: str) -> Part:
    """Returns a tensor whose first axis, of size 1, the parameter does not have."""
    return Part(key, shape, place, lambda a: a[0], lambda a: a[None])


def patches(key: str, shape: tuple[int, int, int, int], place: str) -> Part:
    """Returns a convolution of stride p, (out, C, p, p): here a dense layer of patches, flat as (row, column, C)."""
    out, channels, p, _ = shape
    return Part(
        f"{key}.weight",
        shape,
        f"{place}/kernel",
        lambda w: w.transpose(2, 3, 1, 0).reshape(p * p * channels, out),
        lambda a: a.reshape(p, p, channels, out).transpose(3, 2, 0, 1),
    )


def labels(classes: int, width: int) -> Part:
    """Returns the table of classes, whose last row is ∅."""
    return Part(
        "y_embedder.embedding_table.weight",
        (classes + 1, width),
        "condition/fields/label",
        lambda w: {"table": w[:-1], "null": w[-1]},
        lambda a: _namespace(a["null"]).concat([a["table"], a["null"][None]]),
    )


def time(width: int, backwards: bool = False) -> Iterator[Part]:
    """Yields the embedding of time; ``backwards`` if the network takes 1 − t for t.

    With the features (cos tf, sin tf) and weights (C, S) of a frequency f,
    C·cos((1−t)f) + S·sin((1−t)f) = (C·cos f + S·sin f)·cos tf + (C·sin f − S·cos f)·sin tf: other weights, exactly, and
    this change of weights is its own inverse.
    """
    weight, bias = dense("t_embedder.mlp.0", (width, 256), "time/hidden")
    if backwards:
        cos, sin = (a.astype(np.float32) for a in (np.cos(time_frequencies()), np.sin(time_frequencies())))

        def turned(w: Any) -> Any:
            c, s = w[:, :128], w[:, 128:]
            return _namespace(w).concat([c * cos + s * sin, c * sin - s * cos], axis=1)

        weight = weight._replace(take=lambda w: turned(w).T, give=lambda a: turned(a.T))
    yield weight
    yield bias
    yield from dense("t_embedder.mlp.2", (width, width), "time/out")


def _keys(part: Part | Fixed, depth: int) -> list[str]:
    return [part.key.format(i) for i in range(depth)] if part.key.startswith(BLOCK) else [part.key]


def _namespace(a: Any) -> Any:
    """Returns the module of an array's functions: NumPy, or JAX's."""
    return a.__array_namespace__()
