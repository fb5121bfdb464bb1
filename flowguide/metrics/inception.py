"""Inception v3 as published FIDs use it: the TensorFlow graph of 2015-12-05, which has 1,008 classes.

```python
network = load_inception("pt_inception-2015-12-05-6726825d.pth")
real, ours = (activations(network, images) for images in (data, samples))
frechet_distance(moments([real.pool]), moments([ours.pool]))  # FID
frechet_distance(moments([real.spatial]), moments([ours.spatial]))  # sFID
inception_score(ours.probabilities)
```

The graph differs from the paper (Szegedy et al. 2015, arXiv 1512.00567) and from torchvision's network: its average
pools leave out the padding, and the last block pools by the maximum. FIDs of other Inceptions do not compare.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowguide import weights
from flowguide.errors import UserError
from flowguide.metrics.judge import as_images
from flowguide.metrics.resizing import resize
from flowguide.typing import Array

CLASSES, FEATURES, CHANNELS_OF_SFID = 1008, 2048, 7
LEAST = 75  # pixels a side: with fewer the last blocks have nothing left
EPSILON = 1e-3  # of the batch normalisation


class Conv(NamedTuple):
    """A convolution without bias, batch normalisation with running statistics, and ReLU.

    Attributes:
      name: in the weights' file.
      outputs: channels.
      kernel: (height, width).
      stride: of both sides.
      padding: "SAME" or "VALID".
    """

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


# A branch is a sequence of steps: convolutions, pools, and forks, whose branches are concatenated.
Step: TypeAlias = "Conv | Callable[[Array], Array] | list[Branch]"
Branch: TypeAlias = "Sequence[Step]"

_shrink = partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2), padding="VALID")
_average = partial(nnx.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
_maximum = partial(nnx.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME")


def _block_a(pool: int) -> list[Branch]:
    return [
        [Conv("branch1x1", 64)],
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))],
        [_average, Conv("branch_pool", pool)],
    ]


def _block_b() -> list[Branch]:
    last = Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID")
    return [
        [Conv("branch3x3", 384, (3, 3), 2, "VALID")],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), last],
        [_shrink],
    ]


def _block_c(inner: int) -> list[Branch]:
    across, down = (1, 7), (7, 1)
    dbl = [Conv("branch7x7dbl_1", inner)]
    dbl += [Conv(f"branch7x7dbl_{i}", inner, kernel) for i, kernel in ((2, down), (3, across), (4, down))]
    return [
        [Conv("branch1x1", 192)],
        [Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, across), Conv("branch7x7_3", 192, down)],
        [*dbl, Conv("branch7x7dbl_5", 192, across)],
        [_average, Conv("branch_pool", 192)],
    ]


def _block_d() -> list[Branch]:
    name = "branch7x7x3"
    last = Conv(f"{name}_4", 192, (3, 3), 2, "VALID")
    return [
        [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")],
        [Conv(f"{name}_1", 192), Conv(f"{name}_2", 192, (1, 7)), Conv(f"{name}_3", 192, (7, 1)), last],
        [_shrink],
    ]


def _block_e(pool: Callable[[Array], Array]) -> list[Branch]:
    def cross(name: str) -> list[Branch]:
        return [[Conv(f"{name}a", 384, (1, 3))], [Conv(f"{name}b", 384, (3, 1))]]

    return [
        [Conv("branch1x1", 320)],
        [Conv("branch3x3_1", 384), cross("branch3x3_2")],
        [Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), cross("branch3x3dbl_3")],
        [pool, Conv("branch_pool", 192)],
    ]


STEM: Branch = [
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    _shrink,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    _shrink,
]
BLOCKS: dict[str, list[Branch]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e(_average),
    "Mixed_7c": _block_e(_maximum),
}
SPATIAL = "Mixed_6d"  # the graph's mixed_6, whose first channels are those of its 1×1 branch, mixed_6/conv


class Activations(NamedTuple):
    """What the network says about images; of ``activations`` float32 NumPy.

    Attributes:
      pool: features of FID, KID, precision and recall ``(N, 2048)``.
      spatial: features of sFID (Nash et al. 2021, arXiv 2103.03841), the first 7 channels of the graph's
        ``mixed_6/conv``, in the order (row, column, channel): ``(N, 17·17·7)`` for images of side 299.
      logits: of the classes ``(N, 1008)``.
      logits_unbiased: the same without the last layer's bias; Inception scores are computed from these.
    """

    pool: Any
    spatial: Any
    logits: Any
    logits_unbiased: Any

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of ``logits_unbiased``, for ``flowguide.metrics.inception_score``."""
        return np.asarray(jax.nn.softmax(self.logits_unbiased))


class InceptionV3(nnx.Module):
    """The network, with batch normalisation folded into the convolutions. All computation is in float32."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Builds the network from the state dict of ``pt_inception-2015-12-05``.

        Args:
          arrays: by PyTorch's keys, ``shapes()``; ``*.num_batches_tracked`` are ignored.

        Raises:
          UserError: if arrays are missing, surplus or misshapen.
        """
        used = {key: a for key, a in arrays.items() if not key.endswith(".num_batches_tracked")}
        weights.check(used, shapes(), "the Inception network pt_inception-2015-12-05")
        kernels, biases = {}, {}
        for name, _, _ in _convolutions():
            scale, shift, mean, variance, kernel = (
                np.asarray(used[f"{name}.{leaf}"], np.float64)
                for leaf in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "conv.weight")
            )
            scale = scale / np.sqrt(variance + EPSILON)
            kernels[name] = nnx.Param(_float32((kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)))
            biases[name] = nnx.Param(_float32(shift - mean * scale))
        self.kernels, self.biases = nnx.data(kernels), nnx.data(biases)
        self.head = nnx.Param(_float32(np.asarray(used["fc.weight"]).T))
        self.head_bias = nnx.Param(_float32(used["fc.bias"]))

    def __call__(self, x: Array) -> Activations:
        """Images of ``flowguide.metrics.resizing.resize``, float32 ``(B, H, W, 3)``, H, W ≥ 75 -> activations.

        Raises:
          UserError: for smaller images, or another number of channels.
        """
        if x.ndim != 4 or x.shape[3] != 3 or min(x.shape[1:3]) < LEAST:
            raise UserError(f"Inception takes images (B, H, W, 3) with H, W ≥ {LEAST}; got {x.shape}: resize them")
        x = self._run(STEM, x, "")
        spatial = x
        for name, block in BLOCKS.items():
            x = self._run([block], x, f"{name}.")
            if name == SPATIAL:
                spatial = x[..., :CHANNELS_OF_SFID].reshape(len(x), -1)
        pool = x.mean((1, 2))
        logits = jnp.matmul(pool, self.head[...], precision=jax.lax.Precision.HIGHEST)
        return Activations(pool, spatial, logits + self.head_bias[...], logits)

    def _run(self, branch: Branch, x: Array, prefix: str) -> Array:
        for step in branch:
            if isinstance(step, Conv):
                x = self._convolve(step, x, prefix + step.name)
            elif isinstance(step, list):
                x = jnp.concatenate([self._run(part, x, prefix) for part in step], -1)
            else:
                x = step(x)
        return x

    def _convolve(self, conv: Conv, x: Array, name: str) -> Array:
        x = jax.lax.conv_general_dilated(
            x,
            self.kernels[name][...],
            (conv.stride, conv.stride),
            conv.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,  # TF32 and bfloat16 move features by more than 1e-4
        )
        return jax.nn.relu(x + self.biases[name][...])


def load_inception(path: str | os.PathLike[str]) -> InceptionV3:
    """Returns the network with the weights of a file, such as pytorch-fid's ``pt_inception-2015-12-05-6726825d.pth``.

    Args:
      path: a PyTorch or safetensors file, see ``flowguide.weights.read``; nothing in it is executed.

    Raises:
      UserError: if the file cannot be read, or does not hold exactly this network.
    """
    return InceptionV3(weights.read(path))


def activations(network: InceptionV3, images: Any, *, resize: str = "adm", batch: int = 64) -> Activations:
    """Returns the activations of any number of images, float32 NumPy, computed in batches of one compiled shape.

    Args:
      network: of ``load_inception``.
      images: uint8 ``(N, H, W, 3)`` or ``(N, H, W, 1)``.
      resize: the package whose resizing to follow, see :data:`flowguide.metrics.resizing.CONVENTIONS`.
      batch: images at a time.

    Raises:
      ValueError: if images are not as above.
      UserError: for an unknown convention.
    """
    pixels = as_images(images)
    graph, state = nnx.split(network)

    def parts() -> Iterator[Activations]:
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch]
            whole = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0), (0, 0)))
            computed = jax.device_get(_apply(graph, state, whole, resize))
            yield Activations(*(a[: len(part)] for a in computed))

    return Activations(*map(np.concatenate, zip(*parts(), strict=True)))


@partial(jax.jit, static_argnums=(0, 3))
def _apply(graph: Any, state: Any, images: Array, convention: str) -> Activations:
    return nnx.merge(graph, state)(resize(images, convention))


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the state dict by key, in PyTorch's layout, without ``num_batches_tracked``."""
    found: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}
    for name, inputs, conv in _convolutions():
        found[f"{name}.conv.weight"] = (conv.outputs, inputs, *conv.kernel)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{leaf}"] = (conv.outputs,)
    return found


def _convolutions() -> list[tuple[str, int, Conv]]:
    """Returns (name in the file, input channels, convolution) of all convolutions."""
    found: list[tuple[str, int, Conv]] = []

    def walk(branch: Branch, inputs: int, prefix: str) -> int:
        for step in branch:
            if isinstance(step, Conv):
                found.append((prefix + step.name, inputs, step))
                inputs = step.outputs
            elif isinstance(step, list):
                inputs = sum([walk(part, inputs, prefix) for part in step])
        return inputs

    channels = walk(STEM, 3, "")
    for name, block in BLOCKS.items():
        channels = walk([block], channels, f"{name}.")
    return found


def _float32(a: Any) -> Array:
    return jnp.asarray(np.asarray(a, np.float32))  # JAX would compile a conversion for every shape
