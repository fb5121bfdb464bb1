"""The tensors of released networks that are computed rather than learned, float64."""

from __future__ import annotations

import numpy as np


def time_frequencies() -> np.ndarray:
    """Returns the frequencies of the time features, 10000^(−k/128), (128,)."""
    return 10_000.0 ** (-np.arange(128) / 128)


def positions(side: int, width: int) -> np.ndarray:
    """Returns the table of positions (1, side², width) of DiT: sin and cos of the column, then of the row.

    Each of the four has width/4 frequencies, 10000^(−4k/width).
    """
    angles = np.outer(np.arange(side), 10_000.0 ** (-np.arange(width // 4) / (width // 4)))
    of_place = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    row, column = np.indices((side, side)).reshape(2, -1)
    return np.concatenate([of_place[column], of_place[row]], axis=1)[None]


def rotations(side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines and sines (side², size) of the rotary positions of a head (Su et al. 2021, over two axes).

    The first half of the head turns with the row and the second with the column; each frequency, 10000^(−4k/size), is
    that of two neighbouring dimensions.
    """
    angles = np.outer(np.arange(side), 10_000.0 ** (-np.arange(size // 4) / (size // 4))).repeat(2, axis=1)
    row, column = np.indices((side, side)).reshape(2, -1)
    both = np.concatenate([angles[row], angles[column]], axis=1)
    return np.cos(both), np.sin(both)
