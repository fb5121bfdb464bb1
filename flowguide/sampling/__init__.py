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

from flowguide.sampling.checks import check_together, resolve_defaults
from flowguide.sampling.config import ADAPTIVE, SAMPLERS, SOLVER_NAMES, STOCHASTIC, SamplerConfig, nodes
from flowguide.sampling.draw import Samples, sample
from flowguide.sampling.export import export
from flowguide.sampling.particles import ParticleSamples, resample_equal, sample_particles
from flowguide.sampling.pilots import check_fit, check_gap, fit_grid, gap
from flowguide.sampling.run import Null, Run, check_null, guided_by_null, keep_null, kept_null, load

__all__ = [
    "ADAPTIVE",
    "SAMPLERS",
    "SOLVER_NAMES",
    "STOCHASTIC",
    "Null",
    "ParticleSamples",
    "Run",
    "SamplerConfig",
    "Samples",
    "check_fit",
    "check_gap",
    "check_null",
    "check_together",
    "export",
    "fit_grid",
    "gap",
    "guided_by_null",
    "keep_null",
    "kept_null",
    "load",
    "nodes",
    "resample_equal",
    "resolve_defaults",
    "sample",
    "sample_particles",
]
