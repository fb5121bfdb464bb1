"""Independent judges of samples: small classifiers trained only on real images.

A judge predicts all attributes of an image at once, to check whether a sample shows what its condition asks for. It is
only as good as its accuracy on held-out real images: report that (``adherence(predict(judge, held_out), labels)``)
with every number from a judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from flowguide.typing import Array, PRNGKey

# name -> (kernel (inputs, outputs), bias (outputs,))
Params = dict[str, tuple[Array, Array]]

COLOURS, CHANNELS, FEATURES = 16, 32, 128  # widths of the per-pixel layer, the convolutions and the hidden layer
GRID = 8  # stride-2 convolutions shrink an image to at most this side
BATCH = 64  # images per training step
CHUNK = 500  # images per call at inference: one compiled shape, whatever the number of samples


class Judge(NamedTuple):
    """A trained judge, for ``predict``, ``probabilities`` and ``features``.

    Attributes:
      params: parameters of the network.
      shape: (H, W, C) of its images.
      classes: number of classes of each attribute, by name.
    """

    params: Params
    shape: tuple[int, ...]
    classes: dict[str, int]


def train_judge(
    images: ArrayLike,
    labels: Mapping[str, ArrayLike],
    num_classes: Mapping[str, int] | None = None,
    *,
    steps: int = 1500,
    learning_rate: float = 3e-3,
    levels: int | None = None,
    shift: int | None = None,
    noise: int = 12,
    seed: int = 0,
) -> Judge:
    """Trains a judge on real images, in seconds on a CPU for images of up to about 28×28.

    It minimises the sum of the heads' cross-entropies with AdamW and a one-cycle learning rate. Batches are drawn with
    replacement and lightly augmented, so that the judge reads what an image shows rather than its exact values:
    samples are never as clean as rendered images.

    Args:
      images: uint8 ``(N, H, W, C)``.
      labels: integers ``(N,)`` from 0, by attribute.
      num_classes: number of classes by attribute; by default the largest label + 1.
      steps: training steps, with batches of 64.
      learning_rate: peak learning rate.
      levels: intensity levels of the input encoding, see ``encode``. By default 16 for colour images, which
        separates close colours, and 2 for grey ones, where more would only invite overfitting.
      shift: maximal random shift of an image in pixels. By default 0 for colour images, because features have fixed
        positions in avatars, and 1 for grey ones.
      noise: maximal amplitude of the uniform noise, in intensities of 256; each image draws its own amplitude.
      seed: seed of the initialisation, the batches and the augmentation.

    Raises:
      ValueError: if shapes, dtypes or label ranges are not as above.
    """
    pixels = as_images(images)
    targets, classes = as_labels(labels, num_classes or {}, len(pixels))
    shape = pixels.shape[1:]
    grey = shape[2] == 1
    levels = (2 if grey else 16) if levels is None else levels
    shift = (1 if grey else 0) if shift is None else shift
    # NumPy draws what can be drawn outside jit: each jax.random call in a jitted program costs compile time.
    rng = np.random.default_rng(seed)
    params = initial(rng, shape, levels, sum(classes.values()))
    rows = rng.integers(0, len(pixels), (steps, BATCH))
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, learning_rate), weight_decay=0.05)

    @jax.jit
    def train(params: Params, pixels: Array, targets: dict[str, Array], rows: Array, keys: PRNGKey) -> Params:
        def step(carry: tuple[Params, optax.OptState], draw: tuple[Array, PRNGKey]) -> tuple[Any, None]:
            params, state = carry
            rows, key = draw
            batch = alter(key, pixels[rows].astype(jnp.int32), noise, shift)
            gradient = jax.grad(loss)(params, batch, {name: y[rows] for name, y in targets.items()}, classes)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), (rows, keys))[0][0]

    keys = jax.random.split(jax.random.key(seed), steps)
    params = train(params, jnp.asarray(pixels), targets, jnp.asarray(rows), keys)
    return Judge(params, shape, classes)


def predict(judge: Judge, images: ArrayLike) -> dict[str, np.ndarray]:
    """Returns the most probable class by attribute, int32 ``(N,)`` each, for images uint8 ``(N, H, W, C)``.

    Raises:
      ValueError: if dtype or shape of the images differ from those the judge was trained on.
    """
    return {name: head.argmax(1).astype(np.int32) for name, head in heads(judge, images).items()}


def probabilities(judge: Judge, images: ArrayLike) -> dict[str, np.ndarray]:
    """Returns the probabilities of the classes by attribute, float32 ``(N, classes)``, for images ``(N, H, W, C)``.

    Raises as ``predict``.
    """
    return {name: np.asarray(jax.nn.softmax(head)) for name, head in heads(judge, images).items()}


def features(judge: Judge, images: ArrayLike) -> np.ndarray:
    """Returns the hidden layer shared by all heads, float32 ``(N, 128)``, for images uint8 ``(N, H, W, C)``.

    Distances between feature sets are comparable only for the same judge. Raises as ``predict``.
    """
    return read(judge, images)[1]


def heads(judge: Judge, images: ArrayLike) -> dict[str, np.ndarray]:
    """Returns the logits by attribute, float32 ``(N, classes)`` each."""
    logits = np.split(read(judge, images)[0], np.cumsum(list(judge.classes.values()))[:-1], axis=1)
    return dict(zip(judge.classes, logits, strict=True))


def read(judge: Judge, images: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and features of any number of images, computed in chunks of one compiled shape."""
    pixels = as_images(images)
    if pixels.shape[1:] != judge.shape:
        raise ValueError(f"this judge was trained on images {judge.shape}; got {pixels.shape[1:]}")
    filled = np.pad(pixels, ((0, -len(pixels) % CHUNK), (0, 0), (0, 0), (0, 0)))
    chunks = np.split(filled.astype(np.int32), len(filled) // CHUNK)
    parts = [jax.device_get(jax.jit(network)(judge.params, chunk)) for chunk in chunks]
    logits, hidden = (np.concatenate(part)[: len(pixels)] for part in zip(*parts, strict=True))
    return logits, hidden


# The network: an encoding of each intensity, a per-pixel layer, 3×3 convolutions, a hidden layer, the heads.


def initial(rng: np.random.Generator, shape: tuple[int, ...], levels: int, outputs: int) -> Params:
    """Draws parameters for images of ``shape`` (H, W, C): kernels N(0, 2/inputs), He et al. 2015, eq. 10; biases 0."""
    height, width, channels = shape
    sizes = {"colour": (channels * levels, COLOURS)}
    inputs = COLOURS
    for i, stride in enumerate(strides(height, width)):
        sizes[f"conv{i}"] = (9 * inputs, CHANNELS)
        height, width, inputs = -(-height // stride), -(-width // stride), CHANNELS
    sizes |= {"hidden": (height * width * inputs, FEATURES), "heads": (FEATURES, outputs)}

    def layer(fan_in: int, fan_out: int) -> tuple[Array, Array]:
        kernel = rng.normal(size=(fan_in, fan_out)) * np.sqrt(2 / fan_in)
        return jnp.asarray(kernel, jnp.float32), jnp.zeros(fan_out)

    return {name: layer(*size) for name, size in sizes.items()}


def network(params: Params, images: Array) -> tuple[Array, Array]:
    """Integer images ``(B, H, W, C)`` in 0..255 -> logits of all heads ``(B, classes)``, features ``(B, 128)``."""
    levels = params["colour"][0].shape[0] // images.shape[-1]
    x = jax.nn.relu(linear(encode(images, levels), *params["colour"]))
    for i, stride in enumerate(strides(*images.shape[1:3])):
        x = jax.nn.relu(linear(patches(x, stride), *params[f"conv{i}"]))
    features = jax.nn.relu(linear(x.reshape(len(x), -1), *params["hidden"]))
    return linear(features, *params["heads"]), features


def strides(height: int, width: int) -> list[int]:
    """Returns the strides of the convolutions: 2 until the image fits ``GRID``, at least one convolution."""
    halvings = 0
    while max(height, width) > GRID << halvings:
        halvings += 1
    return [2] * halvings or [1]


def encode(images: Array, levels: int) -> Array:
    """Integers ``(B, H, W, C)`` -> float32 ``(B, H, W, levels·C)``: triangular bumps at evenly spaced intensities.

    The encoding amplifies faint differences, as between skin and a beard of nearly the same colour; the network learns
    them many times faster than from the intensity itself.
    """
    position = np.linspace(0, levels - 1, 256)[:, None]
    bumps = np.maximum(0, 1 - np.abs(position - np.arange(levels))).astype(np.float32)
    return jnp.asarray(bumps)[images].reshape(*images.shape[:3], -1)


def linear(x: Array, kernel: Array, bias: Array) -> Array:
    """x (..., inputs) -> (..., outputs), as one matrix product."""
    return (x.reshape(-1, x.shape[-1]) @ kernel + bias).reshape(*x.shape[:-1], -1)


def patches(x: Array, stride: int) -> Array:
    """Returns the zero-padded 3×3 patches of ``(B, H, W, C)``, ``(B, ⌈H/stride⌉, ⌈W/stride⌉, 9·C)``.

    A linear map of them is a convolution. On XLA:CPU the gradient of ``lax.conv`` in a scan is tens of times slower.
    """
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(views, -1)


def loss(params: Params, images: Array, targets: Mapping[str, Array], classes: Mapping[str, int]) -> Array:
    """Returns the sum over attributes of the mean cross-entropy."""
    heads = jnp.split(network(params, images)[0], np.cumsum(list(classes.values()))[:-1], axis=1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return jnp.stack([cross_entropy(head, targets[n]).mean() for n, head in zip(classes, heads, strict=True)]).sum()


def alter(key: PRNGKey, images: Array, noise: int, shift: int) -> Array:
    """Augments integer images ``(B, H, W, C)`` with the noise and shift of ``train_judge``; shifts repeat the edges."""
    for_noise, for_amplitude, for_shift = jax.random.split(key, 3)
    batch, *shape = images.shape
    if shift:
        wide = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        corners = jax.random.randint(for_shift, (batch, 2), 0, 2 * shift + 1)
        images = jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), shape))(wide, corners)
    if noise:
        amplitude = jax.random.randint(for_amplitude, (batch, 1, 1, 1), 0, noise + 1)
        bits = jax.random.bits(for_noise, images.shape, jnp.uint8).astype(jnp.int32)
        images = jnp.clip(images + bits * (2 * amplitude + 1) // 256 - amplitude, 0, 255)
    return images


def as_images(images: ArrayLike) -> np.ndarray:
    """Returns images as uint8 ``(N, H, W, C)``, N > 0; raises ValueError for anything else."""
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or not len(pixels):
        raise ValueError(f"images must be uint8 (N, H, W, C) with N > 0; got {pixels.dtype} {pixels.shape}")
    return pixels


def as_labels(
    labels: Mapping[str, ArrayLike], num_classes: Mapping[str, int], count: int
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Returns labels, int32 ``(count,)``, and class counts by attribute; raises ValueError if they do not fit."""
    if not labels:
        raise ValueError("labels must hold at least one attribute; got none")
    targets, classes = {}, {}
    for name, values in labels.items():
        values = np.asarray(values)
        if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"labels of {name!r} must be integers ({count},); got {values.dtype} {values.shape}")
        classes[name] = num_classes.get(name, int(values.max()) + 1)
        if values.min() < 0 or values.max() >= classes[name]:
            raise ValueError(
                f"labels of {name!r} must lie in 0..{classes[name] - 1}; got {values.min()}..{values.max()}"
            )
        targets[name] = values.astype(np.int32)
    return targets, classes
