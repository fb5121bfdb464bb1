"""The real data's statistics, computed once, and the metrics of samples against them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowguide.condition import Condition
from flowguide.data import Dataset
from flowguide.evaluation import kept
from flowguide.evaluation.judging import identity
from flowguide.evaluation.readers import Reader, Seen, from_arrays, joined, to_arrays
from flowguide.metrics import (
    Moments,
    Neighbourhoods,
    adherence,
    authenticity,
    density_coverage,
    frechet_distance,
    inception_score,
    joint_adherence,
    kid,
    merge,
    moments,
    neighbourhoods,
    precision_recall,
    sliced_wasserstein,
    standard_error,
    standard_errors,
)
from flowguide.metrics.adherence import shows

NEIGHBOURS = 10_000  # real examples whose features are kept; the metrics that look for neighbours use these
KID_SUBSET, SCORED_TOGETHER = 1000, 1000  # samples of a subset of KID; and of a part of the Inception score, at least
LEAST = 10  # of examples and samples: precision and recall look for the third neighbour, density for the fifth
BATCH = 500  # examples read at a time


class Real(NamedTuple):
    """Statistics of real examples.

    Attributes:
      moments: of the features of all of them.
      near: the first ``NEIGHBOURS`` of them, features ``(n, F)``, with their neighbours.
    """

    moments: Moments
    near: Neighbourhoods


class Metrics(NamedTuple):
    """Metrics of one set of samples. Those that do not apply are NaN, or empty.

    ``frechet_distance``, ``kid``, ``inception_score`` (its mean over judged fields), ``precision``, ``recall``,
    ``density``, ``coverage``, ``authenticity``, ``sliced_wasserstein``, ``joint_adherence`` and ``negative_share`` (of
    samples that show a negative condition, in all the fields that it names) are numbers;
    ``inception_scores``, ``adherence`` and ``adherence_error`` are numbers by field. Errors are standard errors.
    """

    frechet_distance: float
    kid: float
    inception_score: float
    precision: float
    recall: float
    density: float
    coverage: float
    authenticity: float
    sliced_wasserstein: float
    joint_adherence: float
    joint_adherence_error: float
    negative_share: float
    inception_scores: dict[str, float]
    adherence: dict[str, float]
    adherence_error: dict[str, float]


def real_statistics(
    data: Dataset, most: int, reader: Reader, folder: Path, say: Callable[[str], None], bar: Callable[[int], Any]
) -> Real:
    """Returns the statistics of at most ``most`` examples, in a fixed random order, from the folder if it has them.

    Args:
      data: real examples.
      most: number of examples.
      reader: what reads them.
      folder: that keeps the statistics.
      say: is told why kept statistics are not used.
      bar: is told how many more examples are read.
    """
    count = min(most, data.size)
    file = folder / f"real-{reader.name}.npz"
    origin = {**reader.origin, "data": identity(data), "count": count, "kept": NEIGHBOURS}
    arrays, reason = kept.read(file, origin)
    if arrays is None:
        if reason:
            say(f"{file}: {reason}; the statistics of real examples are computed again")
        found, features, held = None, [], 0
        for seen in _seen(data, np.random.default_rng(0).permutation(data.size)[:count], reader, bar):
            part = moments([seen.features])
            found = part if found is None else merge(found, part)
            features.append(seen.features[: max(0, NEIGHBOURS - held)])
            held += len(features[-1])
        assert found is not None
        arrays = {"mean": found.mean, "scatter": found.scatter, "features": np.concatenate(features)}
        kept.write(file, origin, arrays)
    else:
        bar(count)
    return Real(Moments(count, arrays["mean"], arrays["scatter"]), neighbourhoods(arrays["features"]))


def held_out(
    data: Dataset, reader: Reader, folder: Path, say: Callable[[str], None], bar: Callable[[int], Any]
) -> Seen:
    """Returns what is seen in at most ``NEIGHBOURS`` held-out examples; arguments as for ``real_statistics``."""
    rows = np.random.default_rng(0).permutation(data.size)[:NEIGHBOURS]
    file = folder / f"held-out-{reader.name}.npz"
    origin = {**reader.origin, "data": identity(data), "kept": NEIGHBOURS}
    arrays, reason = kept.read(file, origin)
    if arrays is None:
        if reason:
            say(f"{file}: {reason}; held-out examples are read again")
        arrays = to_arrays(joined(list(_seen(data, rows, reader, bar))))
        kept.write(file, origin, arrays)
    else:
        bar(len(rows))
    return from_arrays(arrays)


def measure(real: Real, seen: Seen, vectors: bool = False, negatives: Sequence[Condition] = ()) -> Metrics:
    """Returns the metrics of samples.

    Args:
      real: statistics of real examples.
      seen: what was seen in the samples.
      vectors: whether the features are vectors, of which the sliced Wasserstein distance makes sense.
      negatives: conditions that the samples moved away from, one for each sample in each.
    """
    x, y = real.near.features, seen.features
    near, dense = precision_recall(real.near, y), density_coverage(real.near, y)
    splits = min(10, max(1, len(y) // SCORED_TOGETHER))
    scores = {name: inception_score(p, splits=splits).mean for name, p in seen.probabilities.items()}
    judged = seen.predictions, seen.labels
    joint = joint_adherence(*judged)  # NaN without a judge
    return Metrics(
        frechet_distance(real.moments, moments([y])),
        kid(x, y, size=min(KID_SUBSET, len(x), len(y))).mean,
        float(np.mean(list(scores.values()))) if scores else np.nan,
        *near,
        *dense,
        authenticity(real.near, y),
        sliced_wasserstein(x, y) if vectors else np.nan,
        joint,
        standard_error(joint, len(y)),
        _negative_share(seen, negatives),
        scores,
        adherence(*judged),
        standard_errors(*judged),
    )


def _negative_share(seen: Seen, negatives: Sequence[Condition]) -> float:
    """Returns the share of samples that show any of the negative conditions, as far as the judge reads its fields."""
    judged = [Condition(*({name: part[name] for name in seen.predictions} for part in c)) for c in negatives]
    shown = [shows(seen.predictions, c)[1] for c in judged]
    read = [everything for everything in shown if everything.size]  # the judge reads none of the other's fields
    return float(np.any(read, axis=0).mean()) if read else np.nan


def _seen(data: Dataset, rows: np.ndarray, reader: Reader, bar: Callable[[int], Any]) -> Iterator[Seen]:
    for start in range(0, len(rows), BATCH):
        batch = data.read(rows[start : start + BATCH])
        yield reader.read(batch.x, batch.value)
        bar(len(batch.x))
