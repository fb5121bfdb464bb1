"""Samplers of the γ-powered law p(x)^(1−γ)·p(x|c)^γ itself, and of other products of powers of learned laws.

Guidance mixes velocities, and the mix is not the velocity of this law (``analytic.guided_moments``). Here are three
ways to the law from the same networks: particles with weights (``feynman_kac``), Langevin steps between those of a flow
(``predictor_corrector``), and weights for samples of the guided flow through its density (``importance_weights``).
Needs only jax and numpy.
"""

from flowguide.tilted.feynman_kac import Particles, effective_size, feynman_kac, resample
from flowguide.tilted.importance import Weighed, importance_weights
from flowguide.tilted.posterior import log_posterior_ratio
from flowguide.tilted.predictor_corrector import predictor_corrector
from flowguide.tilted.product import Product, composed, mix, powered, product, weight_rate

__all__ = [
    "Particles",
    "Product",
    "Weighed",
    "composed",
    "effective_size",
    "feynman_kac",
    "importance_weights",
    "log_posterior_ratio",
    "mix",
    "powered",
    "predictor_corrector",
    "product",
    "resample",
    "weight_rate",
]
