"""mixture2d: points from eight Gaussians on a ring, with an exactly known density.

p(x, label = k) = WEIGHTS[k] · N(x; MEANS[k], STD² I).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

CLASSES = 8
MEANS = 2.0 * np.stack([f(2 * np.pi * np.arange(CLASSES) / CLASSES) for f in (np.cos, np.sin)], axis=-1)  # (8, 2)
STD = 0.3
WEIGHTS = np.full(CLASSES, 1 / CLASSES)

_SPLITS = {"train": (0, 50_000), "test": (1, 10_000)}  # seed and size


class Mixture2d(tfds.core.GeneratorBasedBuilder):
    """Points from a mixture of Gaussians."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Eight Gaussians on a ring of radius 2, standard deviation 0.3, equal weights.",
            license="CC0 1.0",
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(*draw(*setting)) for split, setting in _SPLITS.items()}

    def _generate_examples(self, x: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, label in enumerate(labels):
            yield i, {"x": x[i], "label": int(label)}


def draw(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws points, float32 ``(size, 2)``, and their labels, int ``(size,)``."""
    random = np.random.default_rng(seed)
    labels = random.choice(CLASSES, size=size, p=WEIGHTS)
    x = MEANS[labels] + STD * random.standard_normal((size, 2))
    return x.astype(np.float32), labels
