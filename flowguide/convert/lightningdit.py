"""LightningDiT (Yao et al. 2025, arXiv 2501.01423): a DiT with RMSNorm, SwiGLU and rotary positions."""

from __future__ import annotations

from typing import Any

from flowguide.convert import parts as p
from flowguide.convert import sit
from flowguide.convert.family import (
    Family,
    Shapes,
    Sizes,
    Unstated,
    classes_of,
    depth_of,
    outputs_of,
    shape_of,
    side_of,
)
from flowguide.convert.numbers import positions, rotations
from flowguide.errors import UserError


def sizes(shapes: Shapes, unstated: Unstated) -> Sizes:
    """Reads the sizes off the shapes; the rotations tell the size of a head."""
    width, channels, patch, _ = shape_of(shapes, "x_embedder.proj.weight", 4)
    heads = heads_of(width, shape_of(shapes, "feat_rope.freqs_cos", 2)[1])
    outputs = outputs_of(shapes, patch, channels)
    return Sizes(width, depth_of(shapes), heads, patch, side_of(shapes), channels, outputs, classes_of(shapes))


def heads_of(width: int, size: int) -> int:
    """Returns the number of heads of a size.

    Raises:
      UserError: if the width does not consist of such heads, each of four quarters.
    """
    if width % size or size % 4:
        raise UserError(f"expected heads of a multiple of 4 that divides the width {width}; got heads of {size}")
    return width // size


def parts(s: Sizes) -> p.Parts:
    """Returns the tensors."""
    d = s.width
    cos, sin = rotations(s.side, d // s.heads)
    return [
        p.Fixed("pos_embed", positions(s.side, d)),
        p.Fixed("feat_rope.freqs_cos", cos),
        p.Fixed("feat_rope.freqs_sin", sin),
        p.patches("x_embedder.proj", (d, s.channels, s.patch, s.patch), "inlet"),
        p.copied("x_embedder.proj.bias", (d,), "inlet/bias"),
        *shared(s),
    ]


def shared(s: Sizes) -> p.Parts:
    """Returns the tensors that JiT has as well."""
    d, hidden = s.width, int(4 * s.width * 2 / 3)
    return [
        *p.time(d),
        p.labels(s.classes, d),
        p.copied("blocks.{}.norm1.weight", (d,), "blocks/norm/scale"),
        p.copied("blocks.{}.norm2.weight", (d,), "blocks/norm_2/scale"),
        *p.dense("blocks.{}.attn.qkv", (3 * d, d), "blocks/attention/qkv"),
        *p.dense("blocks.{}.attn.proj", (d, d), "blocks/attention/out"),
        *p.dense("blocks.{}.mlp.w12", (2 * hidden, d), "blocks/hidden"),
        *p.dense("blocks.{}.mlp.w3", (d, hidden), "blocks/out"),
        *p.film("blocks.{}.adaLN_modulation.1", d, 6, "blocks/film"),
        p.copied("final_layer.norm_final.weight", (d,), "norm/scale"),
        *p.film("final_layer.adaLN_modulation.1", d, 2, "film"),
        *p.dense("final_layer.linear", (s.patch**2 * s.outputs, d), "outlet"),
    ]


def network(s: Sizes) -> dict[str, Any]:
    """Returns the settings of the network here."""
    return {**sit.network(s), "norm": "rms", "mlp": "swiglu", "rope": True}


LIGHTNINGDIT = Family(
    title="LightningDiT",
    averages=("ema",),
    sizes=sizes,
    parts=parts,
    network=network,
    output=lambda s: {"name": "velocity"},
    settings={"data.name": sit.LATENTS},
)
