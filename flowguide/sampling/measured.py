"""What was measured of the examples, y = A·x + noise; samples are then drawn given y, by any model.

```python
model.sample("cat", num=16, measured=Inpaint("photo.png"))
```

Values, noise and maps are in the units of the data. The program that samples converts them to what the network sees:
x_m = a·x + b in each channel, the derivative and the zero of ``Examples.to_model``.

Each kind of measurement has two methods. ``checked`` raises UserError for a y that does not fit the data; ``seen``
returns y, A and the noise as the network sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.errors import DataError, UserError, one_line
from flowguide.guidance import Measurement, inverse
from flowguide.schema import DataInfo, Examples, Known, Latents, Records, Vectors, files, parse_row
from flowguide.schema.arrays import as_array
from flowguide.typing import Array

# y, A and the standard deviation of the noise, as the network sees them.
Seen: TypeAlias = tuple[Measurement, Array, Array]


class Inpaint(NamedTuple):
    """Examples that are known in part. Where there is no noise, samples have the known numbers exactly.

    Attributes:
      y: ``(*D)`` for all samples or ``(num, *D)``, NaN where unknown. Or text: an image file, transparent where
        unknown; an .npy file; or the known columns of a table, "alcohol:13.2; ash:2.4", which may also be a dict.
      noise: standard deviation of the noise in y, 0 or more: a number, or one a channel (a column of a table).
      variance: v, that of the numbers that the network sees around their mean; by default ``Examples.variance``.
    """

    y: Any
    noise: Any = 0.0
    variance: Any = None

    def checked(self, info: DataInfo) -> Inpaint:
        _check_shape("inpaint", self.y, info.shape)
        unknown = np.isnan(self.y)
        _check_finite("inpaint", self.y[~unknown])
        if unknown.reshape(len(unknown), -1).all(1).any():
            raise UserError("inpaint needs numbers that are known; got a y that is NaN or transparent everywhere")
        exact = ~unknown & (_each_channel(self.noise, self.y) == 0)
        if exact.all():
            raise UserError(
                "nothing is left to inpaint: make pixels transparent or numbers NaN, or say how noisy y is, to denoise"
            )
        least, most = _range(info.examples)
        if (outside := self.y[exact & ((self.y < least) | (self.y > most))]).size:
            raise UserError(f"inpaint without noise takes numbers from {least} to {most}; got {outside[0]:g}")
        return self

    def seen(self, examples: Examples) -> Seen:
        known = ~jnp.isnan(self.y)
        y = jnp.where(known, examples.to_model(self.y), 0.0)
        return inverse.mask(known), y, _noise_seen(self.noise, y, examples)

    def kept(self, x: np.ndarray) -> np.ndarray:
        """Returns samples with the known numbers as given, where they are known without noise."""
        exact = ~np.isnan(self.y) & (_each_channel(self.noise, self.y) == 0)
        y = np.rint(self.y) if np.issubdtype(x.dtype, np.integer) else self.y
        return np.where(exact, y, x).astype(x.dtype)


class Upsample(NamedTuple):
    """Small examples: means over blocks of equal size.

    Attributes:
      y: ``(*sides, C)`` for all samples or ``(num, *sides, C)``, or the name of a file; the sides of the samples are
        multiples of its sides.
      noise: as of ``Inpaint``; by default that of rounding to whole numbers, 1/√12, for images.
      variance: as of ``Inpaint``.
    """

    y: Any
    noise: Any = None
    variance: Any = None

    def checked(self, info: DataInfo) -> Upsample:
        _check_axes("upsample", info)
        small, large = self.y.shape[1:], info.shape
        fits = len(small) == len(large) and small[-1] == large[-1] and 0 not in small
        if not fits or any(n % k for n, k in zip(large, small, strict=True)) or small == large:
            raise UserError(
                f"upsample takes an array whose sides divide those of {large}, with {large[-1]} channels; got {small}: "
                "crop or resize it"
            )
        _check_finite("upsample", self.y)
        return self

    def seen(self, examples: Examples) -> Seen:
        small, large = self.y.shape[1:-1], examples.shape[:-1]
        factors = tuple(n // k for n, k in zip(large, small, strict=True))
        y = examples.to_model(self.y)
        return inverse.downsample(factors), y, _noise_seen(self.noise, y, examples)


class Deblur(NamedTuple):
    """Blurred examples: circular convolutions with a kernel along each axis but the channels.

    Attributes:
      y: ``(*D)`` for all samples or ``(num, *D)``, or the name of a file.
      sigma: of a Gaussian kernel, in pixels.
      kernel: instead of sigma, any kernel, real, with an axis for each of those of x; see ``inverse.blur``.
      noise: as of ``Upsample``.
      variance: as of ``Inpaint``.
    """

    y: Any
    sigma: float | None = None
    kernel: Any = None
    noise: Any = None
    variance: Any = None

    def checked(self, info: DataInfo) -> Deblur:
        _check_axes("deblur", info)
        _check_shape("deblur", self.y, info.shape)
        _check_finite("deblur", self.y)
        if (self.sigma is None) == (self.kernel is None):
            raise UserError("deblur needs to know the blur: give sigma, in pixels, or a kernel, and not both")
        sides = info.shape[:-1]
        if self.sigma is not None and not 0 < self.sigma < np.inf:
            raise UserError(f"the sigma of a blur is positive, in pixels; got {self.sigma}")
        kernel = inverse.gaussian(self.sigma, sides) if self.sigma is not None else np.asarray(self.kernel)
        if kernel.ndim != len(sides) or any(k > n for k, n in zip(kernel.shape, sides, strict=True)):
            raise UserError(f"the kernel of a blur has {len(sides)} axes, at most {sides}; got shape {kernel.shape}")
        _check_finite("deblur", kernel)
        return self._replace(sigma=None, kernel=kernel.astype(np.float32)[None])

    def seen(self, examples: Examples) -> Seen:
        kernel = self.kernel[0]  # one for all
        _, b = _affine(examples)
        y = examples.to_model(self.y) + (jnp.sum(kernel) - 1) * b  # A(a·x + b) = a·A·x + b·Σk
        return inverse.blur(kernel), y, _noise_seen(self.noise, y, examples)


class LinearMap(NamedTuple):
    """Any linear map of examples.

    Attributes:
      y: its values ``(*M)`` for all samples or ``(num, *M)``.
      function: x ``(B, *D)``, in the units of the data -> ``(B, *M)`` for any B, linear, each value from its own sample
        only. Define it once: every function object compiles a program of its own.
      noise: standard deviation of the noise in y, a number.
      variance: as of ``Inpaint``.
    """

    y: Any
    function: Callable[[Array], Array]
    noise: Any = 0.0
    variance: Any = None

    def checked(self, info: DataInfo) -> LinearMap:
        _check_shape("a linear map", self.y, _at_zero(self.function, info.shape).shape[1:])
        _check_finite("a linear map", self.y)
        return self._replace(function=jax.tree_util.Partial(self.function))

    def seen(self, examples: Examples) -> Seen:
        a, b = _affine(examples)
        measurement = inverse.linear(lambda x: self.function(x / a), examples.shape)
        return measurement, self.y - self.function((-b / a)[None]), self.noise.reshape(-1)


Measured: TypeAlias = Inpaint | Upsample | Deblur | LinearMap


def read_measured(measured: Measured, info: DataInfo) -> Measured:
    """Returns what was measured as arrays with a batch axis of 1, or of ``num`` where each sample has its own.

    It reads files and checks everything; y is float32 ``(n, *M)``, the noise ``(1, C)``, the variance ``(1,)``.

    Raises:
      UserError: for what cannot be measured of such examples.
    """
    if not isinstance(measured, Measured):
        raise UserError(
            "measured takes Inpaint(y), Upsample(y), Deblur(y, sigma=...) or LinearMap(y, function); "
            f"got {one_line(repr(measured), 100)}"
        )
    what, shape = type(measured).__name__.lower(), info.shape
    if not shape:
        raise UserError(f"what is measured is an array, and {info.name} has single numbers: give them an axis")
    if isinstance(info.examples, Records):
        raise UserError(
            f"what is measured are numbers, and {info.name} has classes in its examples: train with known=True, and "
            "give what you know as the condition known"
        )
    if isinstance(info.examples, Latents):
        raise UserError(
            f"{what} measures what the network sees, and that are latents of {info.name}: use a model of the images"
        )
    y, axes = _numbers(what, measured.y, info.examples), len(shape)
    if isinstance(measured, LinearMap):
        axes = _at_zero(measured.function, shape).ndim - 1
    elif shape[-1:] == (1,) and y.shape[-1:] != (1,):
        y = y[..., None]  # pictures of one channel, (H, W)
    y = y[None] if y.ndim == axes else y
    channels = 1 if isinstance(measured, LinearMap) else shape[-1]
    noise = _noise(what, measured.noise, channels, info.examples)
    variance = _floats(info.examples.variance if measured.variance is None else measured.variance)
    if variance.shape != () or not 0 < variance < np.inf:
        got = one_line(repr(measured.variance), 100)
        raise UserError(f"the variance of the data is a positive number, as the network sees them; got {got}")
    return measured._replace(y=y, noise=noise, variance=variance[None]).checked(info)


def for_each(measured: Measured, num: int) -> Measured:
    """Returns what ``read_measured`` returned with an entry for each of ``num`` samples.

    Raises:
      UserError: if y has another number of them.
    """
    if len(measured.y) not in (1, num):
        raise UserError(f"got {len(measured.y)} measured values for {num} samples: give one for all, or one for each")
    return jax.tree.map(lambda a: np.broadcast_to(a, (num, *a.shape[1:])), measured)


def _numbers(what: str, y: Any, examples: Examples) -> np.ndarray:
    if isinstance(y, Mapping):
        y = "; ".join(f"{name}:{number}" for name, number in y.items())
    if isinstance(y, str | Path):
        y = _from_text(what, str(y), examples)
    try:
        found = as_array(what, y)
    except DataError:
        found = np.asarray(None)
    if not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
        raise UserError(f"{what} takes an array of numbers, or the name of a file; got {one_line(repr(y), 100)}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        return found.astype(np.float32)


def _from_text(what: str, text: str, examples: Examples) -> np.ndarray:
    array = text.endswith(".npy")
    if len(examples.shape) == 1 and not array:
        return parse_row(what, text, Known(examples))
    values, opacity = files.read_any(what, text, Vectors(examples.shape) if array else examples)
    return values if opacity is None else np.where(opacity == 0, np.nan, values.astype(np.float32))


def _at_zero(function: Callable[[Array], Array], shape: tuple[int, ...]) -> np.ndarray:
    """Returns zeros ``(1, *M)``; raises UserError unless the function is linear as far as one can tell."""
    try:
        inverse.linear(function, shape)
        found = np.asarray(function(jnp.zeros((1, *shape))))
    except Exception as error:  # the function is the user's: it may raise anything
        raise UserError(f"no linear map of x (B, {', '.join(map(str, shape))}): {one_line(error)}") from error
    if np.any(found):
        raise UserError(f"a linear map is 0 at 0; got {found[found != 0][0]:g}: subtract that, from y too")
    return found


def _noise(what: str, noise: Any, channels: int, examples: Examples) -> np.ndarray:
    if noise is None:
        noise = 12**-0.5 if np.issubdtype(examples.dtype, np.integer) else 0.0
    found = _floats(noise)
    if found.shape not in ((), (channels,)) or not ((found >= 0) & (found < np.inf)).all():
        each = f", or one for each of {channels} channels" if channels > 1 else ""
        got = one_line(repr(noise), 100)
        raise UserError(f"the noise of {what} is a standard deviation of 0 or more{each}; got {got}")
    return np.broadcast_to(found, (1, channels))


def _floats(numbers: Any) -> np.ndarray:
    """Returns an array; NaN for what is no number."""
    try:
        return np.asarray(numbers, np.float32)
    except (TypeError, ValueError):
        return np.full((), np.nan, np.float32)


def _affine(examples: Examples) -> tuple[Array, Array]:
    """Returns a and b ``(*D)`` of ``examples.to_model``, x -> a·x + b."""
    zeros = jnp.zeros(examples.shape)
    b, a = jax.jvp(examples.to_model, (zeros,), (jnp.ones_like(zeros),))
    return a, b


def _noise_seen(noise: Array, y: Array, examples: Examples) -> Array:
    """Returns the noise ``(B, 1, ..., C)`` as the network sees it."""
    a, _ = _affine(examples)
    return _each_channel(noise * jnp.abs(a[(0,) * (a.ndim - 1)]), y)


def _each_channel(noise: Any, y: Any) -> Any:
    """Reshapes a noise ``(B, C)`` to broadcast against y ``(B, ..., C)``."""
    return noise.reshape(noise.shape[0], *(1,) * (y.ndim - 2), noise.shape[1])


def _range(examples: Examples) -> tuple[float, float]:
    """Returns the least and the largest number that an example may have."""
    if np.issubdtype(examples.dtype, np.integer):
        return int(np.iinfo(examples.dtype).min), int(np.iinfo(examples.dtype).max)
    return -np.inf, np.inf


def _check_shape(what: str, y: np.ndarray, shape: tuple[int, ...]) -> None:
    if y.shape[1:] != tuple(shape) or y.shape[0] == 0:
        got = y.shape[1:] if y.shape[:1] == (1,) else y.shape
        raise UserError(f"{what} takes an array {shape}, or one for each sample; got {got}: crop or resize it")


def _check_axes(what: str, info: DataInfo) -> None:
    if len(info.shape) < 2:
        raise UserError(f"{what} needs examples with axes beside the channels; {info.name} has shape {info.shape}")


def _check_finite(what: str, numbers: np.ndarray) -> None:
    if not np.isfinite(numbers).all():
        raise UserError(f"{what} takes finite numbers; got {numbers[~np.isfinite(numbers)][0]}, or a transparent pixel")
