"""The Inception score of class probabilities. Float64 NumPy."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowguide.errors import UserError
from flowguide.metrics.checks import probabilities as checked


class InceptionScore(NamedTuple):
    """The score over splits.

    Attributes:
      mean: its mean, from 1 to the number of classes.
      std: its standard deviation, from split to split.
    """

    mean: float
    std: float


def inception_score(probabilities: ArrayLike, *, splits: int = 10, seed: int | None = 0) -> InceptionScore:
    """Returns exp E KL(p(y|x) ‖ p(y)), the mean over ``splits`` parts (Salimans et al. 2016, arXiv 1606.03498, §4).

    It is high if every sample has a clear class and all classes occur; it never looks at real examples. It grows with
    the samples of a part, so published numbers use 50,000 samples in 10 parts.

    Args:
      probabilities: p(y|x) of the samples ``(N, K)``: Inception's, or those of a classifier of your own.
      splits: number of parts.
      seed: of the order of the samples. Without a new order (None), samples sorted by class score far too low.

    Raises:
      UserError: if rows are not distributions, or there are fewer of them than splits.
    """
    p = checked("inception_score", probabilities)
    if not 1 <= splits <= len(p):
        raise UserError(f"inception_score needs 1 to N splits; got {splits} for N = {len(p)} samples")
    order = np.arange(len(p)) if seed is None else np.random.default_rng(seed).permutation(len(p))
    # Part i holds rows ⌊iN/splits⌋ to ⌊(i + 1)N/splits⌋, as in the authors' code.
    bounds = [i * len(p) // splits for i in range(splits + 1)]
    scores = [_score(p[order[i:j]].astype(np.float64)) for i, j in pairwise(bounds)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(p: np.ndarray) -> float:
    marginal = p.mean(0)
    # 0·log 0 = 0; where the marginal is 0, so is every p.
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)
    return float(np.exp(np.sum(p * np.log(ratio), 1).mean()))
