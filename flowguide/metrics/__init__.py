"""Metrics of samples: judges trained on real images, adherence, distances of feature sets, calibration of posteriors.

```python
judge = train_judge(real.x, real.value)
adherence(predict(judge, held_out.x), held_out.value)  # the judge's own accuracy
adherence(predict(judge, samples), condition)  # the adherence of samples
frechet_distance(moments([features(judge, real.x)]), moments([features(judge, samples)]))
```
"""

from flowguide.metrics.adherence import adherence, joint_adherence, share, standard_error, standard_errors
from flowguide.metrics.calibration import (
    Coverage,
    Uniformity,
    coverage,
    density_ranks,
    sbc_ranks,
    tarp_ranks,
    uniformity,
)
from flowguide.metrics.frechet import Moments, covariance, frechet_distance, merge, moments, update
from flowguide.metrics.judge import Judge, features, predict, train_judge
from flowguide.metrics.two_sample import c2st

__all__ = [
    "Coverage",
    "Judge",
    "Moments",
    "Uniformity",
    "adherence",
    "c2st",
    "covariance",
    "coverage",
    "density_ranks",
    "features",
    "frechet_distance",
    "joint_adherence",
    "merge",
    "moments",
    "predict",
    "sbc_ranks",
    "share",
    "standard_error",
    "standard_errors",
    "tarp_ranks",
    "train_judge",
    "uniformity",
    "update",
]
