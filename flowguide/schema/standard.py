"""Standardisation of numbers along their last axis, recorded in a run so that it can be undone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flowguide.kinds import fits


def standardised(x: Any, mean: Sequence[float], scale: Sequence[float]) -> Any:
    """Returns (x - mean) / scale along the last axis; an empty mean is 0 and an empty scale 1. Works inside ``jit``."""
    x = x - np.asarray(mean, np.float32) if mean else x
    return x / np.asarray(scale, np.float32) if scale else x


def restored(x: Any, mean: Sequence[float], scale: Sequence[float]) -> Any:
    """Undoes ``standardised``."""
    x = x * np.asarray(scale, np.float32) if scale else x
    return x + np.asarray(mean, np.float32) if mean else x


def moments(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation of ``(N, ..., d)`` over all axes but the last.

    The standard deviation of a column that never changes is given as 1.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    # Of a column that does not change, rounding may leave a tiny deviation.
    changes = rows.max(axis=0) > rows.min(axis=0)
    mean, scale = rows.mean(axis=0), np.where(changes, rows.std(axis=0), 1.0)
    scale = np.where(scale > 0, scale, 1.0)
    return tuple(mean.astype(np.float32).tolist()), tuple(scale.astype(np.float32).tolist())


def moments_of_parts(parts: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns ``moments`` of rows that come in parts ``(n, d)``, of which one is in memory at a time.

    Without any row both are empty.

    Sums of squares are combined as by Chan, Golub and LeVeque 1983, eq. 2.1.
    """
    count, mean, squares, low, high = 0, np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)
    for part in parts:
        rows = part.astype(np.float64)
        if not (n := len(rows)):
            continue
        own = rows.mean(axis=0)
        if not count:
            mean, squares, low, high = np.zeros_like(own), np.zeros_like(own), rows[0], rows[0]
        apart, count = own - mean, count + n
        squares = squares + ((rows - own) ** 2).sum(axis=0) + apart**2 * (n * (count - n) / count)
        mean = mean + apart * (n / count)
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    scale = np.sqrt(squares / max(count, 1))
    scale = np.where((high > low) & (scale > 0), scale, 1.0)
    return tuple(mean.astype(np.float32).tolist()), tuple(scale.astype(np.float32).tolist())


def moments_of_classes(counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the scale of the indicators of classes, of which there are so many each ``(K,)``.

    The scale is the same for all. It is the root of the sum of their variances, so that standardised variances add up
    to 1, but at most √½, so that no two classes are nearer than 2, the distance of two that are equally frequent.
    """
    share = counts / counts.sum()
    scale = np.full(len(counts), np.sqrt(min(0.5, np.sum(share * (1 - share)))))
    return tuple(share.astype(np.float32).tolist()), tuple(scale.astype(np.float32).tolist())


def check_standard(size: int, mean: Any, scale: Any) -> None:
    """Raises ValueError unless both are empty or ``size`` finite numbers, and those of ``scale`` are above 0."""
    for name, numbers in (("mean", mean), ("scale", scale)):
        if not fits(numbers, Sequence[float]) or len(numbers) not in (0, size) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name} is {numbers!r:.60}, not {size} finite numbers")
    if any(number <= 0 for number in scale):
        raise ValueError(f"scale is {scale!r:.60}, not numbers above 0")
