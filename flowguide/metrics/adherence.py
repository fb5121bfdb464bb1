"""Condition adherence: the share of samples that have what they were asked to have. Counting, in numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from flowguide.condition import Condition

# What was asked: a Condition of named fields, or only its values, {name: int (N,)}, where all are present.
Asked: TypeAlias = Condition | Mapping[str, ArrayLike]
Predicted: TypeAlias = Mapping[str, ArrayLike]  # what a judge saw: {name: int (N,)}


def adherence(predicted: Predicted, asked: Asked) -> dict[str, float]:
    """By field, the share of the examples where it was present that have the value asked for.

    Fields that were present for no example are left out. On held-out real images and their labels this is the
    accuracy of the judge, which bounds what its word on samples is worth.

    Args:
      predicted: by field, what was seen, int ``(N,)``; fields that were not asked for are ignored.
      asked: by field, what was asked for, int ``(N,)``, and its presence, bool ``(N,)``.

    Raises:
      ValueError: where a field that was asked for was not predicted, or lengths differ.
    """
    return {name: float(hits[present].mean()) for name, (hits, present) in _hits(predicted, asked).items()}


def joint_adherence(predicted: Predicted, asked: Asked) -> float:
    """The share of examples that have *everything* they were asked for, among those asked for anything; else nan.

    Arguments and errors are those of :func:`adherence`.
    """
    fields = _hits(predicted, asked).values()
    if not fields:
        return math.nan
    anything = np.any([present for _, present in fields], axis=0)
    everything = np.all([hits | ~present for hits, present in fields], axis=0)
    return float(everything[anything].mean())


def standard_errors(predicted: Predicted, asked: Asked) -> dict[str, float]:
    """By field, the :func:`standard_error` of :func:`adherence`, whose arguments and errors these are."""
    fields = _hits(predicted, asked).items()
    return {name: standard_error(float(hits[present].mean()), int(present.sum())) for name, (hits, present) in fields}


def standard_error(p: float, n: int) -> float:
    """The binomial standard error √(p(1 − p)/n) of a share p of n; 0 at p = 0 and 1, where 3/n bounds it at 95 %."""
    return math.sqrt(p * (1 - p) / n)


def share(predicted: ArrayLike, values: int | ArrayLike) -> float:
    """The share of ``predicted``, int ``(N,)``, that is one of ``values``: what a negative condition should cut.

    Raises:
      ValueError: if there are no predictions.
    """
    predicted = np.asarray(predicted)
    if predicted.size == 0:
        raise ValueError("the share of no predictions is not defined")
    return float(np.isin(predicted, np.asarray(values)).mean())


def _hits(predicted: Predicted, asked: Asked) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By field that is present anywhere: whether the prediction is what was asked, and presence; bool ``(N,)``."""
    value, presence = asked if isinstance(asked, Condition) else (asked, None)
    if not isinstance(value, Mapping):
        raise ValueError(f"asked must have named fields, {{name: int (N,)}}; got values of type {type(value).__name__}")
    fields = {}
    for name, wanted in value.items():
        wanted = np.asarray(wanted)
        present = np.ones(wanted.shape, bool) if presence is None else np.asarray(presence[name])
        if not present.any():
            continue
        if name not in predicted:
            raise ValueError(f"{name!r} was asked for and not predicted; predicted are {sorted(predicted)}")
        seen = np.asarray(predicted[name])
        if wanted.ndim != 1 or not seen.shape == wanted.shape == present.shape:
            shapes = f"predicted {seen.shape}, asked {wanted.shape}, present {present.shape}"
            raise ValueError(f"{name!r} needs predicted, asked and present of one shape (N,); got {shapes}")
        fields[name] = seen == wanted, present
    return fields
