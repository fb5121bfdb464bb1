"""Condition adherence: the share of samples that show what their condition asks for. In NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from flowguide.condition import Condition

# A Condition with named fields, or only its values, {name: int (N,)}, if all are present.
Asked: TypeAlias = Condition | Mapping[str, ArrayLike]
Predicted: TypeAlias = Mapping[str, ArrayLike]  # a judge's predictions, {name: int (N,)}


def adherence(predicted: Predicted, asked: Asked) -> dict[str, float]:
    """Returns by field the share of examples with the value asked for, among those where the field was present.

    Fields that were present for no example are left out. On held-out real images and their labels this is the accuracy
    of the judge, which bounds how far to trust its predictions on samples.

    Args:
      predicted: predicted values by field, int ``(N,)``; fields that were not asked for are ignored.
      asked: values asked for by field, int ``(N,)``, and their presence, bool ``(N,)``.

    Raises:
      ValueError: if a field asked for was not predicted, or lengths differ.
    """
    return {name: float(hits[present].mean()) for name, (hits, present) in _hits(predicted, asked).items()}


def joint_adherence(predicted: Predicted, asked: Asked) -> float:
    """Returns the share of examples with *all* values asked for, among those asked for any; nan if there are none.

    Takes the arguments of ``adherence`` and raises its errors.
    """
    anything, everything = shows(predicted, asked)
    return float(everything[anything].mean()) if anything.any() else math.nan


def shows(predicted: Predicted, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Returns for which examples anything was asked, and which of these show all of it, bool ``(N,)`` each.

    Without any field that is present both are empty. Takes the arguments of ``adherence`` and raises its errors.
    """
    fields = _hits(predicted, asked).values()
    if not fields:
        return np.zeros(0, bool), np.zeros(0, bool)
    anything = np.any([present for _, present in fields], axis=0)
    return anything, anything & np.all([hits | ~present for hits, present in fields], axis=0)


def standard_errors(predicted: Predicted, asked: Asked) -> dict[str, float]:
    """Returns by field the ``standard_error`` of ``adherence``; same arguments and errors."""
    fields = _hits(predicted, asked).items()
    return {name: standard_error(float(hits[present].mean()), int(present.sum())) for name, (hits, present) in fields}


def standard_error(p: float, n: int) -> float:
    """Returns the binomial standard error √(p(1 − p)/n) of a share p of n; at p = 0 and 1 it is 0 (95 % bound: 3/n)."""
    return math.sqrt(p * (1 - p) / n)


def share(predicted: ArrayLike, values: int | ArrayLike) -> float:
    """Returns the share of ``predicted``, int ``(N,)``, among ``values``; a negative condition should lower it.

    Raises:
      ValueError: if there are no predictions.
    """
    predicted = np.asarray(predicted)
    if predicted.size == 0:
        raise ValueError("got no predictions, expected at least one: the share is not defined")
    return float(np.isin(predicted, np.asarray(values)).mean())


def _hits(predicted: Predicted, asked: Asked) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns (correct, present), bool ``(N,)`` each, for each field that is present for some example."""
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
            raise ValueError(f"{name!r} was asked for but not predicted; got predictions of {sorted(predicted)}")
        seen = np.asarray(predicted[name])
        if wanted.ndim != 1 or not seen.shape == wanted.shape == present.shape:
            shapes = f"predicted {seen.shape}, asked {wanted.shape}, present {present.shape}"
            raise ValueError(f"{name!r} needs predicted, asked and present of one shape (N,); got {shapes}")
        fields[name] = seen == wanted, present
    return fields
