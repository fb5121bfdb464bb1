"""What guidance buys: a sweep over settings, measured against real data, that resumes wherever it stopped.

```python
from flowguide import build, config, evaluation, sampling

model, data = sampling.load("runs/avatars"), build.splits(config.read_config(Path("runs/avatars")))
found = evaluation.evaluate(evaluation.settings(model, (1, 2, 4)), data, "runs/avatars/evaluation")
found.rows[0]["metrics"]["frechet_distance"]
```
"""

from flowguide.evaluation.figure import save_figure
from flowguide.evaluation.readers import FeatureNetwork, inception
from flowguide.evaluation.run import CHUNKS, Evaluation, check, evaluate, save
from flowguide.evaluation.sweep import OTHER, Setting, settings

__all__ = [
    "CHUNKS",
    "OTHER",
    "Evaluation",
    "FeatureNetwork",
    "Setting",
    "check",
    "evaluate",
    "inception",
    "save",
    "save_figure",
    "settings",
]
