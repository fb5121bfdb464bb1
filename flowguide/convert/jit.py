"""JiT (Li & He 2025, arXiv 2511.13720): a transformer on pixels that predicts the image."""

from __future__ import annotations

from typing import Any

from flowguide.convert import lightningdit
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
from flowguide.errors import UserError

START = {768: 4, 1024: 8, 1280: 10}  # width -> first block that sees the tokens of the class; B, L, H
LARGEST = 256  # side of the images whose noise has scale 1


def sizes(shapes: Shapes, unstated: Unstated) -> Sizes:
    """Reads the sizes off the shapes; the norms of queries tell the size of a head.

    Raises:
      UserError: for images of 512 x 512, whose noise has scale 2.
    """
    bottleneck, channels, patch, _ = shape_of(shapes, "x_embedder.proj1.weight", 4)
    width = shape_of(shapes, "x_embedder.proj2.weight", 4)[0]
    heads = lightningdit.heads_of(width, shape_of(shapes, "blocks.0.attn.q_norm.weight", 1)[0])
    side, tokens = side_of(shapes), shape_of(shapes, "in_context_posemb", 3)[1]
    if side * patch > LARGEST:
        raise UserError(
            f"JiT for images of {side * patch} x {side * patch} learned from noise of scale 2, which a run here cannot "
            f"have: convert one for {LARGEST} x {LARGEST}"
        )
    start, outputs = known(width, unstated.start, START, "class_tokens_from"), outputs_of(shapes, patch, channels)
    depth = depth_of(shapes)
    return Sizes(width, depth, heads, patch, side, channels, outputs, classes_of(shapes), bottleneck, tokens, start)


def parts(s: Sizes) -> p.Parts:
    """Returns the tensors."""
    d, head = s.width, s.width // s.heads
    return [
        p.Fixed("pos_embed", positions(s.side, d)),
        p.batched("in_context_posemb", (1, s.tokens, d), "class_tokens"),
        p.patches("x_embedder.proj1", (s.bottleneck, s.channels, s.patch, s.patch), "bottleneck"),
        p.patches("x_embedder.proj2", (d, s.bottleneck, 1, 1), "inlet"),
        p.copied("x_embedder.proj2.bias", (d,), "inlet/bias"),
        p.copied("blocks.{}.attn.q_norm.weight", (head,), "blocks/attention/q_norm/scale"),
        p.copied("blocks.{}.attn.k_norm.weight", (head,), "blocks/attention/k_norm/scale"),
        *lightningdit.shared(s),
    ]


def network(s: Sizes) -> dict[str, Any]:
    """Returns the settings of the network here."""
    tokens = {"class_tokens": s.tokens, "class_tokens_from": s.start}
    return {**lightningdit.network(s), "qk_norm": True, "bottleneck": s.bottleneck, **tokens}


JIT = Family(
    title="JiT",
    averages=("model_ema1",),
    sizes=sizes,
    parts=parts,
    network=network,
    output=lambda s: {"name": "x1", "floor": 0.05},
    settings={
        "data.name": "imagenet2012",
        "data.image_size": 256,
        "times": {"name": "logit_normal", "mean": -0.8, "std": 0.8},
    },
    pixels=True,
)
