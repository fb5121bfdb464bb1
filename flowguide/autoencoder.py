"""An autoencoder with its weights: images to latents and back, in batches and in tiles, and its file.

```python
vae = load_vae("diffusion_pytorch_model.safetensors")
posterior = vae.encode(images)  # uint8 (N, H, W, 3) -> mean and log-variance (N, h, w, 4)
vae.decode(posterior.mean)  # uint8 (N, H, W, 3)
```

The file is that of diffusers' ``AutoencoderKL``: Stable Diffusion's autoencoders can be read, and theirs and ours are
written in the same layout.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowguide import weights
from flowguide.errors import UserError, shown
from flowguide.hashes import json_hash, leaf_hashes
from flowguide.networks.autoencoder import AutoencoderKL, Posterior
from flowguide.networks.module import Params, as_pure
from flowguide.schema import Examples, Latents, to_floats, to_pixels
from flowguide.typing import Array

# What old files call the layers of the attention.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Sizes(NamedTuple):
    """Sizes of an autoencoder; the defaults are Stable Diffusion's. See ``AutoencoderKL`` for their meaning."""

    channels: int = 3
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent: int = 4
    groups: int = 32

    @property
    def factor(self) -> int:
        """By which an image's sides are divided."""
        return 2 ** (len(self.widths) - 1)


class Functions(NamedTuple):
    """An autoencoder as pure functions of its parameters.

    Attributes:
      init: key -> params.
      encode: (params, images float32 ``(B, H, W, channels)`` in [-1, 1]) -> ``Posterior``.
      decode: (params, latents ``(B, h, w, C)``) -> images float32.
    """

    init: Callable[..., Params]
    encode: Callable[[Params, Any], Posterior]
    decode: Callable[[Params, Any], Array]


@lru_cache(maxsize=16)
def functions(sizes: Sizes) -> Functions:
    """Returns the pure functions, jitted, of an autoencoder of these sizes."""
    channels, *rest = sizes
    settings = dict(zip(Sizes._fields[1:], rest, strict=True))
    shape = (sizes.factor, sizes.factor, channels)  # convolutions take any sides
    pure = as_pure(lambda rngs: AutoencoderKL(shape, {}, **settings, rngs=rngs))  # pyright: ignore[reportArgumentType]
    return Functions(pure.init, jax.jit(pure.method("encode")), jax.jit(pure.method("decode")))


class Autoencoder(NamedTuple):
    """An autoencoder with its weights.

    Attributes:
      sizes: of the network.
      params: its parameters.
    """

    sizes: Sizes
    params: Params

    def encode(self, images: np.ndarray, batch: int = 16) -> Posterior:
        """Returns the law of the latents of images, float32 NumPy ``(N, h, w, C)``.

        Args:
          images: uint8 ``(N, H, W, channels)``.
          batch: images at a time, shared by the devices of this process.

        Raises:
          UserError: for images of another shape.
        """
        self.check(images.shape[1:])
        run = functions(self.sizes).encode
        parts = list(_in_batches(lambda params, x: run(params, to_floats(x)), self.params, images, batch))
        return Posterior(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))

    def decode(self, z: np.ndarray, *, tile: int = 0, batch: int = 16) -> np.ndarray:
        """Returns the images of latents, uint8 ``(N, H, W, channels)``.

        Args:
          z: latents ``(N, h, w, C)`` in the autoencoder's own units, NumPy.
          tile: side of the tiles, in latents, in which an image is decoded where memory is short: 64, say; they
            overlap by a quarter. 0 decodes whole images. As attention and normalisation see a tile instead of the
            image, colours may shift a little from tile to tile; they are blended.
          batch: images at a time, shared by the devices of this process.

        Raises:
          UserError: for latents of another shape, or a tile below 4.
        """
        latent, factor = self.sizes.latent, self.sizes.factor
        if z.ndim != 4 or z.shape[-1] != latent:
            raise UserError(f"this autoencoder decodes latents (N, h, w, {latent}); got {z.shape}")
        check_tile(tile)
        whole = functions(self.sizes).decode

        def in_tiles(params: Params, part: Any) -> np.ndarray:
            return tiled(lambda x: np.asarray(whole(params, x)), part, factor, tile, tile // 4)

        run = whole if not tile or tile >= max(z.shape[1:3]) else in_tiles
        images = np.empty((len(z), factor * z.shape[1], factor * z.shape[2], self.sizes.channels), np.uint8)
        done = 0
        for floats in _in_batches(run, self.params, z, batch):  # all of them as floats would need four times the room
            images[done : done + len(floats)] = to_pixels(floats)
            done += len(floats)
        return images

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ``UserError`` unless it takes images of this shape (H, W, channels)."""
        factor, channels = self.sizes.factor, self.sizes.channels
        if len(shape) != 3 or shape[-1] != channels or any(side % factor for side in shape[:-1]):
            raise UserError(
                f"this autoencoder takes images (H, W, {channels}) with sides divisible by {factor}; got {shape}: "
                "resize or crop them"
            )

    @property
    def identity(self) -> str:
        """A hash of its sizes and weights, eight hexadecimal digits."""
        return f"{json_hash([self.sizes, leaf_hashes(self.params)]):08x}"


class Decoder(NamedTuple):
    """What makes images of latents.

    Attributes:
      autoencoder: whose decoder it is.
      tile: as for ``Autoencoder.decode``.
    """

    autoencoder: Autoencoder
    tile: int = 0

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Latents ``(..., h, w, C)`` -> images uint8 ``(..., H, W, channels)``."""
        images = self.autoencoder.decode(z.reshape(-1, *z.shape[-3:]), tile=self.tile)
        return images.reshape(*z.shape[:-3], *images.shape[1:])


FILE = "autoencoder.safetensors"  # beside encoded data, and in the folder of a run on them


def load_decoder(folder: Path, examples: Examples, tile: int = 0) -> Decoder | None:
    """Returns the decoder of latents, from the file beside their data or their run; None for other examples.

    Raises:
      UserError: if the file is not there, or is another autoencoder than the one that made the latents, or for a tile
        below 4.
    """
    check_tile(tile)
    if not isinstance(examples, Latents):
        return None
    try:
        found = load_vae(folder / FILE)
    except UserError as error:
        raise UserError(f"the latents in {folder} need their autoencoder: {error}") from error
    if found.identity != examples.autoencoder:
        raise UserError(
            f"{folder / FILE} is the autoencoder {found.identity}, and the latents are of {examples.autoencoder}: copy "
            "that file from the folder of the data"
        )
    return Decoder(found, tile)


def check_tile(tile: int) -> None:
    """Raises ``UserError`` unless latents can be decoded in tiles of this side."""
    if tile and tile < 4:
        raise UserError(f"a tile has a side of 4 latents or more, or 0 for none; got {tile}")


def load_vae(path: str | os.PathLike[str], groups: int | None = None) -> Autoencoder:
    """Returns the autoencoder in a file: one of Stable Diffusion, or one that ``save_vae`` wrote.

    Its sizes are read from the shapes of its arrays.

    Args:
      path: a safetensors or PyTorch file, see ``flowguide.weights.read``; nothing in it is executed.
      groups: of the group normalisation, which no shape tells; by default what ``save_vae`` noted, or 32.

    Raises:
      UserError: if the file cannot be read, does not hold exactly an autoencoder, or its weights are not finite.
    """
    arrays = dict(_modern(weights.read(path)))
    sizes = _sizes(arrays, _stated_groups(path) if groups is None else groups, path)
    try:
        expected = shapes(sizes)
    except ValueError as error:
        raise UserError(f"{path}: {error}; load_vae(path, groups=...) takes another number of them") from error
    weights.check(arrays, expected, f"an autoencoder of the widths {sizes.widths}")
    bad = [key for key, a in arrays.items() if not np.isfinite(np.asarray(a, np.float32)).all()]
    if bad:
        raise UserError(f"{path}: {bad[0]} is not finite: take another file")
    return Autoencoder(sizes, from_arrays(arrays))


def save_vae(autoencoder: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Writes an autoencoder as a safetensors file with diffusers' keys, float32; ``load_vae`` reads it."""
    weights.write(path, to_arrays(autoencoder.params), {"groups": str(autoencoder.sizes.groups)})


def to_arrays(params: Params) -> dict[str, np.ndarray]:
    """Returns parameters by diffusers' keys, in PyTorch's layout."""
    return {key: np.asarray(_to_torch(leaf), np.float32) for key, leaf in _flat(params)}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Params:
    """Returns parameters from arrays by diffusers' keys, in PyTorch's layout."""
    params: Params = {}
    for key, a in arrays.items():
        *parents, leaf = key.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        name = "bias" if leaf == "bias" else "scale" if a.ndim == 1 else "kernel"
        node[name] = jnp.asarray(_to_flax(np.asarray(a, np.float32)))
    return params


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns the shapes in an autoencoder's file by key, in PyTorch's layout.

    Raises:
      ValueError: for sizes that cannot be.
    """
    abstract = jax.eval_shape(functions(sizes).init, jax.random.key(0))
    return {key: jax.eval_shape(_to_torch, leaf).shape for key, leaf in _flat(abstract)}


def tiled(
    decode: Callable[[np.ndarray], np.ndarray], z: np.ndarray, factor: int, tile: int, overlap: int
) -> np.ndarray:
    """Returns the images of latents ``(N, h, w, C)``, decoded in overlapping tiles that are blended.

    A decoder that looks at most ``overlap``/4 latents far gives the same as in one piece.

    Args:
      decode: latents -> images float32, with sides ``factor`` times as long.
      z: latents.
      factor: of the sides.
      tile: side of a tile, in latents.
      overlap: least overlap of neighbours, in latents, from 1 to less than ``tile``.
    """
    rows, columns = (blending(side, min(tile, side), overlap, factor) for side in z.shape[1:3])
    image: np.ndarray | None = None
    for top, of_row in zip(*rows, strict=True):
        for left, of_column in zip(*columns, strict=True):
            height, width = len(of_row) // factor, len(of_column) // factor
            part = decode(z[:, top : top + height, left : left + width])
            if image is None:
                sides = [factor * side for side in z.shape[1:3]]
                image = np.zeros((len(z), *sides, part.shape[-1]), np.float32)
            y, x = factor * top, factor * left
            weight = of_row[:, None, None] * of_column[:, None]
            image[:, y : y + len(of_row), x : x + len(of_column)] += weight * part
    assert image is not None
    return image


def blending(size: int, tile: int, overlap: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where tiles start along a side ``(n,)``, in latents, and their pixels' weights ``(n, tile·factor)``.

    At every pixel the weights of all tiles add up to 1. Next to a cut a quarter of the overlap has weight 0, because
    there the decoder misses what lies beyond; over the next half the weight rises linearly.
    """
    count = max(1, math.ceil((size - overlap) / (tile - overlap))) if tile < size else 1
    starts = np.round(np.linspace(0, size - tile, count)).astype(int)
    place = np.arange(tile * factor) + 0.5
    weights = np.ones((count, tile * factor), np.float64)
    for distance, cut in ((place, starts > 0), (place[::-1], starts < size - tile)):
        rise = np.clip((distance / (overlap * factor) - 0.25) / 0.5, 0, 1)
        weights[cut] *= rise
    total = np.zeros(size * factor)
    for start, own in zip(starts * factor, weights, strict=True):
        total[start : start + len(own)] += own
    parts = [own / total[start : start + len(own)] for start, own in zip(starts * factor, weights, strict=True)]
    return starts, np.asarray(parts, np.float32)


def _in_batches(run: Callable[[Params, Any], Any], params: Params, x: np.ndarray, batch: int) -> Iterator[Any]:
    """Yields what ``run`` gives for each part of x, as NumPy; all parts share one compiled shape."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    batch = -(-min(batch, max(len(x), 1)) // mesh.size) * mesh.size
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        whole = np.concatenate([part, np.broadcast_to(part[-1:], (batch - len(part), *part.shape[1:]))])
        found = jax.device_get(run(params, jax.device_put(whole, NamedSharding(mesh, PartitionSpec("data")))))
        kept = len(part)
        yield jax.tree.map(lambda a, kept=kept: a[:kept], found)


def _stated_groups(path: str | os.PathLike[str]) -> int:
    stated = weights.metadata(path).get("groups", "32")
    if not stated.isdecimal() or len(stated) > 6:
        raise UserError(
            f"{path} states groups={shown(stated, 20)}, expected a number: load_vae(path, groups=...) says which"
        )
    return int(stated)


def _sizes(arrays: Mapping[str, np.ndarray], groups: int, path: Any) -> Sizes:
    """Returns the sizes that the shapes tell."""

    def count(pattern: str) -> int:
        return next(i for i in range(len(arrays) + 1) if pattern.format(i) not in arrays)

    levels = count("encoder.down_blocks.{}.resnets.0.conv1.weight")
    blocks = count("encoder.down_blocks.0.resnets.{}.conv1.weight")
    try:
        widths = tuple(len(arrays[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"]) for i in range(levels))
        channels, latent = len(arrays["decoder.conv_out.weight"]), len(arrays["post_quant_conv.weight"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no autoencoder with diffusers' keys ({error}): convert it first") from error
    if not levels or not blocks:
        raise UserError(f"{path} holds no autoencoder with diffusers' keys (no encoder.down_blocks): convert it first")
    return Sizes(channels, widths, blocks, latent, groups)


def _modern(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields arrays under today's names of the attention's layers, whose old form are convolutions of one pixel."""
    for key, a in arrays.items():
        before, found, after = key.partition(".attentions.0.")
        if found:
            layer, _, leaf = after.rpartition(".")
            key = f"{before}{found}{_OLD.get(layer, layer)}.{leaf}"
            a = a[:, :, 0, 0] if a.shape[2:] == (1, 1) else a
        yield key, a


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields parameters by diffusers' keys, in Flax's layout."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + ("bias" if name == "bias" else "weight"), value


def _to_torch(a: Any) -> Any:
    """Converts a leaf from Flax's (height, width, in, out) or (in, out) to (out, in, height, width) or (out, in)."""
    return a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T


def _to_flax(a: np.ndarray) -> np.ndarray:
    """Undoes ``_to_torch``."""
    return a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T
