"""What a family of released networks is, and how the sizes of one of them are read off the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from flowguide.convert.parts import Parts
from flowguide.errors import UserError, listed

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


class Sizes(NamedTuple):
    """The sizes of one network.

    Attributes:
      width: of a token.
      depth: number of blocks.
      heads: of attention.
      patch: side of a patch.
      side: number of tokens along each side of an image.
      channels: of an example.
      outputs: channels that the network returns.
      classes: without ∅.
      bottleneck: width between the two layers that embed a patch; 0 for a single layer.
      tokens: number of tokens of the class.
      start: first block that sees them.
    """

    width: int
    depth: int
    heads: int
    patch: int
    side: int
    channels: int
    outputs: int
    classes: int
    bottleneck: int = 0
    tokens: int = 0
    start: int = 0

    def text(self) -> str:
        """Returns the sizes as messages show them."""
        return ", ".join(f"{name}={value}" for name, value in self._asdict().items() if value)


class Unstated(NamedTuple):
    """Sizes that no shape tells; None for those of the published network of the same width.

    Attributes:
      heads: of attention.
      start: first block that sees the tokens of the class.
    """

    heads: int | None = None
    start: int | None = None


class Family(NamedTuple):
    """Networks that differ in their sizes alone.

    Attributes:
      title: its name.
      averages: keys under which its files may have the averaged weights, the best first.
      sizes: (shapes, what they do not tell) -> sizes.
      parts: sizes -> its tensors.
      network: sizes -> settings of the network here.
      output: sizes -> what the network predicts, as a setting.
      settings: of a config, by name, that are of the family.
      pixels: whether its examples are images, and not latents.
      factor: of the latents of Stable Diffusion's autoencoders, as the network sees them; 0 if it sees others.
      doubled: whether the network may return twice the channels of an example.
      dropped: what keys start with that sampling does not need; "" if nothing.
    """

    title: str
    averages: tuple[str, ...]
    sizes: Callable[[Shapes, Unstated], Sizes]
    parts: Callable[[Sizes], Parts]
    network: Callable[[Sizes], dict[str, Any]]
    output: Callable[[Sizes], dict[str, Any]]
    settings: dict[str, Any]
    pixels: bool = False
    factor: float = 0.0
    doubled: bool = False
    dropped: str = ""


def shape_of(shapes: Shapes, key: str, axes: int) -> tuple[int, ...]:
    """Returns the shape of a tensor.

    Raises:
      UserError: if it is not there, or has another number of axes or an empty one.
    """
    found = shapes.get(key)
    if found is None or len(found) != axes or not all(found):
        got = f"has {listed(sorted(shapes), 3)}" if found is None else f"has it of shape {found}"
        raise UserError(
            f"expected a state dict with {key} of {axes} axes; the file {got}: check --as or, if the weights are below "
            "another key of the file, name that as --ema=KEY"
        )
    return found


def depth_of(shapes: Shapes) -> int:
    """Returns the number of blocks: keys are blocks.N.NAME."""
    return len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})


def side_of(shapes: Shapes) -> int:
    """Returns the number of tokens along each side of a square image.

    Raises:
      UserError: if their number is no square.
    """
    tokens = shape_of(shapes, "pos_embed", 3)[1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise UserError(f"expected square images; pos_embed is of {tokens} tokens: such a network cannot be converted")
    return math.isqrt(tokens)


def classes_of(shapes: Shapes) -> int:
    """Returns the number of classes, without ∅."""
    return shape_of(shapes, "y_embedder.embedding_table.weight", 2)[0] - 1


def outputs_of(shapes: Shapes, patch: int, channels: int, doubled: bool = False) -> int:
    """Returns the number of channels that the network returns.

    Raises:
      UserError: if they are not those of an example or, if ``doubled``, twice as many.
    """
    rows = shape_of(shapes, "final_layer.linear.weight", 2)[0]
    allowed = (channels, 2 * channels) if doubled else (channels,)
    if rows not in [patch**2 * n for n in allowed]:
        raise UserError(
            f"expected a last layer of {' or '.join(str(patch**2 * n) for n in allowed)} outputs, for {channels} "
            f"channels in patches of {patch} x {patch}; got {rows}: check --as"
        )
    return rows // patch**2


def known(width: int, given: int | None, published: Mapping[int, int], flag: str) -> int:
    """Returns a size that no shape tells: the given one, or that of the published network of the same width.

    Raises:
      UserError: if there is none.
    """
    if given is None and width not in published:
        widths = ", ".join(map(str, published))
        raise UserError(
            f"no published network has width {width} (they have {widths}), and no shape tells --{flag}: give it"
        )
    return published[width] if given is None else given
