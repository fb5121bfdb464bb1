"""DiT, SiT and REPA: one layout. Peebles & Xie 2023; Ma et al. 2024 (arXiv 2401.08740); Yu et al. 2024 (2410.06940).

Half of the 8 channels that DiT returns are the range of a variance. SiT returns them too, and they mean nothing. REPA
runs time from data to noise: u(t, x, c) = −v(1 − t, x, c), so its last layer changes its sign, and ``parts.time``
explains how the weights take 1 − t.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from flowguide.convert import parts as p
from flowguide.convert.family import (
    Family,
    Shapes,
    Sizes,
    Unstated,
    classes_of,
    depth_of,
    known,
    outputs_of,
    shape_of,
    side_of,
)
from flowguide.convert.numbers import positions
from flowguide.networks import SIZES

HEADS = {size["width"]: size["heads"] for size in SIZES.values()}


def sizes(doubled: bool, shapes: Shapes, unstated: Unstated) -> Sizes:
    """Reads the sizes off the shapes; ``doubled`` if the network may return twice the channels of an example."""
    width, channels, patch, _ = shape_of(shapes, "x_embedder.proj.weight", 4)
    heads = known(width, unstated.heads, HEADS, "heads")
    outputs = outputs_of(shapes, patch, channels, doubled)
    return Sizes(width, depth_of(shapes), heads, patch, side_of(shapes), channels, outputs, classes_of(shapes))


def parts(variance: bool, backwards: bool, s: Sizes) -> p.Parts:
    """Returns the tensors.

    Args:
      variance: whether to keep all channels that the network returns, not only as many as an example has.
      backwards: whether time runs from data to noise.
      s: the sizes.
    """
    d, hidden = s.width, 4 * s.width
    rows = np.arange(s.patch**2 * s.outputs).reshape(-1, s.outputs)
    kept = rows if variance else rows[:, : s.channels]
    return [
        p.Fixed("pos_embed", positions(s.side, d)),
        p.patches("x_embedder.proj", (d, s.channels, s.patch, s.patch), "inlet"),
        p.copied("x_embedder.proj.bias", (d,), "inlet/bias"),
        *p.time(d, backwards),
        p.labels(s.classes, d),
        *p.dense("blocks.{}.attn.qkv", (3 * d, d), "blocks/attention/qkv"),
        *p.dense("blocks.{}.attn.proj", (d, d), "blocks/attention/out"),
        *p.dense("blocks.{}.mlp.fc1", (hidden, d), "blocks/hidden"),
        *p.dense("blocks.{}.mlp.fc2", (d, hidden), "blocks/out"),
        *p.film("blocks.{}.adaLN_modulation.1", d, 6, "blocks/film"),
        *p.film("final_layer.adaLN_modulation.1", d, 2, "film"),
        *p.dense("final_layer.linear", (rows.size, d), "outlet", kept.ravel(), -1 if backwards else 1),
    ]


def network(s: Sizes) -> dict[str, Any]:
    """Returns the settings of the network here."""
    size = {"patch": s.patch, "width": s.width, "depth": s.depth, "heads": s.heads}
    return {"name": "dit", **size, "time_scale": 1.0, "time_features": 256, "positions": "dit"}


def _velocity(s: Sizes) -> dict[str, Any]:
    return {"name": "velocity"}


def _noise(s: Sizes) -> dict[str, Any]:
    return {"name": "epsilon", "time_unit": 1.0, "learned_variance": s.outputs == 2 * s.channels}


def _family(title: str, *, doubled: bool, variance: bool = False, backwards: bool = False, dropped: str = "") -> Family:
    return Family(
        title=title,
        averages=("ema",),
        sizes=partial(sizes, doubled),
        parts=partial(parts, variance, backwards),
        network=network,
        output=_noise if variance else _velocity,
        settings={"data.name": LATENTS, "times": {"name": "uniform"}},
        factor=0.18215,
        doubled=doubled,
        dropped=dropped,
    )


LATENTS = "imagenet256_latents"
SIT = _family("SiT", doubled=True)
DIT = _family("DiT", doubled=True, variance=True)
REPA = _family("REPA", doubled=False, backwards=True, dropped="projectors.")
