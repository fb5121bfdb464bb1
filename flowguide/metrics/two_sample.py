"""The classifier two-sample test: how well a classifier tells two sets of samples apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flowguide.errors import UserError


def c2st(reference: ArrayLike, samples: ArrayLike, *, folds: int = 5, seed: int = 1, jobs: int | None = None) -> float:
    """Returns the cross-validated accuracy of a classifier of two sets: ½ if they have the same law, 1 if disjoint.

    The test of Lopez-Paz & Oquab 2017 (arXiv 1610.06545) with the classifier of Lueckmann et al. 2021 (arXiv
    2101.04653), whose published numbers it reproduces: scikit-learn's MLP with two hidden layers of 10·d units, on
    numbers standardised by the reference.

    Args:
      reference: ``(N, d)``.
      samples: ``(N, d)``, as many as in the reference, so that chance is ½.
      folds: of the cross-validation.
      seed: of the classifier and the folds.
      jobs: processes that train classifiers at the same time.

    Raises:
      UserError: if the two differ in d or in size, or are not finite.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    x, y = (np.asarray(a, np.float32) for a in (reference, samples))
    if x.ndim != 2 or x.shape != y.shape:
        raise UserError(f"c2st compares two sets of the same shape (N, d); got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("c2st compares finite numbers; got nan or infinity: leave those rows out of both")
    mean, scale = x.mean(0), x.std(0, ddof=1)
    data = (np.concatenate([x, y]) - mean) / np.where(scale > 0, scale, 1.0)
    width = 10 * x.shape[1]
    classifier = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    split = KFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, data, np.repeat([0, 1], len(x)), cv=split, n_jobs=jobs).mean())
