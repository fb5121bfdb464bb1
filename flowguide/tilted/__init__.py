"""Samplers of the γ-powered distribution p(x)^(1−γ)·p(x|c)^γ, and of other products of powers of learned distributions.

Guidance mixes velocities, but the mix is not the velocity of this distribution (``analytic.guided_moments``). This
package has three ways to sample it with the same networks: weighted particles (``feynman_kac``), Langevin steps between
the steps of a flow (``predictor_corrector``), and importance weights for samples of the guided flow, from its density
(``importance_weights``). Needs only jax and numpy.
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
