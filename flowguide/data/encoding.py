"""Encodes images: writes the latents of a data set as a prepared TFDS set, with their autoencoder beside them.

It first writes the moments in parts, so that a killed encoding resumes. From all of them it computes how to standardise
what the network sees. Then it writes the set as an import does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from flowguide import storage
from flowguide.autoencoder import FILE, Autoencoder, save_vae
from flowguide.data import parts
from flowguide.data.builders import OURS
from flowguide.data.dataset import Dataset, open_dataset
from flowguide.data.files import is_path, open_path
from flowguide.data.importing import Import, alone_in, is_written, set_folder, write_set, writing_to
from flowguide.data.preparing import find_builder
from flowguide.errors import DataError, UserError
from flowguide.hashes import json_hash
from flowguide.schema import Aligned, Batch, ClassMap, Images, Latents, info_to_json
from flowguide.schema.examples import as_stored

_SPLITS = ("train", "test")


def encode(
    source: str,
    name: str,
    autoencoder: Autoencoder,
    data_dir: str | Path | None = None,
    *,
    example: Sequence[str] = (),
    fields: Sequence[str] | None = None,
    image_size: int | None = None,
    test_split: str = "test",
    flips: bool = True,
    scale: float | None = None,
    dtype: str = "float32",
    batch: int = 32,
    progress: bool = False,
) -> Import:
    """Writes the latents of images as the prepared set ``name``, with the splits train and test and the same fields.

    Stored are mean and log-variance of each image's latents, and with ``flips`` those of the mirrored image. Call
    it again to resume an encoding that failed or was killed. It needs room for the latents twice.

    Args:
      source: name of a prepared set, or a file or folder.
      name: of the new set, lower-case letters, digits and _; none that TFDS knows.
      autoencoder: that encodes.
      data_dir: folder or bucket of prepared sets; by default that of TFDS.
      example: as for ``open_path``.
      fields: as for ``open_path`` and ``open_dataset``.
      image_size: likewise.
      test_split: of a prepared set, what becomes the split test.
      flips: also encode mirrored images, so that training can mirror.
      scale: factor of the latents that the network sees, 0.18215 for Stable Diffusion's; None to standardise each
        channel by the training images.
      dtype: of what is stored, "float32" or "float16".
      batch: images at a time.
      progress: show a progress bar, with the rate and the time that is left.

    Raises:
      DataError: if the data are no images, have conditions beside them, ``name`` is taken, latents are not finite, or
        the set cannot be written.
      UserError: if the images do not suit the autoencoder, or its device has too little memory.
    """
    if dtype not in ("float32", "float16"):
        raise DataError(f"got dtype {dtype!r:.60}, expected float32 or float16")
    if scale is not None and not 0 < scale < np.inf:
        raise DataError(f"got scale {scale}, expected a number above 0")
    folder = set_folder(name, data_dir)
    splits = _opened(source, data_dir, example, fields, image_size, test_split)
    train = splits["train"]
    _check(train, autoencoder)
    moments = {
        "data": [info_to_json(train.info), *([d.version, d.split, d.size] for d in splits.values())],
        "autoencoder": autoencoder.identity,
        "settings": [flips, dtype],
    }
    version = f"encoded-{json_hash({**moments, 'settings': [flips, scale, dtype]}):08x}"
    place = folder.with_name(f"incomplete.encode_{folder.name}")  # TFDS ignores such folders
    if is_written(name, data_dir, version, source, place):
        return Import(find_builder(name, data_dir), False)

    def make(split: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"moments": _encoded(splits[split], rows, autoencoder, flips, dtype, batch)}

    with writing_to(folder, OSError), alone_in(folder.parent):
        parts.compute(place, moments, {split: data.size for split, data in splits.items()}, make, progress=progress)
    mean, deviation = _standard(place, train.size) if scale is None else ((), ())
    channels = autoencoder.sizes.latent
    h, w, _ = train.info.shape
    latents = Latents(
        tuple(train.info.shape),
        (h // autoencoder.sizes.factor, w // autoencoder.sizes.factor, channels),
        autoencoder.identity,
        mean,
        deviation if scale is None else (1 / scale,) * channels,
        flips,
        dtype,
    )
    whole = {split: _dataset(place, split, data, latents, name, version) for split, data in splits.items()}
    with writing_to(folder):
        write_set(name, data_dir, whole, version, progress, lambda folder: save_vae(autoencoder, folder / FILE))
        storage.remove(place)
    return Import(find_builder(name, data_dir), True)


def _opened(
    source: str,
    data_dir: str | Path | None,
    example: Sequence[str],
    fields: Sequence[str] | None,
    image_size: int | None,
    test_split: str,
) -> dict[str, Dataset]:
    if source not in OURS and is_path(source):
        return dict(
            zip(_SPLITS, open_path(source, example, fields, image_size=image_size, memory_limit=0), strict=True)
        )
    if example:
        raise DataError(f"got example={tuple(example)} for the set {source}, expected it only for a file or folder")
    train = open_dataset(source, "train", fields, data_dir, image_size=image_size, memory_limit=0)
    test = open_dataset(source, test_split, train.info.fields, data_dir, image_size=image_size, memory_limit=0)
    return dict(zip(_SPLITS, (train, test), strict=True))


def _check(data: Dataset, autoencoder: Autoencoder) -> None:
    info = data.info
    if not isinstance(info.examples, Images):
        raise DataError(f"got {info.name}, which has {info.examples.kind} of shape {info.shape}, expected images")
    autoencoder.check(tuple(info.shape))
    if beside := [name for name, field in info.fields.items() if isinstance(field, Aligned | ClassMap)]:
        raise DataError(
            f"got the field {beside[0]!r} of {info.name}, which lies beside the image and has no place beside smaller "
            "latents: leave it out, --fields=..."
        )


def _encoded(
    data: Dataset, rows: np.ndarray, autoencoder: Autoencoder, flips: bool, dtype: str, batch: int
) -> np.ndarray:
    """Returns what is stored of images, ``(n, h, w, 2C)``, or ``(n, 2, h, w, 2C)`` with flips."""
    images = data.read(rows).x
    both = [images, images[:, :, ::-1]] if flips else [images]
    try:
        moments = [as_stored(*autoencoder.encode(each, batch), dtype) for each in both]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the device has too little memory to encode {batch} images of {data.info.shape} at a time: lower "
            "--batch_size"
        ) from error
    found = np.stack(moments, axis=1) if flips else moments[0]
    bad = ~np.isfinite(found).reshape(len(found), -1).all(1)
    if bad.any():
        raise DataError(
            f"the latents of image {rows[bad.argmax()]} of {data.split} are not finite as {dtype}: look at the image, "
            "or take float32 or another autoencoder"
        )
    return found


def _standard(place: Path, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the latents' channels: Var z = E[Var(z|image)] + Var[E(z|image)]."""
    count, total, square, inner = 0, 0.0, 0.0, 0.0
    for _, part in parts.read(place, "train", np.arange(size), "moments"):
        mean, log_variance = np.split(part["moments"].astype(np.float64), 2, axis=-1)
        axes = tuple(range(mean.ndim - 1))
        count += mean[..., 0].size
        total, square, inner = (
            total + mean.sum(axes),
            square + (mean**2).sum(axes),
            inner + np.exp(log_variance).sum(axes),
        )
    center = np.asarray(total / count)
    deviation = np.sqrt(np.maximum(square / count - center**2, 0) + inner / count)
    return tuple(center.astype(np.float32).tolist()), tuple(deviation.astype(np.float32).tolist())


def _dataset(place: Path, split: str, data: Dataset, latents: Latents, name: str, version: str) -> Dataset:
    """Returns a split with the moments of the parts in place of its images; it is read in order."""

    def read(rows: np.ndarray) -> Batch:
        x = np.concatenate([part["moments"] for _, part in parts.read(place, split, rows, "moments")])
        return Batch(x, data.read(rows).value)

    return Dataset(data.info._replace(name=name, examples=latents), split, version, data.size, False, read)
