"""How good a classifier is that reads samples: its accuracy, and whether its probabilities can be believed. NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flowguide.errors import UserError
from flowguide.metrics.checks import probabilities as checked


def accuracy(probabilities: ArrayLike, labels: ArrayLike, *, top: int = 1) -> float:
    """Returns the share of examples whose label is among the ``top`` most probable classes; ties go to lower classes.

    With samples and the labels they were asked for, this is their adherence; with held-out real examples and their
    labels, it is the accuracy of the classifier, beyond which adherence says nothing.

    Args:
      probabilities: ``(N, K)``.
      labels: int ``(N,)``, from 0.
      top: number of classes that count.

    Raises:
      UserError: if rows are not distributions, or labels do not fit.
    """
    p, labels = _checked("accuracy", probabilities, labels)
    if not 1 <= top <= p.shape[1]:
        raise UserError(f"accuracy counts the top 1 to {p.shape[1]} classes; got top={top}")
    best = np.argsort(-p, axis=1, kind="stable")[:, :top]
    return float((best == labels[:, None]).any(1).mean())


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Returns Σ_b (n_b/N)·|accuracy_b − confidence_b| over equal bins of confidence (Guo et al. 2017, eq. 3).

    The confidence is the probability of the most probable class; bin b holds those in ((b − 1)/bins, b/bins]. A
    calibrated classifier has about 0, and not exactly, as each bin adds the noise of its accuracy.

    Args:
      probabilities: ``(N, K)``.
      labels: int ``(N,)``, from 0.
      bins: number of bins.

    Raises:
      UserError: as ``accuracy``.
    """
    p, labels = _checked("expected_calibration_error", probabilities, labels)
    if bins < 1:
        raise UserError(f"expected_calibration_error needs at least 1 bin; got {bins}")
    confidence = p.max(1).astype(np.float64)
    surplus = (p.argmax(1) == labels) - confidence
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(place, surplus, bins)).sum() / len(p))


def _checked(metric: str, probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p, labels = checked(metric, probabilities), np.asarray(labels)
    if labels.shape != p.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{metric} takes one integer label a row, ({len(p)},); got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= p.shape[1]:
        raise UserError(f"{metric} takes labels in 0..{p.shape[1] - 1}; got {labels.min()}..{labels.max()}")
    return p, labels
