"""Metrics of samples: functions of features, class probabilities, predictions or vectors.

A feature network is any function of images, uint8 ``(N, H, W, C)``, that returns features ``(N, F)``: those of a judge
trained on real images, of ``flowguide.metrics.inception``, or your own.

```python
judge = train_judge(real.x, real.value)
adherence(predict(judge, held_out.x), held_out.value)  # the judge's own accuracy
adherence(predict(judge, samples), condition)  # the adherence of samples
frechet_distance(moments([features(judge, real.x)]), moments([features(judge, samples)]))
precision_recall(features(judge, real.x), features(judge, samples))
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
from flowguide.metrics.classification import accuracy, expected_calibration_error
from flowguide.metrics.frechet import Moments, combine, covariance, frechet_distance, merge, moments, update
from flowguide.metrics.inception_score import InceptionScore, inception_score
from flowguide.metrics.judge import Judge, features, predict, probabilities, train_judge
from flowguide.metrics.kernel import KID, kid
from flowguide.metrics.neighbours import (
    DensityCoverage,
    Neighbourhoods,
    PrecisionRecall,
    authenticity,
    density_coverage,
    neighbourhoods,
    precision_recall,
)
from flowguide.metrics.two_sample import c2st
from flowguide.metrics.wasserstein import sliced_wasserstein

__all__ = [
    "KID",
    "Coverage",
    "DensityCoverage",
    "InceptionScore",
    "Judge",
    "Moments",
    "Neighbourhoods",
    "PrecisionRecall",
    "Uniformity",
    "accuracy",
    "adherence",
    "authenticity",
    "c2st",
    "combine",
    "covariance",
    "coverage",
    "density_coverage",
    "density_ranks",
    "expected_calibration_error",
    "features",
    "frechet_distance",
    "inception_score",
    "joint_adherence",
    "kid",
    "merge",
    "moments",
    "neighbourhoods",
    "precision_recall",
    "predict",
    "probabilities",
    "sbc_ranks",
    "share",
    "sliced_wasserstein",
    "standard_error",
    "standard_errors",
    "tarp_ranks",
    "train_judge",
    "uniformity",
    "update",
]
