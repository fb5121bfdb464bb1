"""Metrics of samples: judges trained on real images, adherence to conditions, and distances between feature sets.

```python
judge = train_judge(real.x, real.value)
adherence(predict(judge, held_out.x), held_out.value)  # the judge's own accuracy
adherence(predict(judge, samples), condition)  # the adherence of samples
frechet_distance(moments([features(judge, real.x)]), moments([features(judge, samples)]))
```
"""

from flowguide.metrics.adherence import adherence, joint_adherence, share, standard_error, standard_errors
from flowguide.metrics.frechet import Moments, covariance, frechet_distance, merge, moments, update
from flowguide.metrics.judge import Judge, features, predict, train_judge

__all__ = [
    "Judge",
    "Moments",
    "adherence",
    "covariance",
    "features",
    "frechet_distance",
    "joint_adherence",
    "merge",
    "moments",
    "predict",
    "share",
    "standard_error",
    "standard_errors",
    "train_judge",
    "update",
]
