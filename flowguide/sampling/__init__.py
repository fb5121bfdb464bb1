"""Sampling: a trained network, a condition and a guidance scale become samples.

```python
from flowguide.sampling import load, sample

run = load("runs/avatars")
faces = sample(run, "hat=red,glasses=none", num=16, gamma=3.0, negative=["beard=yes"], seed=0)
```

Sample i depends on (seed, i) and its own condition alone, not on the batch it is drawn in or the number of devices, up
to rounding: another batch size or number of devices is another program, which may add in another order. Of images about
one value in 10,000 then differs, by 1 of 255.
"""

from flowguide.sampling.checks import check_together, settled
from flowguide.sampling.draw import Samples, sample
from flowguide.sampling.export import export
from flowguide.sampling.laws import Laws, equally, sample_laws
from flowguide.sampling.method import ADAPTIVE, SAMPLERS, SOLVER_NAMES, STOCHASTIC, Method, nodes
from flowguide.sampling.pilots import check_fit, check_gap, fit_grid, gap
from flowguide.sampling.run import Null, Run, check_null, guided_by_null, keep_null, kept_null, load

__all__ = [
    "ADAPTIVE",
    "SAMPLERS",
    "SOLVER_NAMES",
    "STOCHASTIC",
    "Laws",
    "Method",
    "Null",
    "Run",
    "Samples",
    "check_fit",
    "check_gap",
    "check_null",
    "check_together",
    "equally",
    "export",
    "fit_grid",
    "gap",
    "guided_by_null",
    "keep_null",
    "kept_null",
    "load",
    "nodes",
    "sample",
    "sample_laws",
    "settled",
]
