"""Sampling from a trained model, guided towards conditions and away from others.

```python
from flowguide.sampling import load, sample

model = load("runs/avatars")
faces = sample(model, "hat=red,glasses=none", num=16, gamma=3.0, negative=["beard=yes"], seed=0)
```

Sample i depends only on (seed, i) and its own condition, not on its batch or the number of devices, up to rounding:
another batch size or number of devices is another program, which may add in another order. About one value of an image
in 10,000 then differs, by 1 of 255.
"""

from flowguide.model import GammaConditioned, Guided, Model, NoNull, Plain
from flowguide.networks.perturbation import Perturbation
from flowguide.sampling.checks import SAMPLERS, check_together, resolve_defaults
from flowguide.sampling.config import ADAPTIVE, SOLVER_NAMES, STOCHASTIC, SamplerConfig, nodes
from flowguide.sampling.density import log_prob
from flowguide.sampling.draw import Samples, sample, sample_particles, sample_product
from flowguide.sampling.export import export
from flowguide.sampling.load import load, load_autoencoder
from flowguide.sampling.measured import Deblur, Inpaint, LinearMap, Measured, Upsample, read_measured
from flowguide.sampling.null import Null, check_null, guided_by_null, keep_null, kept_null
from flowguide.sampling.particles import ParticleSamples, resample_equal
from flowguide.sampling.pilots import check_fit, check_gap, fit_grid, gap
from flowguide.sampling.recipes import RECIPES, Recipe, recipe
from flowguide.sampling.request import SampleRequest, default_gamma, request
from flowguide.sampling.trajectories import Trajectory, trajectory

__all__ = [
    "ADAPTIVE",
    "RECIPES",
    "SAMPLERS",
    "SOLVER_NAMES",
    "STOCHASTIC",
    "Deblur",
    "GammaConditioned",
    "Guided",
    "Inpaint",
    "LinearMap",
    "Measured",
    "Model",
    "NoNull",
    "Null",
    "ParticleSamples",
    "Perturbation",
    "Plain",
    "Recipe",
    "SampleRequest",
    "SamplerConfig",
    "Samples",
    "Trajectory",
    "Upsample",
    "check_fit",
    "check_gap",
    "check_null",
    "check_together",
    "default_gamma",
    "export",
    "fit_grid",
    "gap",
    "guided_by_null",
    "keep_null",
    "kept_null",
    "load",
    "load_autoencoder",
    "log_prob",
    "nodes",
    "read_measured",
    "recipe",
    "request",
    "resample_equal",
    "resolve_defaults",
    "sample",
    "sample_particles",
    "sample_product",
    "trajectory",
]
