"""What is asked of a model: conditions and scales, parsed once and passed as one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowguide.condition import Condition
from flowguide.errors import UserError, shown
from flowguide.model import GammaConditioned, Model, Plain
from flowguide.sampling.measured import Measured, for_each
from flowguide.schema.conditions import Cond, conditions, negative_list

GAMMA = 2.0  # default guidance scale of a plain model


class SampleRequest(NamedTuple):
    """What each sample is asked to be.

    Attributes:
      c: the condition, batch B.
      negatives: conditions to move away from, batch B each.
      composed: further conditions, batch B each.
      gamma: guidance scale γ ``(B,)``.
      gamma_negative: weight γ_n of the negative conditions, ().
      weights: weights of the further conditions, in units of γ, ``(len(composed),)``.
      measured: what was measured of each sample, as ``for_each`` returns it; None for nothing.
    """

    c: Condition
    negatives: tuple[Condition, ...]
    composed: tuple[Condition, ...]
    gamma: Any
    gamma_negative: Any
    weights: Any
    measured: Measured | None = None


def default_gamma(model: Model) -> float:
    """Returns the guidance scale for a request that names none: ``GAMMA``, or 1 if there is nothing to be guided by."""
    if isinstance(model.guidance, GammaConditioned):
        return float(np.clip(GAMMA, model.guidance.low, model.guidance.high))
    return GAMMA if isinstance(model.guidance, Plain) and model.info.fields else 1.0


def request(
    model: Model,
    cond: Cond,
    num: int,
    gamma: float | np.ndarray | None = None,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[Cond, float]] = (),
    measured: Measured | None = None,
) -> SampleRequest:
    """Parses what is asked of ``num`` samples; the arguments are those of ``sample``, but ``measured`` has been read.

    Raises:
      UserError: for conditions and scales that cannot be.
    """
    fields = model.info.fields
    for pair in compose if isinstance(compose, list | tuple) else (compose,):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], int | float | np.number)):
            raise UserError(f'compose takes pairs of condition and weight, as [("hat=red", 0.5)]; got {shown(pair)}')
    gamma = default_gamma(model) if gamma is None else gamma
    try:
        gammas = np.broadcast_to(np.asarray(gamma, np.float32), (num,))
    except (ValueError, TypeError):
        raise UserError(f"gamma must be a number, or an array of shape ({num},); got {shown(gamma)}") from None
    return SampleRequest(
        c=conditions(cond, fields, num),
        negatives=tuple(conditions(d, fields, num) for d in negative_list(negative)),
        composed=tuple(conditions(d, fields, num) for d, _ in compose),
        gamma=gammas,
        gamma_negative=np.float32(gamma_negative),
        weights=np.array([weight for _, weight in compose], np.float32),
        measured=None if measured is None else for_each(measured, num),
    )
