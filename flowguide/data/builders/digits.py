"""digits: 1,797 real handwritten digits, 8 x 8, as scikit-learn ships them (UCI, CC BY 4.0)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flowguide.data.pixels import encode_png

TRAIN = 1_500  # the rest, 297, is the test split


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Optical Recognition of Handwritten Digits: the 1,797 digits of its test part.",
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            license="CC BY 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(0, TRAIN), "test": self._generate_examples(TRAIN, None)}

    def _generate_examples(self, start: int, stop: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = load()
        for i in range(*slice(start, stop).indices(len(images))):
            yield i, {"image": encode_png(images[i]), "label": int(labels[i])}


def load() -> tuple[np.ndarray, np.ndarray]:
    """Returns all digits in a fixed order that mixes the writers: uint8 ``(1797, 8, 8, 1)`` and int ``(1797,)``.

    Intensities are scaled from 0..16 in the source to 0..255.
    """
    from sklearn.datasets import load_digits  # a slow import that only preparing needs

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    pixels = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return pixels[order], labels[order]
